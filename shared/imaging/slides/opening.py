"""Opens a slide with the reader that reads most of it, and says in one line why a file cannot be opened."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from shared.errors import InputError, UserError
from shared.imaging.formats import HEAD_BYTES, describe, recognise
from shared.imaging.limits import opened
from shared.imaging.slides.dicom_series import is_dicom, read_instance, series_of, slides_among
from shared.imaging.slides.slide import Pyramid, Slide

__all__ = ["open_slide"]

logging.getLogger("tifffile").addHandler(logging.NullHandler())
logging.getLogger("wsidicom").addHandler(logging.NullHandler())


def open_slide(path: Path | str, *, mpp: float | None = None) -> Slide:
    """A whole slide of any format that OpenSlide, tifffile or wsidicom reads.

    OpenSlide comes first. OME-TIFF with its levels in SubIFDs, of which OpenSlide sees one, and TIFF that it refuses go to tifffile;
    DICOM whose compression it refuses goes to wsidicom; PNG, JPEG and other pictures are slides with one level.

    Args:
        path: a file; for DICOM any level of the series, or a folder with one series; for MIRAX the .mrxs file.
        mpp: micrometres per level-0 pixel, for a file that states none, or a wrong one.

    Raises:
        InputError: if there is no such file, or it is no slide, or damaged; names it and says what to do.
        UserError: if ``mpp`` cannot be a level-0 pixel's.
    """
    path = Path(path)
    if path.is_dir():
        file = _in_folder(path)
        slide = open_slide(file, mpp=mpp)
        slide.path = path
        return slide
    with opened(path, name=str(path)) as content:
        head = content.read(HEAD_BYTES)
    kind = recognise(head)
    if kind == "DICOM":
        return Slide(path, opened=_open_dicom(path), mpp=mpp)
    return Slide(path, opened=_open(path, head), mpp=mpp)


Opened = tuple[Pyramid, Callable[[], Pyramid]]
"""An open file, and what opens it again."""


def _open(path: Path, head: bytes) -> Opened:
    """A file that is not DICOM."""
    import openslide

    from shared.imaging.slides.openslide_pyramid import OpenSlidePyramid
    from shared.imaging.slides.tiff_pyramid import TiffPyramid, has_subresolutions

    kind = recognise(head)
    if kind == "TIFF" and has_subresolutions(path):
        return _twice(partial(TiffPyramid, path))
    if openslide.OpenSlide.detect_format(path) is not None:
        try:
            return _twice(partial(OpenSlidePyramid, path))
        except openslide.OpenSlideError as error:
            raise InputError(
                f"{path}: cannot be opened ({_words(error)}). It is damaged or of a kind that is not read; export it again."
            ) from error
    if kind == "TIFF":
        return _open_tiff(path)
    if kind in ("PNG", "JPEG", "BMP", "WebP"):
        from shared.imaging.slides.picture_pyramid import PicturePyramid

        return _twice(partial(PicturePyramid, path))
    raise InputError(
        f"{path}: is not a whole slide: it holds {describe(head) if kind is None else kind}. "
        "SVS, NDPI, SCN, MRXS, BIF, CZI, (OME-)TIFF and DICOM are read."
    )


def _open_tiff(path: Path) -> Opened:
    from shared.imaging.slides.tiff_pyramid import TiffPyramid

    try:
        return _twice(partial(TiffPyramid, path))
    except UserError:
        raise
    except Exception as error:
        raise InputError(
            f"{path}: cannot be opened as a TIFF ({_words(error)}). It is damaged or cut short (a failed download?); copy it again."
        ) from error


def _open_dicom(path: Path) -> Opened:
    import openslide

    from shared.imaging.slides.dicom_pyramid import DicomPyramid
    from shared.imaging.slides.openslide_pyramid import OpenSlidePyramid

    instance = read_instance(path)
    if not instance.slide:
        raise InputError(f"{path}: is a DICOM file of another kind ({instance.kind}), and a whole slide was expected.")
    if instance.role in ("LABEL", "OVERVIEW", "THUMBNAIL"):
        raise InputError(
            f"{path}: is the {instance.role.lower()} of a DICOM slide. Name one of its levels (image type VOLUME), or its folder."
        )
    try:
        return _twice(partial(OpenSlidePyramid, path))
    except openslide.OpenSlideError as refused:
        files = series_of(instance)
        try:
            return _twice(partial(DicomPyramid, files))
        except Exception as error:
            raise InputError(
                f"{path}: cannot be opened as a DICOM slide (OpenSlide: {_words(refused)}; wsidicom: {_words(error)}). It is incomplete or "
                "damaged; export it again."
            ) from error


def _twice(opener: Callable[[], Pyramid]) -> Opened:
    return opener(), opener


def _in_folder(folder: Path) -> Path:
    files = sorted(path for path in folder.iterdir() if path.is_file() and is_dicom(path))
    slides = sorted(slides_among(files))
    if len(slides) != 1:
        raise InputError(
            f"{folder}: is a folder with {len(slides)} DICOM slides, and one was expected. Name a file, or a folder with one series."
        )
    return slides[0]


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__
