"""What people put among their inputs by mistake, in any app; and what a run left."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from tests.contract.contract import BadInput, Content, Contract

__all__ = ["bad_inputs", "copy", "ending", "failures", "rows", "upload", "write"]


def bad_inputs(contract: Contract) -> dict[str, BadInput]:
    """The app's own, and what any app gets: under a good name nothing, a text, half a file, zeros, and a file of another kind."""
    name, first = next(iter(contract.good.items()))
    suffix, content = ending(name), first.content()
    assert isinstance(content, bytes), "the first good input is a file"
    common = {
        "bad_empty": (b"", "empty"),
        "bad_text": (b"Dear colleague, the frame is on the other disk.\n", "text"),
        "bad_truncated": (content[: len(content) // 2], ""),
        "bad_zeros": (bytes(4000), "zeros"),
        "bad_archive": (b"PK\x03\x04" + bytes(500), "ZIP"),
    }
    made = {f"{stem}{suffix}": BadInput(content=lambda data=data: data, reason=reason) for stem, (data, reason) in common.items()}
    return {**made, **contract.bad}


def ending(name: str) -> str:
    """The suffix, of which ".nii.gz" is one."""
    return name[name.index(".") :] if "." in name else ""


def write(path: Path, content: Content) -> None:
    """The file, or the folder with its files."""
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    for name, inner in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(inner)


def copy(source: Path, target: Path) -> None:
    """Of a file or a folder."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def upload(path: Path) -> tuple[str, bytes]:
    """Name and content of what a person sends to the service: the file, or the folder as a zip archive."""
    if not path.is_dir():
        return path.name, path.read_bytes()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path.rglob("*")):
            archive.write(file, file.relative_to(path))
    return f"{path.name}.zip", content.getvalue()


def failures(output: Path) -> dict[str, str]:
    """failures.csv: name of the input -> reason."""
    with open(output / "failures.csv", newline="") as file:
        return {Path(row["input"]).name: row["reason"] for row in csv.DictReader(file)}


def rows(output: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """predictions.jsonl by name of the input and sample; fails if one comes twice."""
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    found = {(Path(line["input"]).name, line["sample"]): line for line in lines}
    assert len(found) == len(lines), "a sample is recorded twice"
    return found
