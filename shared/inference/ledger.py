"""What a run over many inputs has done: predictions.jsonl, failures.csv, and which model made them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.files import write_json, write_text

__all__ = ["Ledger"]


class Ledger:
    """The record of an output folder. Opening it again takes up what an earlier, perhaps killed, run left there.

    Args:
        folder: the output folder.
        maker: what decides the results, JSON-ready: the model and the settings. Results of another maker are not mixed in.

    Raises:
        UserError: if the folder holds results of another maker, or cannot be written.
    """

    def __init__(self, folder: Path, maker: Mapping[str, Any]) -> None:
        self.folder, self.maker = folder, json.loads(json.dumps(maker))
        self.lines = folder / "predictions.jsonl"
        self.failures: dict[str, str] = {}
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        """By input and sample: what is finished, with its files still there."""
        if (folder / "maker.json").exists():
            self._take_up()
        else:
            write_json(folder / "maker.json", self.maker)
        write_text(self.lines, "".join(json.dumps(row) + "\n" for row in self.rows.values()))
        self._write_failures()
        self.file = open(self.lines, "a")  # noqa: SIM115  (closed by close)

    def add(self, source: str, sample: str, files: Mapping[str, str], summary: Mapping[str, Any]) -> None:
        """Records a prediction whose files are written."""
        row = {"input": source, "sample": sample, "files": dict(files), **summary}
        try:
            self.file.write(json.dumps(row, allow_nan=False) + "\n")
            self.file.flush()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{self.lines}: cannot be written ({reason}). Free some space; the same command goes on.") from error
        self.rows[source, sample] = row

    def fail(self, source: str, reason: str) -> None:
        """Records an input that could not be used."""
        self.failures[source] = " ".join(reason.split())
        self._write_failures()

    def close(self) -> None:
        """Call when nothing more will be added."""
        self.file.close()

    def _take_up(self) -> None:
        try:
            earlier = json.loads((self.folder / "maker.json").read_text())
        except ValueError:
            earlier = None
        if earlier != self.maker:
            raise UserError(f"{self.folder}: holds results of another model or other settings. Name another folder.")
        for row in _read(self.lines):
            if all((self.folder / name).is_file() for name in row["files"].values()):
                self.rows[row["input"], row["sample"]] = row

    def _write_failures(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["input", "reason"])
        writer.writerows(self.failures.items())
        write_text(self.folder / "failures.csv", text.getvalue())


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines; the last one may be cut off where a run was killed."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
