"""Videos through PyAV (FFmpeg), decoded once from the first frame to the last. PyAV is imported when the first one is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from shared.errors import InputError, UserError
from shared.imaging.containers import announced_bytes
from shared.imaging.decoding import decoding
from shared.imaging.formats import Container
from shared.imaging.limits import Limits, check_pixels, opened

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

__all__ = ["to_rgb", "video_frames"]

_DEMUXERS = {"AVI": "avi", "Matroska": "matroska", "MP4": "mov"}
"""Named to FFmpeg, because its own guess may be a playlist, which opens other files."""


def video_frames(source: Path | bytes, *, kind: Container, name: str, limits: Limits) -> Iterator[VideoFrame]:
    """Every frame of the first video stream, in display order, still in the video's own colour format.

    Raises:
        InputError: if a frame cannot be decoded or the file is cut short, after the frames that come before.
        UserError: if PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(f"{name}: videos are read with PyAV, which is not installed. Install it: pip install av") from error

    with opened(source, name=name) as file:
        actual, announced = _sizes(file, kind, name)
        with decoding(name, f"{kind} video"):
            container = av.open(file, mode="r", format=_DEMUXERS[kind], metadata_errors="replace")
        count = 0
        with closing(container):
            stream = _frames(container, name, limits)
            while True:
                try:
                    with decoding(name, f"{kind} video"):
                        frame = next(stream, None)
                except InputError as error:
                    raise InputError(f"{error} Frames read before that: {count}." if count else str(error)) from error
                if frame is None:
                    break
                yield frame
                count += 1
        if actual < announced:
            raise InputError(f"{name}: is cut short: {actual:,} of {announced:,} bytes are there. Frames read: {count}. Copy it again.")
        if not count:
            raise InputError(f"{name}: is a video without a single frame. Export it again.")


def to_rgb(frame: VideoFrame, *, name: str) -> np.ndarray:
    """uint8 [H, W, 3], turned and mirrored as the video's display matrix says. May be called from any thread."""
    with decoding(name, "a video frame"):
        return np.ascontiguousarray(_upright(frame.to_ndarray(format="rgb24"), frame))


def _sizes(file: BinaryIO, kind: Container, name: str) -> tuple[int, int]:
    with decoding(name, f"{kind} video"):
        announced = announced_bytes(file, kind)
        actual = file.seek(0, 2)
        file.seek(0)
        return actual, announced


def _frames(container: InputContainer, name: str, limits: Limits) -> Iterator[VideoFrame]:
    if not container.streams.video:
        raise InputError(f"{name}: has no pictures, only sound or data. Choose a video.")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    check_pixels(stream.width, stream.height, name=name, limits=limits)
    try:
        for packet in container.demux(stream):
            yield from _sound(packet.decode(), name, limits)
    except InputError:
        raise
    except Exception:
        remaining: list[VideoFrame] = []
        with suppress(Exception):
            remaining = stream.codec_context.decode(None)  # frames that were still in the decoder's hands
        yield from _sound(remaining, name, limits)
        raise


def _sound(frames: list[VideoFrame], name: str, limits: Limits) -> Iterator[VideoFrame]:
    for frame in frames:
        if frame.is_corrupt:
            raise InputError(f"{name}: a frame is damaged. Copy or export the video again.")
        check_pixels(frame.width, frame.height, name=name, limits=limits)
        yield frame


def _upright(pixels: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Applies the display matrix [a b; c d]: a pixel at (x, y) is shown at (a x + c y, b x + d y); quarter turns and mirrors only."""
    display_matrix = frame.side_data.get("DISPLAYMATRIX")
    if display_matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(display_matrix, dtype="=i4", count=5).tolist()  # type: ignore[call-overload]
    turned = abs(b) > abs(a)
    if turned:
        pixels = pixels.transpose(1, 0, 2)
        a, d = c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
