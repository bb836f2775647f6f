"""Maps in the field's formats come back as they were, each value at its own place."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from apps.brain_encoders.space import SurfaceSpace, TableSpace, VolumeSpace, space_from_arrays
from shared.errors import UserError

SURFACE = SurfaceSpace(mesh="fsaverage5", left=np.array([0, 5, 10241]), right=np.array([7, 8]))
AFFINE = np.array([[2.0, 0, 0, -10], [0, 2, 0, 5], [0, 0, 3, 1], [0, 0, 0, 1]])


def volume() -> VolumeSpace:
    mask = np.zeros((3, 4, 5), dtype=bool)
    mask[0, 1, 2] = mask[2, 3, 4] = mask[1, 0, 0] = True
    return VolumeSpace(mask=mask, affine=AFFINE)


def test_gifti_holds_each_value_at_its_vertex_and_nan_elsewhere(tmp_path: Path) -> None:
    values = np.arange(10, dtype=float).reshape(2, 5)
    files = SURFACE.write(values, tmp_path, "a", formats=("gifti",), maps=("r", "p"))
    left, right = (nib.load(tmp_path / files[side]) for side in ("left", "right"))
    assert [array.meta["Name"] for array in left.darrays] == ["r", "p"]
    assert left.darrays[1].data[[0, 5, 10241]].tolist() == [5, 6, 7]
    assert right.darrays[0].data[[7, 8]].tolist() == [3, 4]
    assert np.isnan(left.darrays[0].data).sum() == 10239


def test_cifti_of_surfaces_knows_its_vertices(tmp_path: Path) -> None:
    files = SURFACE.write(np.arange(5.0), tmp_path, "a", formats=("cifti",))
    image = nib.load(tmp_path / files["cifti"])
    assert np.asarray(image.dataobj).tolist() == [[0, 1, 2, 3, 4]]
    structures = {name: model.vertex.tolist() for name, _, model in image.header.get_axis(1).iter_structures()}
    assert structures == {"CIFTI_STRUCTURE_CORTEX_LEFT": [0, 5, 10241], "CIFTI_STRUCTURE_CORTEX_RIGHT": [7, 8]}


def test_nifti_has_the_affine_and_each_value_at_its_voxel(tmp_path: Path) -> None:
    space = volume()
    files = space.write(np.array([1.0, 2.0, 3.0]), tmp_path, "a", formats=("nifti", "cifti"))
    image = nib.load(tmp_path / files["nifti"])
    assert np.array_equal(image.affine, AFFINE)
    assert [float(image.dataobj[int(i), int(j), int(k)]) for i, j, k in space.names()] == [1, 2, 3]
    assert np.isnan(np.asarray(image.dataobj)).sum() == 57
    assert np.asarray(nib.load(tmp_path / files["cifti"]).dataobj).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("space", [SURFACE, volume(), TableSpace(units=("left PPA", "right PPA"))], ids=["surface", "volume", "table"])
def test_a_space_comes_back_from_its_arrays(space) -> None:
    again = space_from_arrays(space.arrays(), source="here")
    assert again.names() == space.names()
    assert again.hemispheres == space.hemispheres


def test_vertices_beyond_the_mesh_are_refused() -> None:
    with pytest.raises(UserError, match="run to 10242, but fsaverage5 has 10,242"):
        SurfaceSpace(mesh="fsaverage5", left=np.array([10242]), right=np.array([0]))
