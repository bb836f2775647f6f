"""A guard around foreign decoders: whatever they raise becomes one InputError, and their warnings stay out of the terminal."""

from __future__ import annotations

import logging
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import InputError, UserError

__all__ = ["decoding"]

for _library in ("PIL", "libav", "pydicom"):
    # Without any handler, Python prints a library's log records to the terminal. An application's own handlers still get them.
    logging.getLogger(_library).addHandler(logging.NullHandler())


@contextmanager
def decoding(name: str, what: str) -> Iterator[None]:
    """Turns any failure inside into an InputError: "``name``: cannot be decoded as ``what`` (reason) ...".

    Never hold it across a ``yield`` of a generator that a caller drives.
    """
    _silence_this_thread()
    _here.depth = getattr(_here, "depth", 0) + 1
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise InputError(f"{name}: {what} does not fit into memory. Scale it down or cut it into tiles.") from error
    except Exception as error:
        reason = _reason(error)
        raise InputError(
            f"{name}: cannot be decoded as {what} ({reason}). It may be damaged or cut short; copy or export it again."
        ) from error
    finally:
        _here.depth -= 1


_here = threading.local()


class _WhileDecoding:
    """Stands where a warning filter has its pattern, and matches any warning raised in a thread that is decoding.

    ``warnings.catch_warnings`` would swap the filters of the whole process, which two threads of a service do to each other's harm.
    """

    def match(self, _text: str) -> bool:
        return getattr(_here, "depth", 0) > 0


_FILTER = ("ignore", _WhileDecoding(), Warning, None, 0)


def _silence_this_thread() -> None:
    if warnings.filters[:1] != [_FILTER]:  # first use, or someone has changed the filters since
        warnings.filters.insert(0, _FILTER)  # type: ignore[attr-defined]


def _reason(error: Exception) -> str:
    """The library's own words, on one line and not too long, unless they speak to its programmers."""
    if isinstance(error, (ArithmeticError, AttributeError, LookupError, TypeError, struct.error)) or "this driver" in str(error):
        return "its structure is damaged"
    words = " ".join(str(getattr(error, "strerror", None) or error).split())
    return words[:200] or type(error).__name__
