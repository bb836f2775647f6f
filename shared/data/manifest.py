"""Manifests: one YAML file per public data set says where it comes from, on which terms, and what it looks like once unpacked."""

from __future__ import annotations

import difflib
import hashlib
import re
import types
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from shared.errors import UserError

__all__ = ["Archive", "Layout", "Manifest", "list_manifests", "load", "names"]


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One file that the publisher offers."""

    file: str
    """Its file name, also on a mirror."""
    how: Literal["direct", "manual"]
    """direct: ``url`` answers with the file. manual: a person must click, log in or fill in a form first."""
    url: str | None
    """The file itself (direct), or the page where a person gets it (manual; the homepage if null)."""
    sha256: str | None
    """Null where the publisher names none: then the first fetch records what it got, and later ones must get the same."""
    bytes: int | None
    note: str = ""
    """For manual archives: where to click, and what to pass to --archive."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the pairs are among the unpacked files.

    Patterns are relative paths: ``*`` is any run of characters within a name, ``**`` any folders, ``{stem}`` the key that an image and
    its mask share, ``{split}`` a folder that becomes a folder of the data set. Upper and lower case are the same.
    """

    images: str
    masks: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A public data set."""

    name: str
    title: str
    modality: str
    task: str
    apps: list[str]
    homepage: str
    terms: str
    citation: str
    count: int
    """Number of image-mask pairs, or of what ``unit`` says."""
    size_mb: float | None
    """Size of the download in megabytes, where known."""
    archives: list[Archive]
    layouts: list[Layout]
    """The packings in circulation; the first that fits is used."""
    splits: dict[str, int]
    """Pairs in each folder of a layout with ``{split}``; empty for others."""
    notes: str
    path: Path
    """The file that it was read from."""
    sha256: str
    """Of that file."""
    in_place: str = ""
    """Of a set that is too large to be fetched and copied (whole slides): how a person lays it out. Such a set needs no ``layouts``."""
    unit: str = "pairs"
    """What ``count`` counts."""


