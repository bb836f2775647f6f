"""A volume goes to a model's grid and back without losing its place: exactly where possible, in one interpolation elsewhere."""

import nibabel
import nibabel.processing
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from shared.errors import InputError
from shared.imaging.volumes import (
    Grid,
    Volume,
    check_same_grid,
    crop,
    foreground_box,
    grid_with_axes,
    grid_with_spacing,
    pad,
    pad_to_multiple,
    read_volume,
    reorient,
    resample,
    restore_labels,
    restore_probability,
    same_grid,
)
from tests.shared.imaging.volumes.made import OBLIQUE, nifti_bytes, orientations

AFFINES = [affine for rotation in OBLIQUE.values() for _, affine in orientations(rotation)]
SIDES = st.integers(2, 9)


def smooth(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """A function of the place in the patient alone, linear, so that linear interpolation makes no error."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return (world @ [1.0, 2.0, -0.5] + 10).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    shape=st.tuples(SIDES, SIDES, SIDES),
    affine=st.sampled_from(AFFINES),
    code=st.sampled_from([c for c, _ in orientations()]),
)
def test_reorienting_is_exact_and_agrees_with_nibabel(data, shape, affine, code):
    values = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 9, shape).astype(np.int16)
    turned = reorient(Volume(values=values, affine=affine), code)
    assert turned.axes == code
    image = nibabel.Nifti1Image(values, affine)
    change = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(code))
    theirs = image.as_reoriented(change)
    np.testing.assert_array_equal(turned.values, np.asarray(theirs.dataobj))
    np.testing.assert_allclose(turned.affine, theirs.affine, atol=1e-9)
    back = resample(turned, Grid(shape=shape, affine=affine), order=0)
    np.testing.assert_array_equal(back.values, values)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=st.tuples(SIDES, SIDES, SIDES), affine=st.sampled_from(AFFINES))
def test_cropping_padding_and_reorienting_come_home_exactly(data, shape, affine):
    values = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal((2, *shape)).astype(np.float32)
    volume = read_volume(nifti_bytes(np.moveaxis(values, 0, -1), affine))
    starts = [data.draw(st.integers(0, size - 1)) for size in shape]
    box = tuple(slice(start, data.draw(st.integers(start + 1, size))) for start, size in zip(starts, shape, strict=True))
    working = pad_to_multiple(reorient(crop(volume, box)), data.draw(st.integers(1, 6)), smallest=5, fill=-1)
    assert min(working.shape) >= 5
    home = restore_probability(working, outside=(7, -7))
    np.testing.assert_array_equal(home.values[:, *box], values[:, *box])
    elsewhere = np.ones(shape, bool)
    elsewhere[box] = False
    for channel, outside in zip(home.values, (7, -7), strict=True):
        assert np.isin(channel[elsewhere], (-1, outside)).all()  # -1 where the padding reached


@pytest.mark.parametrize("order", [0, 1, 3])
def test_an_interpolation_equals_scipys(order):
    """Inside; at the border the rules differ by design. A cubic spline of ITK starts from mirrored borders, as scipy's "mirror"."""
    values = np.random.default_rng(0).standard_normal((14, 15, 16)).astype(np.float32)
    source, target = AFFINES[5], AFFINES[60].copy()
    target[:3, :3] *= 0.8
    centre = source[:3, :3] @ [6.5, 7, 7.5] + source[:3, 3]
    target[:3, 3] = centre - target[:3, :3] @ [3, 3, 2]
    volume, grid = Volume(values=values, affine=source), Grid(shape=(7, 7, 5), affine=target)
    ours = resample(volume, grid, order=order, fill=np.nan)
    matrix = np.linalg.solve(source, target)
    theirs = ndimage.affine_transform(values, matrix, output_shape=(7, 7, 5), order=order, mode="mirror", output=np.float64)
    index = volume.grid.to_index(positions(grid))
    inside = ((index >= 0) & (index <= np.array(volume.shape) - 1)).all(axis=-1)
    assert inside.sum() > 60
    np.testing.assert_allclose(ours.values[inside], theirs[inside], atol=2e-5)  # sums of 64 products of order 1 in 32 bits


@pytest.mark.parametrize("affine", AFFINES[::5])
def test_linear_functions_survive_any_change_of_grid(affine):
    volume = Volume(values=smooth((12, 9, 8), affine), affine=affine)
    grid = grid_with_spacing(grid_with_axes(volume.grid, "RAS"), (0.9, 0.7, 1.1))
    moved = resample(volume, grid, order=1, fill=np.nan)
    index = volume.grid.to_index(positions(grid))
    inside = ((index >= 0) & (index <= np.array(volume.shape) - 1)).all(axis=-1)
    np.testing.assert_allclose(moved.values[inside], smooth(grid.shape, grid.affine)[inside], atol=2e-4)  # values up to 100 in 32 bits
    home = restore_probability(moved, volume.grid)
    core = (slice(2, -2),) * 3
    np.testing.assert_allclose(home.values[core], volume.values[core], atol=4e-4)  # twice


def positions(grid: Grid) -> np.ndarray:
    return grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1))


