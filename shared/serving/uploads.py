"""Reads the files of a multipart request into memory: limited while they arrive, never written to disk."""

from __future__ import annotations

import io
import os
import re
import warnings
import zipfile
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import PIL.Image
from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

__all__ = ["FIELD", "Upload", "joined", "pixels", "read_uploads"]

FIELD = "files"
"""Name of the form field that holds the files, one or several times."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One uploaded file."""

    name: str
    """As the client called it: shown back to that client, never logged."""
    content: bytes


async def read_uploads(request: Request, *, max_bytes: int, max_files: int) -> list[Upload]:
    """The files of the request, in its order.

    Raises:
        HTTPException: 415 if it is no multipart form, 413 if there are too many bytes or files, 400 if it is malformed or holds no file.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise HTTPException(415, f"Send the files as multipart/form-data, in the field {FIELD!r}.")
    too_large = HTTPException(
        413, f"The upload is larger than {max_bytes / 1e6:g} MB, the limit for one request. Send fewer or smaller files."
    )
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large

    async def limited() -> AsyncGenerator[bytes, None]:
        received = 0
        async for chunk in request.stream():
            received += len(chunk)
            if received > max_bytes:
                raise too_large
            yield chunk

    parser = MultiPartParser(request.headers, limited(), max_files=max_files, max_fields=8)
    parser.spool_max_size = max_bytes + 1  # above what can arrive: Starlette's default would put files over 1 MB on the disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise HTTPException(413, f"More than {max_files} files, the limit for one request. Send them in several requests.") from error
        raise HTTPException(400, f"The multipart form cannot be read: {error.message.rstrip('.')}.") from error
    try:
        if strange := sorted({name for name, value in form.multi_items() if name != FIELD or not isinstance(value, UploadFile)}):
            raise HTTPException(400, f"Send files only, in the field {FIELD!r}; found {strange[0][:40]!r}, or a field without a file name.")
        uploads = [
            Upload(name=value.filename, content=await value.read())
            for _, value in form.multi_items()
            if isinstance(value, UploadFile) and value.filename
        ]
    finally:
        await form.close()
    if not uploads:
        raise HTTPException(400, f"Nothing was uploaded. Send one or several files in the field {FIELD!r}.")
    return uploads


def joined(uploads: Sequence[Upload]) -> Upload:
    """Several files as one zip archive, called what their names have in common."""
    bases = [PurePosixPath(upload.name.replace("\\", "/")).name or "file" for upload in uploads]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:  # stored: it is unpacked at once
        for number, (base, upload) in enumerate(zip(bases, uploads, strict=True)):
            # Slices of different folders may have one name.
            archive.writestr(base if bases.count(base) == 1 else f"{number}/{base}", upload.content)
    # Whole words only: of p7_t1 and p7_t2 they share p7.
    shared = os.path.commonprefix([f"{base.partition('.')[0]}." for base in bases])  # noqa: RUF071 (no paths)
    return Upload(name=f"{re.sub(r'[^-_. ]*$', '', shared).rstrip('-_. ') or 'upload'}.zip", content=content.getvalue())


def pixels(content: bytes) -> int | None:
    """Width times height by the header of a picture, undecoded; None if it is not a picture format that announces its size."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(io.BytesIO(content)) as image:
                return image.width * image.height
    except PIL.Image.DecompressionBombError:
        return 2 * (PIL.Image.MAX_IMAGE_PIXELS or 0) + 1
    except Exception:  # Pillow's plugins raise many types on foreign bytes; the predictor says what is wrong with them
        return None