def names() -> list[str]:
    """The names of all data sets that come with Fovea, in alphabetical order."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load(name: str | Path) -> Manifest:
    """The manifest of a data set.

    Args:
        name: one of ``names()``, or the path of a manifest of the caller's own, ending in ``.yaml``.

    Raises:
        UserError: if there is no such data set (names the nearest), or the file is not a valid manifest (names file and key).
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = _folder() / f"{name}.yaml"
        if not path.is_file() or str(name) not in names():
            raise UserError(f"There is no data set called {str(name)!r}.{_nearest(str(name), names())} Data sets: {', '.join(names())}.")
    try:
        content = path.read_bytes()
        values = yaml.safe_load(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys such as name, title and archives, found {_kind(values)}.")
    derived = {"path": path, "sha256": hashlib.sha256(content).hexdigest()}
    if clash := sorted(set(derived) & set(values)):
        raise UserError(f"{path}: key {clash[0]!r} is not for the file to set; remove it.")
    manifest: Manifest = _build(Manifest, values | derived, path, "")
    _check(manifest)
    return manifest


def list_manifests(app: str | None = None) -> list[Manifest]:
    """All manifests, or those for one app, by name.

    Raises:
        UserError: if one of them is not valid.
    """
    manifests = [load(name) for name in names()]
    return [manifest for manifest in manifests if app is None or app in manifest.apps]


def _folder() -> Path:
    # The wheel carries the manifests inside the package. It is asked first, because the folder called `datasets` beside an
    # installed package would be Hugging Face's.
    packaged = Path(__file__).parent / "manifests"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "datasets"


def _check(manifest: Manifest) -> None:
    def fail(key: str, message: str) -> None:
        raise UserError(f"{manifest.path}: key {key!r}: {message}")

    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", manifest.name):
        fail("name", f"{manifest.name!r} must be lower-case letters, digits, '-', '_' and '.', because it becomes a folder name.")
    if manifest.name != manifest.path.stem:
        fail("name", f"{manifest.name!r} must be the file's own name, {manifest.path.stem!r}.")
    if manifest.count < 1:
        fail("count", f"must be at least 1, found {manifest.count}.")
    if not manifest.homepage.startswith(("http://", "https://")):
        fail("homepage", f"must start with http:// or https://, found {manifest.homepage!r}.")
    for key in ("archives", "layouts"):
        if not getattr(manifest, key) and not (key == "layouts" and manifest.in_place):
            fail(key, "must have at least one entry.")
    for index, archive in enumerate(manifest.archives):
        key = f"archives[{index}]"
        if not archive.file or Path(archive.file).name != archive.file or archive.file.startswith("."):
            fail(f"{key}.file", f"must be a plain file name, found {archive.file!r}.")
        if archive.url is not None and not archive.url.startswith(("http://", "https://")):
            fail(f"{key}.url", f"must start with http:// or https://, found {archive.url!r}.")
        if archive.how == "direct" and archive.url is None:
            fail(f"{key}.url", "a direct archive needs one; use `how: manual` if a person has to fetch it.")
        if archive.how == "manual" and not archive.note:
            fail(f"{key}.note", "a manual archive needs instructions: where to click, what to pass to --archive.")
        if archive.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", archive.sha256):
            fail(f"{key}.sha256", f"must be 64 lower-case hexadecimal digits or null, found {archive.sha256!r}.")
        if archive.bytes is not None and archive.bytes < 1:
            fail(f"{key}.bytes", f"must be positive or null, found {archive.bytes}.")
    with_splits = set()
    for index, layout in enumerate(manifest.layouts):
        for key, pattern in (("images", layout.images), ("masks", layout.masks)):
            if pattern.count("{stem}") != 1:
                fail(f"layouts[{index}].{key}", f"must have {{stem}} once, found {pattern!r}.")
            with_splits.add("{split}" in pattern)
    if manifest.layouts and with_splits != {bool(manifest.splits)}:
        fail("splits", "must list the folders if, and only if, every layout pattern has {split}.")
    if manifest.splits and sum(manifest.splits.values()) != manifest.count:
        fail("splits", f"must add up to count, {manifest.count}; they add up to {sum(manifest.splits.values())}.")


def _build(cls: Any, values: dict[str, Any], path: Path, prefix: str) -> Any:
    known = {field.name: field for field in fields(cls)}
    for key in values:
        if key not in known:
            raise UserError(f"{path}: unknown key {f'{prefix}{key}'!r}.{_nearest(str(key), list(known))} Keys: {', '.join(known)}.")
    missing = [name for name, field in known.items() if name not in values and field.default is MISSING]
    if missing:
        raise UserError(f"{path}: key {f'{prefix}{missing[0]}'!r} is missing.")
    hints = get_type_hints(cls)
    return cls(**{key: _value(hints[key], value, path, f"{prefix}{key}") for key, value in values.items()})


def _value(hint: Any, value: Any, path: Path, key: str) -> Any:
    """``value`` as ``hint``, which is one of the types used by the classes above."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _value(arguments[0], value, path, key)
    if is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value, path, f"{key}.")
    if origin is list and isinstance(value, list):
        return [_value(arguments[0], item, path, f"{key}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {_value(arguments[0], k, path, key): _value(arguments[1], item, path, f"{key}.{k}") for k, item in value.items()}
    if origin is Literal:
        if value in arguments:
            return value
        raise UserError(f"{path}: key {key!r} must be one of {', '.join(arguments)}, found {value!r}.")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not isinstance(value, bool):
        return value
    expected = "a list" if origin is list else "a mapping" if origin is dict or is_dataclass(hint) else _TYPES.get(hint, str(hint))
    raise UserError(f"{path}: key {key!r} must be {expected}, found {_kind(value)}.")


_TYPES = {str: "text", int: "a whole number", float: "a number"}


def _kind(value: Any) -> str:
    return {type(None): "nothing", dict: "a mapping", list: "a list"}.get(type(value), repr(value))


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
