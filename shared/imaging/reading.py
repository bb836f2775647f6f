"""Reads one image, one mask, or all frames of one file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast, get_args

import numpy as np

from shared.errors import InputError
from shared.imaging.dicom import DicomFrames
from shared.imaging.formats import HEAD_BYTES, Container, Format, Raster, describe, recognise
from shared.imaging.images import Pages, count_pages
from shared.imaging.limits import Limits, check_bytes, opened
from shared.imaging.video import to_rgb, video_frames

__all__ = ["Frame", "read_image", "read_mask", "samples"]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One picture of a file."""

    id: str
    """"" for the only picture of its file, "frame_000012" (counted from 0, in display order) for one of many."""
    read: Callable[[], np.ndarray]
    """uint8 [H, W, 3] RGB; raises InputError if this picture cannot be decoded."""


def read_image(source: Path | str | bytes, *, name: str | None = None, limits: Limits = Limits()) -> np.ndarray:  # noqa: B008 (frozen)
    """The only picture of a PNG, JPEG, TIFF, WebP, BMP, GIF or DICOM file, upright.

    What it is, its content says; the file's suffix does not matter. To 8-bit RGB by these rules:

    - EXIF orientation is applied, so that height and width are those of the upright picture. Colour profiles are not applied.
    - Grey is repeated in the three channels; a palette is looked up; CMYK is converted without a profile; 1 bit becomes 0 and 255.
    - Alpha is dropped, not blended: what the camera saw is kept, whatever was masked out for display.
    - 16 bits keep their upper 8, in colour and in grey: the full range, never the range of this picture, so that the same tissue has
      the same grey in each frame. A grey picture that stays below 4096 (10- or 12-bit data in 16 bits) would come out black: refused.
    - Floating point is read if it lies within 0 to 1.
    - DICOM grey: modality LUT or rescaling, then the first VOI LUT or window (of this frame, if frames have their own), MONOCHROME1
      inverted. Without a window, stored values of up to 8 bits as they are, others from the frame's lowest to its highest.
    - DICOM colour: palette and YBR become RGB; more than 8 bits keep the upper 8. Overlays are not drawn.

    Args:
        source: a path, or the content of a file.
        name: what messages call it; the path by default.
        limits: what is refused before it is decoded.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        InputError: if there is no such file, it is not an image, it is damaged, too large, or holds several pictures (see ``samples``).
    """
    source, name = _named(source, name)
    kind, content = _content(source, name, limits)
    pictures = _pictures(kind, content, name, limits)
    if len(pictures) != 1:
        raise InputError(
            f"{name}: holds {len(pictures)} pictures, and one was expected. Read them frame by frame, or save the wanted one alone."
        )
    return pictures.rgb(0)


def read_mask(source: Path | str | bytes, *, name: str | None = None, limits: Limits = Limits()) -> np.ndarray:  # noqa: B008 (frozen)
    """A drawn mask from a PNG, JPEG, TIFF, WebP, BMP or GIF file, upright.

    True where the grey value is above the middle of its range: above 127 of 255, 32767 of 65535, 0.5 of 1. Thus the soft edges of a
    JPEG do not matter. Of a colour image, the brightest channel counts, so that red on black is a mask too; alpha is dropped.

    Two kinds of label image are understood: one with the values 0 and 1 only, and one with a coloured palette, in which everything but
    black is True. Small numbers of several classes or instances (below 16, in 16 bits below 4096) are refused rather than read as empty.

    Args and Raises as ``read_image``; a DICOM file is refused.

    Returns:
        bool [H, W].
    """
    source, name = _named(source, name)
    kind, content = _content(source, name, limits)
    if kind not in get_args(Raster):
        raise InputError(f"{name}: is a {kind} file, and a mask is expected to be a PNG, JPEG or TIFF image. Export it as PNG.")
    pages = Pages(content=content, kind=cast(Raster, kind), name=name, limits=limits)
    if len(pages) != 1:
        raise InputError(f"{name}: holds {len(pages)} pictures, and one mask was expected. Save the wanted one alone.")
    return pages.mask(0)


