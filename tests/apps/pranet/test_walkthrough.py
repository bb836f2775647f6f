"""The notebook is kept clean, says what it needs, and stays true for models and frames that lack something.

That it runs on the demo's bundle is one of the promises in tests/contract.
"""

from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import apps.pranet
from apps.pranet.config import ModelConfig
from apps.pranet.inference import PraNetPredictor, Settings
from shared.phantoms.colonoscopy import write_colonoscopy

NOTEBOOK = Path(apps.pranet.__file__).parent / "walkthrough.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_without_a_model_the_first_cell_says_how_to_make_one(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEA_MODEL", str(tmp_path / "nowhere"))
    notebook.cells = code(notebook)[:1]
    with pytest.raises(CellExecutionError, match=r"nowhere: no such folder\. Run `make demo`"):
        NotebookClient(notebook, timeout=120, kernel_name="python3").execute()


@pytest.mark.thorough
def test_a_baseline_without_attention_and_frames_without_empty_ones(notebook, tmp_path, monkeypatch):
    torch.manual_seed(0)
    settings = Settings(model=ModelConfig(name="unet", backbone="resnet18"), size=64)
    PraNetPredictor(settings.build(), settings).save_bundle(tmp_path / "model")
    write_colonoscopy(tmp_path / "frames", count=3, height=96, width=96, empty_fraction=0)
    monkeypatch.setenv("FOVEA_MODEL", str(tmp_path / "model"))
    monkeypatch.setenv("FOVEA_FRAMES", str(tmp_path / "frames"))
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    said = " ".join(
        output.data["text/markdown"] for cell in code(notebook) for output in cell.outputs if "text/markdown" in output.get("data", {})
    )
    assert "no reverse attention" in said
    assert "frames of one kind only" in said
    assert "nan" not in said
