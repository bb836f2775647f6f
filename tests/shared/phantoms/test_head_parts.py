"""The parts of the head phantoms: lattice, template, anatomy, scan and contrast keep what they promise."""

import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from shared.phantoms.head_anatomy import draw_anatomy
from shared.phantoms.head_contrast import BRIGHTNESS, draw_contrast
from shared.phantoms.head_grid import Grid, smooth_noise
from shared.phantoms.head_scanner import draw_scan, shading, with_noise
from shared.phantoms.head_settings import SEQUENCES, HeadSettings
from shared.phantoms.head_template import TISSUES, depth_map, head_template

ORIENTATIONS = ["".join(letters) for pairs in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*pairs)]


def rng(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


@given(seed=st.integers(0, 10_000), channels=st.sampled_from([(1, np.float32), (3, np.float32), (4, np.float32), (7, np.uint8)]))
@settings(max_examples=25, deadline=None)
def test_a_grid_is_looked_up_as_scipy_does(seed, channels):
    count, dtype = channels
    chance = np.random.default_rng(seed)
    shape = tuple(chance.integers(2, 9, 3))
    values = (100 * chance.random((*shape, count))).astype(dtype)
    grid = Grid(values=values, origin=(-3.0, 1.0, 2.0), step=1.5)
    points = (np.array(grid.origin)[:, None] + chance.uniform(-4, 1.5 * max(shape) + 4, (3, 50))).astype(np.float32)
    places = (points.astype(float) - np.array(grid.origin)[:, None]) / 1.5
    expected = [ndimage.map_coordinates(values[..., c].astype(float), places, order=1, mode="nearest") for c in range(count)]
    # Places stop a thousandth of a step before the last node: at most 0.1 of a range of 100 along each axis.
    assert np.allclose(grid.at(points), np.stack(expected, axis=1), atol=0.35)


def test_a_grid_has_its_values_at_its_nodes():
    values = rng().random((4, 5, 6, 2)).astype(np.float32)
    grid = Grid(values=values, origin=(-3.0, 1.0, 2.0), step=2.0)
    assert np.allclose(grid.at(grid.nodes()), values.reshape(-1, 2), atol=0.004)


def test_noise_has_unit_variance_and_the_grain_that_was_asked_for():
    for grain in (1.0, 4.0, 8.0):
        noise = smooth_noise(rng(), (64, 64, 64), grain)
        assert noise.shape == (64, 64, 64)
        assert noise.std() == pytest.approx(1, abs=0.25)  # few grains fit into the box at 8, and between nodes it is flatter
        far = int(3 * grain)
        assert np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1] > (0.3 if grain == 1 else 0.8)
        assert abs(np.corrcoef(noise[:-far].ravel(), noise[far:].ravel())[0, 1]) < 0.2


@pytest.mark.parametrize("step", [3, 4])
def test_no_voxel_of_the_template_holds_more_than_itself(step):
    grid = head_template(step)
    total = grid.values.sum(axis=3, dtype=int)
    assert total.max() <= 255 + len(TISSUES)  # each fraction is rounded
    assert total[0].max() == 0  # air on the left
    litres = {name: grid.values[..., index].sum() / 255 * step**3 / 1e6 for index, name in enumerate(TISSUES)}
    assert 0.4 < litres["white"] < 0.8
    assert 0.8 < litres["grey"] < 1.2
    assert 0.2 < litres["csf"] < 0.6


def test_the_template_is_the_same_at_every_step():
    fine, coarse = head_template(2), head_template(4)
    places = depth_map().nodes()[:, ::7]
    a, b = fine.at(places), coarse.at(places)
    for index, name in enumerate(TISSUES):
        if name != "blood":  # vessels are thinner than either
            assert np.corrcoef(a[:, index], b[:, index])[0, 1] > 0.8, name
        assert a[:, index].mean() == pytest.approx(b[:, index].mean(), rel=0.12), name


def test_the_dura_lies_around_the_brain():
    grid = head_template(3)
    nodes = grid.nodes()
    depth = depth_map().at(nodes)[:, 0]
    tissues = grid.values.reshape(-1, len(TISSUES))
    brain = tissues[:, TISSUES.index("white")].astype(int) + tissues[:, TISSUES.index("grey")] > 200
    assert depth[brain].min() > 0
    assert (depth[tissues[:, TISSUES.index("bone")] > 100] < 1.5).mean() > 0.97  # the rest is the orbits and the nose


@pytest.mark.parametrize("deformation", [0.0, 3.0, 6.0])
def test_no_head_is_folded(deformation):
    for seed in range(8):
        anatomy = draw_anatomy(rng(seed), deformation)
        shape = anatomy.bend.values.shape[:3]
        target = anatomy.in_template(anatomy.bend.nodes()).reshape(3, *shape).astype(float)
        slopes = np.stack([np.stack(np.gradient(axis, anatomy.bend.step)) for axis in target])
        volume = np.abs(np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1))))
        assert volume.min() > 0.05
        if not deformation:
            assert np.allclose(volume, 1, atol=5e-3)  # beside its end the lattice is looked up a thousandth of a step further in