def samples(source: Path | bytes, *, name: str, limits: Limits = Limits()) -> Iterator[Frame]:  # noqa: B008 (frozen)
    """The pictures of one file: the pages of a TIFF (not its thumbnails), the frames of an animation, of a DICOM file or of a video.

    ``read`` may be called in any order, more than once, and in another thread than the one that iterates. A video is decoded as the
    iterator advances, once and in order; a Frame holds its decoded picture (about 3 MB at 1920 x 1080) and ``read`` turns it into RGB:
    keep the Frames that are needed, not a list of all. Videos are turned as their display matrix says, and keep their stored size where
    pixels are not square. The file is closed when the iterator is used up or dropped.

    Args:
        source: a path, or the content of a file. A single image given by path is not held in memory before ``read``.
        name: what messages call it.
        limits: what is refused before it is decoded.

    Raises:
        InputError: at once, if the source is none of these, or too large. From the iterator, after the frames before the damage, for a
            video that is cut short or damaged. From ``read``, if that picture cannot be decoded.
        UserError: for a video, if PyAV is not installed.
    """
    kind = _kind(source, name)
    if kind in get_args(Container):
        if isinstance(source, bytes):
            with opened(source, name=name) as file:
                check_bytes(file, name=name, limits=limits)
        return _started(_video(source, cast(Container, kind), name, limits))
    if kind == "DICOM" or _is_many(source, cast(Raster, kind), name, limits):
        pictures = _pictures(kind, _content(source, name, limits)[1], name, limits)
        if len(pictures) > 1:
            return (Frame(id=_id(index), read=partial(pictures.rgb, index)) for index in range(len(pictures)))
    return iter([Frame(id="", read=partial(read_image, source, name=name, limits=limits))])


def _named(source: Path | str | bytes, name: str | None) -> tuple[Path | bytes, str]:
    if isinstance(source, bytes):
        return source, name or "the image"
    return Path(source), name or str(source)


def _kind(source: Path | bytes, name: str) -> Format:
    with opened(source, name=name) as file:
        return _recognised(file, name)


def _recognised(file: BinaryIO, name: str) -> Format:
    head = _read(file, HEAD_BYTES, name)
    kind = recognise(head)
    if kind is None:
        raise InputError(f"{name}: is not an image: it holds {describe(head)}. PNG, JPEG, TIFF, WebP, BMP, GIF and DICOM files are read.")
    return kind


def _content(source: Path | bytes, name: str, limits: Limits) -> tuple[Format, bytes]:
    with opened(source, name=name) as file:
        kind = _recognised(file, name)
        if kind in get_args(Container):
            raise InputError(
                f"{name}: is a video ({kind}), and one image was expected. Read it frame by frame, or save the wanted frame as PNG."
            )
        check_bytes(file, name=name, limits=limits)
        return kind, _read(file, limits.bytes, name)


def _read(file: BinaryIO, count: int, name: str) -> bytes:
    try:
        return file.read(count)
    except OSError as error:
        raise InputError(
            f"{name}: cannot be read ({error.strerror or error}). Check the disk or the network drive, and copy it again."
        ) from error


def _is_many(source: Path | bytes, kind: Raster, name: str, limits: Limits) -> bool:
    with opened(source, name=name) as file:
        check_bytes(file, name=name, limits=limits)
        return count_pages(file, kind=kind, name=name, limits=limits) > 1


def _pictures(kind: Format, content: bytes, name: str, limits: Limits) -> Pages | DicomFrames:
    if kind == "DICOM":
        return DicomFrames(content=content, name=name, limits=limits)
    return Pages(content=content, kind=cast(Raster, kind), name=name, limits=limits)


def _video(source: Path | bytes, kind: Container, name: str, limits: Limits) -> Iterator[Frame]:
    for index, frame in enumerate(video_frames(source, kind=kind, name=name, limits=limits)):
        yield Frame(id=_id(index), read=partial(to_rgb, frame, name=name))


def _started(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Decodes the first frame now, so that a file that is no video at all is refused now."""
    return chain([next(frames)], frames)


def _id(index: int) -> str:
    return f"frame_{index:06d}"
