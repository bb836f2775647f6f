"""What cannot be read is refused with one message that names the file, says what was found, and what to do."""

import contextlib
import io
import os
import resource
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, TiffImagePlugin

from shared.errors import InputError
from shared.imaging import Limits, read_image, read_mask, samples
from tests.shared.imaging.made import encoded, gradient, png_chunks, png_header

PICTURE = gradient(200, 300)
PNG = encoded(PICTURE, "PNG")
JPEG = encoded(PICTURE, "JPEG")


def nan_tiff() -> bytes:
    buffer = io.BytesIO()
    values = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    values[3, 3] = np.nan
    tifffile.imwrite(buffer, values)
    return buffer.getvalue()


def huge_tiff(width: int, height: int, **tags: int) -> bytes:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    values = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 273: 8, 277: 1, 278: height, 279: 100} | {
        int(k[1:]): v for k, v in tags.items()
    }
    for tag, value in values.items():
        directory[tag] = value
    buffer = io.BytesIO(b"II*\0\x08\0\0\0")
    buffer.seek(8)
    directory.save(buffer)
    return buffer.getvalue() + zlib.compress(bytes(100_000))


def huge_webp() -> bytes:
    """An animation of 16,383 x 16,383 pixels, of which the header is all there is."""
    side = (16_382).to_bytes(3, "little")
    body = b"VP8X\n\0\0\0\2\0\0\0" + side + side + b"ANIM\6\0\0\0" + bytes(6)
    return b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body