def test_a_new_spacing_covers_the_whole_volume_around_the_same_centre():
    grid = Grid(shape=(10, 11, 12), affine=AFFINES[60])
    for spacing in (1.0, (0.3, 2, 5), grid.spacing_mm):
        new = grid_with_spacing(grid, spacing)
        np.testing.assert_allclose(new.spacing_mm, np.broadcast_to(spacing, 3))
        extent = np.array(grid.shape) * grid.spacing_mm
        assert (np.array(new.shape) * new.spacing_mm >= extent - 1e-2).all()
        assert ((np.array(new.shape) - 1) * new.spacing_mm < extent).all()
        centres = [one.to_world((np.array(one.shape) - 1) / 2) for one in (grid, new)]
        np.testing.assert_allclose(*centres, atol=1e-9)
        assert new.axes == grid.axes
    assert grid_with_spacing(grid, grid.spacing_mm).same_as(grid)


def test_the_outer_half_of_a_border_voxel_is_inside():
    """Finer voxels in it take its value; scipy and nibabel would make a dark rim there."""
    volume = Volume(values=np.full((4, 4, 4), 5, np.float32), affine=np.eye(4))
    for order in (0, 1):
        fine = resample(volume, grid_with_spacing(volume.grid, 0.5), order=order, fill=-1)
        assert fine.shape == (8, 8, 8)
        np.testing.assert_array_equal(fine.values, 5)
        beyond = resample(volume, Grid(shape=(8, 4, 4), affine=np.diag([1.001, 1, 1, 1])), order=order, fill=-1).values
        np.testing.assert_array_equal(beyond[:4], 5)
        np.testing.assert_array_equal(beyond[5:], -1)


@pytest.mark.parametrize("shift", [4.0, 4.4, -4.0, 1000.0])
def test_beside_the_volume_there_is_nothing_but_fill(shift):
    volume = Volume(values=np.ones((4, 4, 4), np.float32), affine=np.eye(4))
    moved = np.eye(4)
    moved[1, 3] = shift
    np.testing.assert_array_equal(resample(volume, Grid(shape=(4, 4, 4), affine=moved), order=0, fill=-3).values, -3)


def test_an_ellipsoid_survives_a_working_grid():
    """Agreement above 0.95 after coarser voxels, crop and return; specified for the published recipe too."""
    affine = AFFINES[60]
    grid = np.stack(np.meshgrid(*map(np.arange, (60, 40, 24)), indexing="ij"), axis=-1)
    mask = (((grid - [30, 20, 12]) / [22, 11, 7]) ** 2).sum(axis=-1) < 1
    volume = read_volume(nifti_bytes(mask.astype(np.uint8), affine))
    working = reorient(volume)
    working = crop(working, foreground_box(working.with_values(working.values > 0), margin_mm=3))
    working = resample(working, grid_with_spacing(working.grid, 1.2), order=1)
    for home in (
        restore_probability(working).values > 0.5,
        restore_labels(working.with_values((working.values > 0.5).astype(np.uint8))).values,
    ):
        dice = 2 * np.count_nonzero(mask & (home > 0)) / (np.count_nonzero(mask) + np.count_nonzero(home))
        assert dice > 0.95