def test_a_tumour_pushes_the_brain_aside_and_leaves_the_skull():
    anatomy = draw_anatomy(rng(1), 0.0)
    centre, radius = np.array([30, -10, 25], np.float32), 15.0
    pushed = anatomy.pushed(centre, radius, 0.8)
    towards = np.array([-1, 0, 0], np.float32)
    beside, beyond = (centre + distance * towards for distance in (18, 60))
    moved = [np.linalg.norm(pushed.in_template(p[:, None]) - anatomy.in_template(p[:, None])) for p in (beside, beyond)]
    # What is 18 mm from the centre was at the cube root of 18^3 - 0.8 * 15^3 = 14.6 mm; the lattice of 4 mm rounds the curve off.
    assert moved[0] == pytest.approx(18 - (18**3 - 0.8 * 15**3) ** (1 / 3), abs=0.8)
    assert moved[1] < 0.5
    places = anatomy.places()
    skull = places[:, np.abs(anatomy.depth(places)) < 1]
    assert np.abs(pushed.in_template(skull) - anatomy.in_template(skull)).max() < 0.5


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_each_of_the_48_orientations_is_what_it_is_called(orientation):
    brain = np.stack(np.meshgrid([-70, 70], [-105, 70], [-60, 80])).reshape(3, -1).astype(np.float32)
    wanted = HeadSettings(orientation=orientation, spacing_mm=(1.0, 2.0, 4.0))
    scan = draw_scan(rng(3), wanted, brain, np.zeros((3, 0), np.float32))
    assert nibabel.aff2axcodes(scan.affine) == tuple(orientation)
    assert scan.spacing_mm == pytest.approx((1, 2, 4))
    voxels = np.linalg.solve(scan.affine, np.concatenate([brain, np.ones((1, brain.shape[1]))]))[:3]
    assert (voxels >= 0).all()
    assert (voxels <= np.array(scan.shape)[:, None] - 1).all()
    layer = scan.points(1, 3)
    expected = scan.affine @ [2, 3, 4, 1]
    place = (1 * scan.shape[1] + 3) * scan.shape[2] + 4
    assert np.allclose(layer[:, place], expected[:3], atol=1e-3)


def test_left_to_chance_orientation_and_spacing_vary():
    brain = np.stack(np.meshgrid([-70, 70], [-105, 70], [-60, 80])).reshape(3, -1).astype(np.float32)
    scans = [draw_scan(rng(seed), HeadSettings(), brain, np.zeros((3, 0), np.float32)) for seed in range(200)]
    assert len({nibabel.aff2axcodes(scan.affine) for scan in scans}) > 40
    assert len({tuple(np.round(scan.spacing_mm, 3)) for scan in scans}) == 5
    angles = [np.abs(scan.affine[:3, :3] / scan.spacing_mm).max(axis=0).min() for scan in scans]
    assert 0.985 < min(angles) < 0.999  # cosines of up to 8 degrees


def test_shading_keeps_within_its_strength_and_is_smooth():
    points = np.stack(np.meshgrid(*[np.linspace(-90, 90, 37, dtype=np.float32)] * 3)).reshape(3, -1)
    for seed in range(10):
        field = shading(rng(seed), points, 0.3)
        assert 0.7 <= field.min() < field.max() <= 1.3
        assert max(np.abs(np.diff(field.reshape(37, 37, 37), axis=axis)).max() for axis in range(3)) < 0.06  # in 5 mm


def test_noise_raises_the_dark_and_spares_the_bright():
    dark, bright = (with_noise(rng(), np.full(100_000, level, np.float32), 1.0) for level in (0.0, 20.0))
    assert dark.mean() == pytest.approx(np.sqrt(np.pi / 2), abs=0.01)  # Rayleigh; the standard error is 0.002
    assert bright.mean() == pytest.approx(20.025, abs=0.015)  # about A + s^2 / 2A; the standard error is 0.003
    assert bright.std() == pytest.approx(1, abs=0.01)


def test_chance_never_turns_a_contrast_round():
    orders = [
        ("t1", ("csf", "grey", "white", "fat")),
        ("t2", ("bone", "white", "grey", "oedema", "csf")),
        ("flair", ("csf", "white", "grey", "oedema")),
        ("t1ce", ("csf", "grey", "white", "enhancing")),
        ("t1ce", ("necrosis", "oedema", "white", "meningioma")),
        ("t1", ("necrosis", "oedema", "white")),
        ("t2", ("white", "enhancing", "necrosis")),
    ]
    for seed in range(50):
        contrast = draw_contrast(rng(seed))
        for sequence, order in orders:
            column = SEQUENCES.index(sequence)
            values = [
                float(contrast.tissues[TISSUES.index(name), column] if name in TISSUES else contrast.parts[name][column]) for name in order
            ]
            assert values == sorted(values), (sequence, order)
    assert set(TISSUES) <= set(BRIGHTNESS)
