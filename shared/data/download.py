"""Downloads one file over HTTP: resumes where it stopped, tries again when the line drops, and keeps only what has the right checksum."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from shared.data.archives import check_space
from shared.errors import UserError
from shared.files import write_json

__all__ = ["Retry", "download", "sha256_of"]


@dataclass(frozen=True, kw_only=True)
class Retry:
    """When to give up on a server that drops the line or answers with a passing error."""

    attempts: int = 6
    """Attempts in a row that bring no new byte."""
    backoff_s: float = 1.0
    """Pause before the second attempt, in seconds; doubled before each further one, up to a minute."""
    timeout_s: float = 60.0
    """Longest silence of the server, in seconds."""


def download(url: str, target: Path, *, sha256: str | None, size: int | None, by_hand: str, retry: Retry | None = None) -> str:
    """Downloads ``url`` to ``target``, with a progress bar on standard error.

    The bytes so far are kept in ``<target>.part``, with the server's mark of the version (ETag or Last-Modified) beside it. A later call
    goes on from there if the server still has that version, and starts over if not.

    Args:
        url: http or https.
        target: the file to make; it appears only when whole.
        sha256: what the content must have, in hexadecimal; None if that is not known.
        size: bytes that it must have; None if that is not known.
        by_hand: sentence that tells a person how to do without the download; ends the messages of errors that trying again cannot mend.
        retry: when to give up.

    Returns:
        The SHA-256 of the file.

    Raises:
        UserError: if the file is not there, the server cannot be reached, the disk is full, or size or checksum are wrong.
    """
    retry = retry or Retry()
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(target.name, total=size)
        failures = 0
        while True:
            before = _size_of(part)
            try:
                _receive(
                    url,
                    part,
                    size=size,
                    timeout_s=retry.timeout_s,
                    report=lambda done, total: progress.update(task, completed=done, total=total),
                )
                break
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
                final = _final_message(url, error, by_hand)
                failures = 1 if _size_of(part) > before else failures + 1
                if final or failures >= retry.attempts:
                    kept = f" {_size_of(part):,} bytes are kept; the same command goes on from there." if _marks(part).exists() else ""
                    raise UserError((final or f"{url}: gave up after {failures} attempts in a row ({_reason(error)}).") + kept) from error
                pause_s = min(60.0, max(retry.backoff_s * 2 ** (failures - 1), _asked_pause_s(error)))
                progress.console.print(f"{target.name}: {_reason(error)}; trying again in {pause_s:.0f} s", markup=False, highlight=False)
                time.sleep(pause_s)
            except OSError as error:
                raise UserError(
                    f"{part}: cannot be written ({error.strerror or error}). Free some space or choose another --root; "
                    "the same command goes on from what is there."
                ) from error
    found = sha256_of(part)
    if sha256 is not None and found != sha256:
        part.unlink()
        _marks(part).unlink(missing_ok=True)
        raise UserError(
            f"{url}: the file has SHA-256 {found}, the manifest expects {sha256}. It was altered on the way or the publisher changed it, "
            f"and was deleted. Try again; if it happens again, ask the publisher. {by_hand}"
        )
    part.replace(target)
    _marks(part).unlink(missing_ok=True)
    return found


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Version:
    """Which file on which server a part belongs to."""

    url: str
    validator: str
    """Strong ETag, or else Last-Modified: what If-Range takes."""


class _Dropped(http.client.HTTPException):
    """The server ended the answer before its end."""


def _receive(url: str, part: Path, *, size: int | None, timeout_s: float, report: Callable[[int, int | None], None]) -> None:
    """One request: appends to ``part``, or starts it anew, until the file is whole."""
    start = _size_of(part)
    version = _read_version(part)
    if version is None or version.url != url:
        start = 0
    elif size is not None and start == size:
        return
    headers = {"User-Agent": "fovea", "Accept-Encoding": "identity"}
    if start and version:
        headers |= {"Range": f"bytes={start}-", "If-Range": version.validator}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return  # the part is the whole file: an earlier run ended between the last byte and the renaming
        part.unlink()
        raise _Dropped("the file on the server is shorter than the part that was kept") from error
    with response:
        if response.status != 206 or not _continues(response, start):
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdigit() else None
        if size is not None and total is not None and total != size:
            raise UserError(
                f"{url}: the server offers {total:,} bytes, the manifest expects {size:,}. The publisher has changed the file, or answers "
                "with something else. Look at the address in a browser, and pass the right file with --archive."
            )
        expected = total if total is not None else size
        if expected is not None:
            check_space(part.parent, expected - start, f"downloading {part.stem}")
        _write_version(part, url, response.headers)
        with open(part, "r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            done = start
            report(done, expected)
            while block := response.read1(1 << 18):
                file.write(block)
                file.flush()  # what has arrived outlives this process
                done += len(block)
                report(done, expected)
    if expected is not None and done != expected:
        raise _Dropped(f"the connection ended after {done:,} of {expected:,} bytes")


def _continues(response: Any, start: int) -> bool:
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-")


def _marks(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_version(part: Path) -> _Version | None:
    try:
        return _Version(**json.loads(_marks(part).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write_version(part: Path, url: str, headers: Any) -> None:
    etag = headers.get("ETag")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    if validator:
        write_json(_marks(part), asdict(_Version(url=url, validator=validator)))
    else:
        _marks(part).unlink(missing_ok=True)


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return "the server fell silent"
    return str(reason) or type(reason).__name__


def _asked_pause_s(error: Exception) -> float:
    asked = error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) else ""
    return float(asked) if asked.isdigit() else 0.0


def _final_message(url: str, error: Exception, by_hand: str) -> str | None:
    """What to tell a person if trying again cannot help, else None."""
    if isinstance(error, urllib.error.HTTPError):
        if error.code in (408, 425, 429, 500, 502, 503, 504):
            return None
        if error.code in (404, 410):
            return f"{url}: not there (the server answered {error.code}). The publisher may have moved it: look at the homepage. {by_hand}"
        if error.code in (401, 403):
            return f"{url}: the server refuses access ({error.code} {error.reason}). {by_hand}"
        return f"{url}: {_reason(error)}. {by_hand}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"{url}: the server's certificate cannot be verified ({reason.verify_message}), so the download was not begun. {by_hand}"
    if isinstance(reason, socket.gaierror):
        return f"{url}: the server's name is not found: is this machine connected to the network? {by_hand}"
    if isinstance(reason, ConnectionRefusedError):
        return f"{url}: the server refuses connections. Try again later, or use another server with --mirror. {by_hand}"
    return None