def test_labels_are_never_mixed():
    volume = Volume(values=np.array([0, 7], np.uint8).repeat(32).reshape(4, 4, 4), affine=AFFINES[60])
    fine = resample(volume, grid_with_spacing(volume.grid, 0.37), order=0)
    assert fine.values.dtype == np.uint8
    assert set(np.unique(fine.values)) == {0, 7}
    for dtype in (np.bool_, np.int16, np.uint16, np.int64):
        assert resample(volume.with_values(volume.values.astype(dtype)), fine.grid, order=0).values.dtype == dtype
    with pytest.raises(ValueError, match="order 0 only, because labels have no values between them"):
        resample(volume, fine.grid, order=1)


def test_a_box_around_the_foreground():
    values = np.zeros((8, 9, 10), bool)
    values[3:5, 2, 6:9] = True
    volume = Volume(values=values, affine=np.diag([2.0, 1.0, 0.5, 1.0]), name="brain.nii")
    assert foreground_box(volume) == (slice(3, 5), slice(2, 3), slice(6, 9))
    assert foreground_box(volume, margin_mm=1) == (slice(2, 6), slice(1, 4), slice(4, 10))
    assert foreground_box(volume.with_values(np.stack([values, values * False]))) == foreground_box(volume)
    with pytest.raises(InputError, match=r"brain.nii: holds nothing but background"):
        foreground_box(volume.with_values(values & False))


def test_grids_that_are_the_same_and_grids_that_are_not():
    affine = AFFINES[60]
    one = Volume(values=np.zeros((8, 9, 10), np.float32), affine=affine, name="t1.nii")

    def other(affine: np.ndarray, shape: tuple[int, int, int] = (8, 9, 10)) -> Volume:
        return Volume(values=np.zeros(shape, np.float32), affine=affine, name="flair.nii")

    assert same_grid(one, other(affine.astype(np.float32).astype(np.float64)))
    assert same_grid(one, other(np.round(affine, 3)))  # as some programs write it
    shifted, finer, lost = affine.copy(), affine.copy(), np.eye(4)
    shifted[0, 3] += 0.3
    finer[:3, 0] *= 0.5
    far = affine.copy()
    far[2, 3] += 500
    for volume, reason in {
        other(shifted): "the same size, but corners up to 0.3 mm apart",
        other(finer): r"spacing 0.25, 1.25, 3 instead of 0.5, 1.25, 3 mm",
        other(affine, (8, 9, 11)): "8 x 9 x 11 voxels instead of 8 x 9 x 10",
        other(far): "they lie in different places, around",
        other(lost): "axes RAS instead of .*flair.nii has no orientation at all: it may have been saved without its header",
        reorient(other(affine), "LPI"): "axes LPI instead of",
    }.items():
        assert not same_grid(volume, one)
        with pytest.raises(InputError, match=f"flair.nii: is not on the grid of t1.nii .*{reason}"):
            check_same_grid(volume, one)
    check_same_grid(one, one)


def test_what_cannot_be_is_a_programming_error():
    volume = Volume(values=np.zeros((4, 5, 6), np.float32), affine=np.eye(4))
    for call, message in {
        (lambda: Volume(values=np.zeros((4, 5)), affine=np.eye(4))): r"\[X, Y, Z\] or \[C, X, Y, Z\], not \[4, 5\]",
        (lambda: Volume(values=np.zeros((4, 5, 6)), affine=np.zeros((4, 4)))): "the affine ends with the row",
        (lambda: Grid(shape=(0, 1, 1), affine=np.eye(4))): "three positive sizes",
        (lambda: volume.with_values(np.zeros((4, 5, 7)))): "do not fit the grid",
        (lambda: reorient(volume, "RAX")): "axes must be one of R or L",
        (lambda: reorient(volume, "RLS")): "axes must be one of R or L",
        (lambda: reorient(volume, "RA")): "axes must be one of R or L",
        (lambda: grid_with_spacing(volume.grid, 0)): "a spacing must be positive",
        (lambda: crop(volume, (slice(3, 3), slice(None), slice(None)))): "leaves nothing",
        (lambda: pad(volume, [(-1, 0), (0, 0), (0, 0)])): "negative",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_volumes_in_millilitres():
    for affine in AFFINES[::7]:
        assert Grid(shape=(2, 2, 2), affine=affine).voxel_ml == pytest.approx(0.5 * 1.25 * 3 / 1000)
