"""Promise 9: the notebook runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import PATIENCE_S

APPS_FOLDER = Path(__file__).parents[3] / "apps"


def test_the_notebook_runs(app: str, bundle: Path, unseen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the bundle and the labelled data that environment variables name."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    path = APPS_FOLDER / app / "walkthrough.ipynb"
    notebook = nbformat.read(path, as_version=4)
    monkeypatch.setenv("FOVEA_MODEL", str(bundle))
    for name in ("FOVEA_DATA", "FOVEA_FRAMES"):
        monkeypatch.setenv(name, str(unseen))
    before = {file: file.stat().st_mtime_ns for folder in (bundle, unseen) for file in folder.rglob("*")}
    nbclient.NotebookClient(notebook, timeout=PATIENCE_S, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in cells)
    assert any(output.get("data", {}).get("image/png") for cell in cells for output in cell.outputs), "no picture"
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_the_notebook_is_kept_without_paths_of_the_machine_it_was_written_on(app: str) -> None:
    text = (APPS_FOLDER / app / "walkthrough.ipynb").read_text()
    assert [word for word in ("/tmp/", "/home/", "/root/", "/Users/", str(APPS_FOLDER.parent)) if word in text] == []
