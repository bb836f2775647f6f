"""Models of the Hugging Face hub by name, or from a folder; what cannot be had is one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from shared.errors import UserError

__all__ = ["from_hub", "quiet_hub"]


def from_hub(name: str, *kinds: Any, what: str) -> list[Any]:
    """What each of transformers' classes loads by this name.

    Args:
        name: of a model on the hub, or a folder that ``save_pretrained`` wrote.
        kinds: classes with ``from_pretrained``.
        what: it should be, for the message.

    Raises:
        UserError: if it cannot be had.
    """
    if not Path(name).is_dir():
        print(f"{name}: asking the Hugging Face hub for the {what}")
    try:
        with quiet_hub():
            return [kind.from_pretrained(name) for kind in kinds]
    except (OSError, ValueError, KeyError) as error:
        reason = shorten(str(error), 200, placeholder=" ...")
        raise UserError(f"{name}: cannot be had as a {what} ({reason}). Name a folder with its files.") from error


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Without the hub's account of every time that it tries again: the error at the end says it all."""
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
