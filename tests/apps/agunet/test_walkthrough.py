"""The notebook is kept readable where it is not run: with its figures, without the volumes in them, and it says what it needs.

That it runs on a bundle is one of the promises in tests/contract.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import apps.agunet
from tests.commands import PATIENCE_S

NOTEBOOK = Path(apps.agunet.__file__).parent / "walkthrough.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_with_its_outputs_and_without_the_state_of_its_viewer(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) >= 8
    assert "widgets" not in notebook.metadata
    assert "widget-view" not in NOTEBOOK.read_text()
    assert NOTEBOOK.stat().st_size < 4_000_000
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_without_a_model_the_first_cell_says_how_to_make_one(
    notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOVEA_MODEL", str(tmp_path / "nowhere"))
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"][:1]
    with pytest.raises(CellExecutionError, match=r"nowhere: no such folder\. The first cell"):
        NotebookClient(notebook, timeout=PATIENCE_S, kernel_name="python3").execute()
