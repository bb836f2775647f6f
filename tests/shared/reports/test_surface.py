"""The 3-D view: meshes in the patient's millimetres, of the right size, small, and seen from the side that is asked for."""

import base64

import numpy as np
import pytest

from shared.imaging.volumes import Volume
from shared.reports.surface import BACKGROUND, VIEWS, render, scene, surfaces
from tests.shared.reports.test_slices import head

NAMES = {1: "core", 2: "oedema"}


def volume_ml(mesh):
    corners = mesh.vertices[mesh.faces].astype(float)
    return np.einsum("fd,fd->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6000


def ball(shape, affine, centre_mm, radius_mm):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3] - centre_mm, axis=-1) < radius_mm


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.8, 4.0)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_ball_is_where_it_is_in_the_patient_and_as_large(spacing, mirrored):
    shape = tuple(int(48 / step) for step in spacing)
    affine = np.diag([*spacing, 1.0])
    if mirrored:
        affine[0, 0] *= -1
    affine[:3, 3] = (20, -30, 5)
    centre = affine[:3, :3] @ (np.array(shape) / 2) + affine[:3, 3]
    mask = ball(shape, affine, centre, 12)
    (mesh,) = surfaces(Volume(values=np.ones(shape, np.float32), affine=affine), mask.astype(np.uint8), {1: "ball"})
    assert mesh.vertices.mean(axis=0) == pytest.approx(centre, abs=0.5)
    # Of the voxels, which is 1 % from the ball's; smoothing and 4 mm slices take a few per cent from edges.
    assert volume_ml(mesh) == pytest.approx(mask.sum() * np.prod(spacing) / 1000, rel=0.06)
    outwards = mesh.vertices - centre
    assert (np.einsum("nd,nd->n", mesh.normals, outwards) > 0).mean() > 0.99


def test_the_head_is_glass_and_what_encloses_a_core_is_seen_through():
    volume = head()
    labels = np.zeros(volume.shape, np.uint8)
    labels[14:28, 16:32, 10:22] = 2
    labels[18:24, 20:28, 13:19] = 1
    outline, oedema, core = surfaces(volume, labels, NAMES)
    assert [mesh.name for mesh in (outline, oedema, core)] == ["outline", "oedema", "core"]
    assert outline.opacity < oedema.opacity < core.opacity == 1
    # The half axes are 20, 24 and 16 mm over 1.1.
    assert np.ptp(outline.vertices, axis=0) == pytest.approx((36, 43, 29), abs=2)
    assert volume_ml(oedema) > 14 * 16 * 12 / 1000 * 0.85  # the shell has no inner side


def test_neighbours_that_do_not_enclose_one_another_are_solid_and_a_cut_out_has_no_outline():
    volume = Volume(values=np.random.default_rng(0).normal(100, 20, (30, 40, 30)).astype(np.float32), affine=np.eye(4))
    labels = np.zeros(volume.shape, np.uint8)
    labels[10:20, 5:20, 10:20], labels[10:20, 20:35, 10:20] = 1, 2
    assert [(mesh.name, mesh.opacity) for mesh in surfaces(volume, labels, NAMES)] in (
        [("core", 1), ("oedema", 1)],
        [("oedema", 1), ("core", 1)],
    )


def test_a_single_voxel_has_a_surface_and_an_empty_map_none():
    volume, labels = head(), np.zeros((40, 48, 32), np.uint8)
    assert [mesh.name for mesh in surfaces(volume, labels, NAMES)] == ["outline"]
    labels[20, 20, 16] = 1
    core = surfaces(volume, labels, NAMES)[1]
    assert 0 < volume_ml(core) < 0.001
    assert not np.isnan(core.normals).any()


def test_meshes_stay_as_small_as_asked_for():
    volume, labels = head(), np.zeros((40, 48, 32), np.uint8)
    labels[5:35, 5:43, 5:27] = 1
    meshes = surfaces(volume, labels, NAMES, most_faces=1000)
    assert all(len(mesh.faces) <= 1000 for mesh in meshes)
    with pytest.raises(ValueError, match="most_faces is 7"):
        surfaces(volume, labels, NAMES, most_faces=7)


def test_the_viewer_gets_what_the_meshes_are():
    volume, labels = head(), np.zeros((40, 48, 32), np.uint8)
    labels[24:30, 30:36, 18:22] = 1
    meshes = surfaces(volume, labels, NAMES)
    sent = scene(meshes)
    assert sent["half"] == pytest.approx([size / 43 for size in (36, 43, 29)], abs=0.04)
    for mesh, data in zip(meshes, sent["surfaces"], strict=True):
        indices = np.frombuffer(base64.b64decode(data["indices"]), "<u2").reshape(-1, 3)
        positions = np.frombuffer(base64.b64decode(data["positions"]), "<i2").reshape(-1, 3)
        assert np.array_equal(indices, mesh.faces)
        assert np.abs(positions / 32767).max() <= 1
        # A straight line from one to the other: only shifted and scaled.
        assert np.corrcoef(positions[:, 0], mesh.vertices[:, 0])[0, 1] > 0.9999
    with pytest.raises(ValueError, match="at least one mesh"):
        scene([])


def test_the_picture_shows_the_side_it_is_taken_from():
    volume, labels = head(), np.zeros((40, 48, 32), np.uint8)
    labels[25:31, 22:28, 18:23] = 1  # on the right, and above
    meshes = surfaces(volume, labels, NAMES)

    def place(azimuth, elevation):
        picture = render(meshes, azimuth=azimuth, elevation=elevation, pixels=120).astype(int)
        rows, columns = np.nonzero(picture[..., 2] - picture[..., 0] > 60)  # cyan
        return rows.mean() - 60, columns.mean() - 60

    rows, columns = place(*VIEWS["front"])
    assert columns < -5
    assert rows < -3
    rows, columns = place(180, 0)
    assert columns > 5
    rows, columns = place(*VIEWS["above"])
    assert columns < -5
    assert np.array_equal(render([], pixels=4), np.broadcast_to(np.uint8(BACKGROUND), (4, 4, 3)))