BAD = {
    "truncated.png": (PNG[: len(PNG) // 2], "cannot be decoded as a PNG file.*copy or export it again"),
    "without_end.png": (PNG[:-12], "cannot be decoded as a PNG file"),
    "damaged.png": (PNG[:200] + bytes([PNG[200] ^ 1]) + PNG[201:], "cannot be decoded as a PNG file"),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "cannot be decoded as a JPEG file.*truncated"),
    "header_only.jpg": (JPEG[:12], "cannot be decoded as a JPEG file"),
    "notes.jpg": (b"patient 7, no polyp seen\n", "is not an image: it holds text, starting 'patient 7, no polyp seen'"),
    "page.png": (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "report.png": (b"%PDF-1.7 ...", "a PDF document"),
    "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC or AVIF image"),
    "zeros.png": (bytes(5000), "nothing but zeros"),
    "random.png": (bytes.fromhex("8f1c00aa93") * 20, "bytes of no known image format"),
    "empty.png": (b"", r"is empty \(0 bytes\)"),
    "huge.png": (png_chunks(png_header(50_000, 50_000), (b"IDAT", b"")), "claims 50,000 x 50,000 pixels.*at most 50 million"),
    "flat.png": (png_chunks(png_header(0, 10), (b"IDAT", b"")), "cannot be decoded as a PNG file"),
    "comment_bomb.png": (png_chunks(png_header(1, 1), (b"zTXt", b"c\0\0" + zlib.compress(bytes(80_000_000)))), "PNG file.*[Dd]ecompress"),
    "huge.tif": (huge_tiff(60_000, 60_000), "claims 60,000 x 60,000 pixels"),
    "large.tif": (huge_tiff(10_000, 10_000), "claims 10,000 x 10,000 pixels"),
    "huge_tile.tif": (huge_tiff(16, 16, t322=12_800, t323=12_800, t324=8, t325=100), "claims 12,800 x 12,800 pixels"),
    "huge.webp": (huge_webp(), "claims more than 178 million pixels, but at most 50 million"),
    "not_numbers.tif": (nan_tiff(), "not numbers"),
    "clip.mp4": (b"\0\0\0\x18ftypisom\0\0\0\0", r"is a video \(MP4\), and one image was expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_clear_message(tmp_path, name):
    content, reason = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    for read in (read_image, read_mask):
        with pytest.raises(InputError, match=reason) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match=reason):
            read(content, name=name)


@pytest.mark.parametrize("name", [name for name in BAD if name != "clip.mp4"])
def test_a_bad_file_fails_as_a_sample_too(name):
    with pytest.raises(InputError, match=f"^{name}: .*{BAD[name][1]}"):
        [frame.read() for frame in samples(BAD[name][0], name=name)]


def test_a_claim_of_50_000_pixels_a_side_costs_no_memory():
    """7.5 GB would be needed to hold it; the process's peak may not grow by a hundredth of that."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("huge.png", "huge.webp", "huge.tif", "huge_tile.tif", "comment_bomb.png"):
        with pytest.raises(InputError):
            read_image(BAD[name][0])
    scale = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * scale < 75e6


def test_a_missing_file_a_folder_and_a_pipe(tmp_path):
    with pytest.raises(InputError, match=r"no.png: there is no such file. Check the path"):
        read_image(tmp_path / "no.png")
    with pytest.raises(InputError, match="is a folder, and one file was expected"):
        read_image(tmp_path)
    with pytest.raises(InputError, match="is a folder"):
        samples(tmp_path, name="folder")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="is a device or a pipe"):
        read_image(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="cannot be opened"):
        read_image("nul\0byte.png")
    with pytest.raises(InputError, match="cannot be opened"):
        read_image("x" * 5000)


def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(PNG)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read anything
        os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=r"secret.png: may not be read by this user \(permission denied\)"):
            read_image(path)
    finally:
        os.seteuid(user)


def test_limits_are_the_callers(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    with pytest.raises(InputError, match=r"a.png: [\d,]+ bytes, but at most 100 bytes are read"):
        read_image(path, limits=Limits(bytes=100))
    with pytest.raises(InputError, match="bytes are read"):
        samples(path, name="a.png", limits=Limits(bytes=100))
    with pytest.raises(InputError, match=r"claims 300 x 200 pixels.*at most 0.059999 million"):
        read_image(path, limits=Limits(pixels=300 * 200 - 1))
    assert read_image(path, limits=Limits(bytes=len(PNG), pixels=300 * 200)).shape == (200, 300, 3)


def test_a_later_page_is_limited_like_the_first():
    pages = [Image.new("L", (10, 10)), Image.new("L", (100, 100))]
    first, second = samples(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]), name="a.tif", limits=Limits(pixels=500))
    assert first.read().shape == (10, 10, 3)
    with pytest.raises(InputError, match="claims 100 x 100 pixels"):
        second.read()


def test_libraries_do_not_talk_on_the_terminal(capfd, recwarn):
    warnings.simplefilter("always")
    large = encoded(Image.new("1", (9500, 9500)), "PNG")  # above the size at which Pillow warns of a decompression bomb
    assert read_image(large, limits=Limits(pixels=100_000_000)).shape == (9500, 9500, 3)
    odd = bytearray(encoded(PICTURE, "TIFF", compression="tiff_lzw"))
    odd[300:400] = bytes(100)
    for content in (*(bad for bad, _ in BAD.values()), bytes(odd), JPEG[:-300] + b"\xff\xd0" + JPEG[-300:]):
        with contextlib.suppress(InputError):
            read_image(content)
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_other_peoples_warnings_are_left_alone():
    with pytest.raises(InputError):
        read_image(BAD["truncated.png"][0])
    with pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", UserWarning, stacklevel=1)


def test_one_thread_does_not_change_what_another_may_read():
    """A lenient reader in one thread must not make another accept a truncated file; nothing global is switched."""
    wrong = []

    def read(content: bytes, fits: bool) -> None:
        for _ in range(30):
            try:
                read_image(content)
                wrong.extend([] if fits else ["accepted"])
            except InputError:
                wrong.extend(["refused"] if fits else [])

    threads = [threading.Thread(target=read, args=pair) for pair in [(PNG, True), (JPEG, True), BAD_PAIR, BAD_JPEG]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


BAD_PAIR = (BAD["truncated.png"][0], False)
BAD_JPEG = (BAD["truncated.jpg"][0], False)
