"""The settings of the data verbs. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["FetchConfig", "ListConfig", "VerifyConfig"]


@dataclass(kw_only=True)
class ListConfig:
    """What `data list` shows."""

    app: str | None = None
    """Only the data sets of this app; all of them if not given."""
    root: Path = Path("data")
    """Where fetched data sets stand: the list says which are there."""


@dataclass(kw_only=True)
class FetchConfig:
    """What `data fetch` gets, and where it goes."""

    name: str
    """Name of a data set (see `data list`), or the path of a manifest of your own (.yaml)."""
    root: Path = Path("data")
    """The data set becomes the folder ROOT/NAME with images/ and masks/, or a folder for each examination of several files."""
    archive: Path | None = None
    """The archive that you downloaded yourself, or the folder that you unpacked it into; nothing is downloaded then."""
    mirror: str | None = None
    """Address of a folder on another server (http or https) that holds the archives under their own names."""


@dataclass(kw_only=True)
class VerifyConfig:
    """What `data verify` checks."""

    name: str
    """Name of a data set (see `data list`), or the path of a manifest of your own (.yaml)."""
    root: Path = Path("data")
    """Folder that the data set was fetched into."""
