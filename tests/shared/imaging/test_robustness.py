"""Whatever the bytes are, reading them gives a picture of the promised type, or one InputError; never anything else."""

import io
from functools import cache

import numpy as np
import pydicom
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file

from shared.errors import InputError
from shared.imaging import Limits, read_image, read_mask, samples
from tests.shared.imaging.made import clip, encoded, gradient

LIMITS = Limits(bytes=2**20, pixels=10**6)
STARTS = [
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"II*\0\x08\0\0\0",
    b"MM\0+",
    b"GIF89a",
    b"BM",
    b"RIFF\0\0\0\0WEBPVP8 ",
    b"RIFF\0\0\0\0AVI LIST",
]
STARTS += [bytes(128) + b"DICM", b"\0\0\0\x14ftypisom", b"\x1a\x45\xdf\xa3"]


@cache
def valid() -> dict[str, bytes]:
    picture = gradient(16, 24)
    pages = [Image.fromarray(picture), Image.fromarray(picture[::-1])]
    files = {
        "png": encoded(picture, "PNG"),
        "png16": encoded(np.arange(384, dtype=np.uint16).reshape(16, 24) * 170, "PNG"),
        "palette": encoded(pages[0].quantize(8), "PNG", transparency=1),
        "jpeg": encoded(picture, "JPEG", exif=_turned()),
        "progressive": encoded(picture, "JPEG", progressive=True),
        "cmyk": encoded(pages[0].convert("CMYK"), "JPEG"),
        "bmp": encoded(picture, "BMP"),
        "webp": encoded(picture, "WebP"),
        "gif": encoded(pages[0], "GIF", save_all=True, append_images=pages[1:]),
        "apng": encoded(pages[0], "PNG", save_all=True, append_images=pages[1:]),
        "tiff": encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw"),
        "jpeg in tiff": encoded(picture, "TIFF", compression="jpeg"),
        "float": encoded(np.linspace(0, 1, 384, dtype=np.float32).reshape(16, 24), "TIFF"),
        "mp4": clip("mp4", count=3)[0],
        "avi": clip("avi", count=3)[0],
        "mkv": clip("matroska", count=3)[0],
        "h264": clip("mp4", codec="libx264", count=3)[0],
    }
    for name in ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "SC_rgb_small_odd_jpeg.dcm"):
        path = get_testdata_file(name, download=False)
        assert isinstance(path, str)
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, pydicom.dcmread(path))
        files[name] = buffer.getvalue()
    return files


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


def read_every_way(content: bytes) -> None:
    for read, dtype, axes in ((read_image, np.uint8, 3), (read_mask, np.bool_, 2)):
        try:
            array = read(content, name="input", limits=LIMITS)
        except InputError as error:
            assert str(error).startswith("input: ")  # noqa: PT017 (an error is one of two good answers)
            continue
        assert (array.dtype, array.ndim) == (dtype, axes)
        assert 0 < array.shape[0] * array.shape[1] <= LIMITS.pixels
    try:
        for frame in samples(content, name="input", limits=LIMITS):
            array = frame.read()
            assert (array.dtype, array.ndim, array.shape[2]) == (np.uint8, 3, 3)
    except InputError as error:
        assert str(error).startswith("input: ")  # noqa: PT017


@settings(max_examples=150, deadline=None)
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=400))
def test_random_bytes(start, rest):
    read_every_way(start + rest)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files(data):
    content = bytearray(valid()[data.draw(st.sampled_from(sorted(valid())))])
    for _ in range(data.draw(st.integers(0, 4))):
        early = data.draw(st.booleans())  # headers are where the trouble is
        position = data.draw(st.integers(0, min(len(content), 300 if early else len(content)) - 1))
        change = data.draw(st.binary(min_size=1, max_size=4))
        content[position : position + len(change)] = change
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    read_every_way(bytes(content[:end]))


def test_the_undamaged_files_do_read():
    for name, content in valid().items():
        assert [frame.read().dtype for frame in samples(content, name=name)], name
