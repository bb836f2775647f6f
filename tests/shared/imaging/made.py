"""Small pictures and clips, made when a test asks for them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import av
import numpy as np
from PIL import Image

__all__ = ["clip", "encoded", "flat_clip", "gradient", "png_chunks", "png_header"]


def gradient(height: int = 24, width: int = 40) -> np.ndarray:
    """uint8 [H, W, 3]: red grows to the right, green downwards, so that every turn and mirror shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([columns * 255 // (width - 1), rows * 255 // (height - 1), np.full_like(rows, 60)], axis=-1).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    return b"".join(parts)


def png_header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def clip(
    container: str = "mp4", *, codec: str = "mpeg4", count: int = 12, rotation: tuple[Any, ...] | None = None, **options: str
) -> tuple[bytes, list[np.ndarray]]:
    """A video and the frames that went into it, 96 x 64; frame k is a flat grey of 20 k with a white corner at the top left."""
    frames = []
    for index in range(count):
        frame = np.full((64, 96, 3), 20 * index % 220, dtype=np.uint8)
        frame[:16, :16] = 255
        frames.append(frame)
    return flat_clip(frames, container, codec=codec, rotation=rotation, **options), frames


def flat_clip(
    frames: list[np.ndarray], container: str, *, codec: str = "mpeg4", rotation: tuple[Any, ...] | None = None, **options: str
) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        if rotation is not None:
            stream.set_display_rotation(*rotation)
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()
