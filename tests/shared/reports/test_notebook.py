"""A volume in a notebook: a viewer where one runs, and a picture in the saved file for everyone else."""

import base64
import importlib.util
import io

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from shared.reports.notebook import show
from tests.shared.reports.test_slices import head

CELL = """
import numpy as np
from shared.imaging.volumes import Volume
from shared.reports.notebook import show
values = np.random.default_rng(0).normal(100, 20, (12, 14, 10)).astype(np.float32)
labels = np.zeros(values.shape, np.uint8)
labels[4:8, 4:8, 4:8] = 1
show(Volume(values=values, affine=np.eye(4)), labels, {1: "tumour"})
"""


def test_a_saved_notebook_holds_the_picture_beside_the_viewer():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    NotebookClient(notebook, timeout=120, kernel_name="python3", store_widget_state=False).execute()
    (output,) = [output for output in notebook.cells[0].outputs if output.output_type == "execute_result"]
    picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    assert picture.size[0] > 300
    assert ("application/vnd.jupyter.widget-view+json" in output.data) == (importlib.util.find_spec("ipyniivue") is not None)


def test_the_viewer_holds_the_values_and_the_labels_on_their_voxels():
    pytest.importorskip("ipyniivue")
    import nibabel

    volume, labels = head(), np.zeros((40, 48, 32), np.uint8)
    labels[20:24, 30:33, 10:13] = 4
    image, overlay = show(volume, labels, {1: "core", 4: "enhancing"}).widget.volumes
    sent = nibabel.Nifti1Image.from_bytes(image.data)
    assert np.allclose(sent.affine, volume.affine)
    # Sixteen bits over the range of the values.
    assert np.abs(sent.get_fdata() - volume.values).max() <= np.ptp(volume.values) / 2**16
    assert np.array_equal(nibabel.Nifti1Image.from_bytes(overlay.data).get_fdata(), labels)


def test_without_the_viewer_there_is_the_picture(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    volume = head()
    view = show(volume, np.zeros(volume.shape, np.uint8), {})
    assert view.widget is None
    assert set(view._repr_mimebundle_()) == {"image/png", "text/plain"}
