"""Lesions: solids of known size are measured right on any grid, and as other libraries measure them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation
from skimage import measure

from shared.metrics.diameters import slice_diameters
from shared.metrics.lesions import Lesion, connected_components, find_lesions, remove_small_lesions
from tests.shared.metrics.solids import OBLIQUE, ball, box, ellipsoid, grid

GRIDS = [
    pytest.param((1.0, 1.0, 1.0), None, id="1 mm"),
    pytest.param((0.5, 0.5, 1.2), None, id="thicker slices"),
    pytest.param((1.1, 0.6, 0.8), OBLIQUE, id="oblique"),
    pytest.param((0.8, 0.8, 0.8), np.diag([-1.0, -1.0, 1.0]), id="LPS"),
]
SMALL_MASKS = hnp.arrays(bool, st.tuples(*[st.integers(1, 6)] * 3))


def only(labels: np.ndarray, affine: np.ndarray, **options) -> Lesion:
    (lesion,) = find_lesions(labels, affine, **options).lesions
    return lesion


def blobs(seed: int, shape: tuple[int, int, int] = (30, 26, 22), sigma: float = 2) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return field > 1.5 * field.std()


@pytest.mark.parametrize(("spacing", "rotation"), GRIDS)
def test_a_ball_has_its_volume_place_and_diameter(spacing: tuple[float, ...], rotation: np.ndarray | None) -> None:
    shape, centre, radius = (90, 90, 70), (12.3, -40.7, 8.1), 14.3
    affine = grid(spacing, shape, rotation=rotation, centre=(10, -38, 9))
    lesion = only(ball(affine, shape, radius, centre), affine)
    # Voxels counted in too much and too little along the surface almost cancel: of some 10,000 voxels, 1 % is left at most.
    assert lesion.volume_ml == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.01)
    assert lesion.centroid_mm == pytest.approx(centre, abs=0.05)
    # Each end of a line is within half a voxel of the true surface.
    assert lesion.diameter.length_mm == pytest.approx(2 * radius, abs=max(spacing))
    assert lesion.axial.longest.length_mm == pytest.approx(2 * radius, abs=max(spacing))
    assert lesion.axial.perpendicular.length_mm == pytest.approx(2 * radius, abs=max(spacing))


@pytest.mark.parametrize(("spacing", "rotation"), GRIDS)
def test_an_ellipsoid_is_as_long_as_its_long_axis_and_points_along_it(spacing: tuple[float, ...], rotation: np.ndarray | None) -> None:
    shape, tilt = (90, 110, 80), Rotation.from_euler("zyx", (30, 20, 10), degrees=True).as_matrix()
    affine = grid(spacing, shape, rotation=rotation)
    lesion = only(ellipsoid(affine, shape, semiaxes=(16, 9, 6), rotation=tilt), affine)
    assert lesion.volume_ml == pytest.approx(4 / 3 * np.pi * 16 * 9 * 6 / 1000, rel=0.01)
    assert lesion.diameter.length_mm == pytest.approx(32, abs=max(spacing))
    line = np.subtract(lesion.diameter.end_mm, lesion.diameter.start_mm)
    assert np.linalg.norm(line) == pytest.approx(lesion.diameter.length_mm)
    # One voxel sideways at the end of the long half axis is arctan(1.2 / 16), 4 degrees; the flat end leaves twice that.
    assert np.degrees(np.arccos(abs(line @ tilt[:, 0]) / np.linalg.norm(line))) < 8


def test_axial_diameters_of_an_ellipsoid_that_lies_in_the_slices() -> None:
    shape, spacing = (90, 90, 30), (0.7, 0.7, 2.0)
    affine = grid(spacing, shape)
    turn = Rotation.from_euler("z", 33, degrees=True).as_matrix()
    axial = only(ellipsoid(affine, shape, semiaxes=(20, 11, 9), centre=(0, 0, 1), rotation=turn), affine).axial
    assert axial.longest.length_mm == pytest.approx(40, abs=0.7)
    assert axial.perpendicular.length_mm == pytest.approx(22, abs=0.7)
    assert axial.product_mm2 == axial.longest.length_mm * axial.perpendicular.length_mm
    assert axial.axis == 2
    assert axial.slice_index == 15  # the middle of the grid, between slices 14 and 15, is at 0 mm, and slice 15 at 1 mm
    assert axial.longest.start_mm[2] == axial.perpendicular.end_mm[2] == pytest.approx(1)


def test_a_rotated_box_is_as_long_as_its_diagonal() -> None:
    shape = (110, 110, 90)
    affine = grid((0.5, 0.5, 0.5), shape, rotation=OBLIQUE)
    turn = Rotation.from_euler("zyx", (25, 40, 15), degrees=True).as_matrix()
    lesion = only(box(affine, shape, sides=(30, 20, 12), rotation=turn), affine)
    assert lesion.volume_ml == pytest.approx(7.2, rel=0.01)
    # Of a sharp corner, no voxel's centre need be nearer than a voxel's diagonal, 0.87 mm.
    assert 0 <= np.hypot(np.hypot(30, 20), 12) - lesion.diameter.length_mm < 2 * 0.87


def test_the_perpendicular_of_a_rectangle_runs_between_its_long_sides() -> None:
    # Through a rectangle of 30 x 20, at right angles to the diagonal: 20 * sqrt(30^2 + 20^2) / 30.
    shape = (180, 180, 3)
    affine = grid((0.25, 0.25, 1.0), shape)
    turn = Rotation.from_euler("z", 25, degrees=True).as_matrix()
    axial = only(box(affine, shape, sides=(30, 20, 3), rotation=turn), affine).axial
    assert axial.longest.length_mm == pytest.approx(np.hypot(30, 20), abs=0.5)
    assert axial.perpendicular.length_mm == pytest.approx(20 * np.hypot(30, 20) / 30, abs=0.5)


def test_a_single_voxel_is_as_long_as_its_longest_edge() -> None:
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[0, 4, 2] = 3
    lesion = only(labels, np.diag([2.0, 3.0, 5.0, 1.0]))
    assert lesion.volume_ml == pytest.approx(0.03)
    assert lesion.diameter.length_mm == 5
    assert lesion.diameter.start_mm == (0, 12, 7.5)
    assert (lesion.axial.longest.length_mm, lesion.axial.perpendicular.length_mm) == (3, 2)
    assert lesion.centroid_mm == (0, 12, 10)
    assert lesion.box == (slice(0, 1), slice(4, 5), slice(2, 3))


@pytest.mark.parametrize("seed", range(3))
def test_diameters_are_those_between_the_vertices_of_marching_cubes_and_contours(seed: int) -> None:
    spacing = (0.9, 1.3, 2.1)
    found = find_lesions(blobs(seed), np.diag([*spacing, 1.0]), neighbours=6)
    assert len(found.lesions) > 3
    for lesion in found.lesions:
        mask = np.pad(found.numbers == lesion.number, 1).astype(float)
        vertices = measure.marching_cubes(mask, 0.5, spacing=spacing)[0].astype(np.float64)
        # marching_cubes keeps its vertices in single precision.
        assert lesion.diameter.length_mm == pytest.approx(pdist(vertices).max(), rel=1e-6)
        contours = [contour for image in np.moveaxis(mask, 2, 0) for contour in measure.find_contours(image, 0.5, fully_connected="low")]
        longest = max(pdist(contour * spacing[:2]).max() for contour in contours)
        assert lesion.axial.longest.length_mm == pytest.approx(longest)


@pytest.mark.parametrize("seed", range(3))
def test_counts_places_and_boxes_are_those_of_scikit_image(seed: int) -> None:
    mask, affine = blobs(seed), grid((0.9, 1.3, 2.1), (30, 26, 22), rotation=OBLIQUE, centre=(5, 6, 7))
    for neighbours, connectivity in ((6, 1), (18, 2), (26, 3)):
        found = find_lesions(mask, affine, neighbours=neighbours)
        theirs = sorted(measure.regionprops(measure.label(mask, connectivity=connectivity)), key=lambda region: -region.area)
        assert len(found.lesions) == len(theirs)
        assert [lesion.voxels for lesion in found.lesions] == [region.area for region in theirs]
        for region in measure.regionprops(found.numbers):
            lesion = found.lesions[region.label - 1]
            assert lesion.centroid_mm == pytest.approx(affine[:3, :3] @ region.centroid + affine[:3, 3])
            assert lesion.box == region.slice
        assert found.volume_ml == pytest.approx(mask.sum() * 0.9 * 1.3 * 2.1 / 1000)


def test_what_connects_is_the_callers_choice() -> None:
    corner_to_corner, edge_to_edge = np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool)
    corner_to_corner[0, 0, 0] = corner_to_corner[1, 1, 1] = True
    edge_to_edge[0, 0, 0] = edge_to_edge[0, 1, 1] = True
    counts = {
        neighbours: [len(find_lesions(mask, np.eye(4), neighbours=neighbours).lesions) for mask in (corner_to_corner, edge_to_edge)]
        for neighbours in (6, 18, 26)
    }
    assert counts == {6: [2, 2], 18: [2, 1], 26: [1, 1]}


def test_lesions_come_largest_first_with_the_volume_of_each_of_their_parts() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[1:3, 1:3, 1:3] = 4
    labels[8:14, 8:14, 8:14] = 2
    labels[10:12, 10:12, 10:12] = 4
    labels[0, 0, 19] = 1
    found = find_lesions(labels, np.diag([1.0, 1.0, 2.0, 1.0]))
    assert [lesion.number for lesion in found.lesions] == [1, 2, 3]
    assert [lesion.volume_ml for lesion in found.lesions] == pytest.approx([0.432, 0.016, 0.002])
    assert found.lesions[0].parts_ml == pytest.approx({2: 0.416, 4: 0.016})
    assert found.lesions[1].parts_ml == pytest.approx({4: 0.016})
    assert found.numbers[10, 10, 10] == 1
    assert found.lesions[0].row()["volume_ml"] == pytest.approx(0.432)
    assert list(found.lesions[0].row()) == [
        "lesion",
        "volume_ml",
        "diameter_mm",
        "axial_diameter_mm",
        "axial_perpendicular_mm",
        "axial_slice",
        "x_mm",
        "y_mm",
        "z_mm",
    ]


def test_small_lesions_are_left_out_and_the_limit_itself_is_not_small() -> None:
    labels = np.zeros((12, 12, 12), np.int16)
    labels[:3, 0, 0], labels[5:9, 5, 5], labels[11, 11, 11] = 7, 8, 9
    affine = np.diag([1.0, 10.0, 10.0, 1.0])  # 0.1 ml: three of them add up to 0.30000000000000004
    assert [lesion.voxels for lesion in find_lesions(labels, affine, minimum_ml=0.3).lesions] == [4, 3]
    assert [lesion.voxels for lesion in find_lesions(labels, affine, minimum_ml=0.31).lesions] == [4]
    kept = remove_small_lesions(labels, affine, minimum_ml=0.3)
    assert kept.dtype == np.int16
    np.testing.assert_array_equal(kept, np.where(labels == 9, 0, labels))
    np.testing.assert_array_equal(remove_small_lesions(labels, affine, minimum_ml=0), labels)


def test_axial_means_across_the_patients_length_however_the_array_is_ordered() -> None:
    shape = (40, 40, 40)
    affine = grid((1, 1, 1), shape)
    lying = ellipsoid(affine, shape, semiaxes=(5, 8, 15))
    assert only(lying, affine).axial.longest.length_mm == pytest.approx(16, abs=1)
    turned = np.moveaxis(lying, 2, 0)
    first = only(turned, affine[:, [2, 0, 1, 3]]).axial
    assert first.axis == 0
    assert first.longest.length_mm == only(lying, affine).axial.longest.length_mm
    assert only(lying, affine, axis=1).axial.longest.length_mm == pytest.approx(30, abs=1)


def test_parts_that_are_separate_in_a_slice_are_measured_on_their_own() -> None:
    # Two legs of 3 x 3 that join two slices up: no slice but that one is longer than a leg.
    mask = np.zeros((20, 5, 4), bool)
    mask[1:4, 1:4, :3] = mask[16:19, 1:4, :3] = True
    mask[1:19, 2, 3] = True
    axial = only(mask, np.eye(4)).axial
    assert (axial.slice_index, axial.longest.length_mm, axial.perpendicular.length_mm) == (3, 18, 1)
    legs = only(mask, np.eye(4), axis=1).axial
    assert legs.longest.length_mm > 18
    assert slice_diameters(mask[..., :3], np.eye(4), axis=2).longest.length_mm < 4


@given(SMALL_MASKS.filter(np.any), st.integers(0, 2))
@settings(deadline=None)
def test_the_two_axial_diameters_are_at_right_angles_and_the_longest_there_are(mask: np.ndarray, axis: int) -> None:
    affine = grid((0.9, 1.4, 2.2), mask.shape, rotation=OBLIQUE)
    affine[:3, 1] += 0.3 * affine[:3, 0]  # sheared, as some tilted scans are
    axial = slice_diameters(mask, affine, axis=axis)
    longest, across = (np.subtract(line.end_mm, line.start_mm) for line in (axial.longest, axial.perpendicular))
    assert longest @ across == pytest.approx(0, abs=1e-9)
    assert 0 < np.linalg.norm(across) <= np.linalg.norm(longest) * (1 + 1e-12)
    inside = [index for index in range(3) if index != axis]
    plane, to_plane = np.linalg.qr(affine[:3, inside])
    images = np.moveaxis(mask, axis, 0)
    labels, count = ndimage.label(images[axial.slice_index], np.ones((3, 3)))
    ends = (np.stack([axial.longest.start_mm, axial.longest.end_mm]) - affine[:3, 3] - axial.slice_index * affine[:3, axis]) @ plane
    chords = []
    for number in range(1, count + 1):
        centres = np.argwhere(labels == number)
        points = np.concatenate([centres + step for step in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))]) @ to_plane.T
        assert pdist(points).max() <= axial.longest.length_mm + 1e-9
        if np.abs(points[:, None] - ends).sum(axis=-1).min(axis=0).max() < 1e-9:
            chords.append(longest_chord(points, np.array([-1, 1]) * np.diff(ends, axis=0)[0, ::-1]))
    assert axial.perpendicular.length_mm in [pytest.approx(chord) for chord in chords]


def longest_chord(points: np.ndarray, direction: np.ndarray) -> float:
    """Of the convex hull, along a direction: lines through every corner, cut by the half planes of the hull."""
    hull = ConvexHull(points)
    direction = direction / np.linalg.norm(direction)
    normals, offsets = hull.equations[:, :2], hull.equations[:, 2]
    rates = normals @ direction
    best = 0.0
    for point in points[hull.vertices]:
        room = -(normals @ point + offsets)
        crossing = np.abs(rates) > 1e-12
        ahead = np.where(crossing & (rates > 0), room / np.where(crossing, rates, 1), np.inf).min()
        behind = np.where(crossing & (rates < 0), room / np.where(crossing, rates, 1), -np.inf).max()
        best = max(best, ahead - behind)
    return best


@given(SMALL_MASKS)
@settings(deadline=None)
def test_components_are_scipys_sorted_by_size(mask: np.ndarray) -> None:
    for neighbours, connectivity in ((6, 1), (18, 2), (26, 3)):
        numbers, sizes = connected_components(mask, neighbours=neighbours)
        theirs, count = ndimage.label(mask, ndimage.generate_binary_structure(3, connectivity))
        assert len(sizes) == count
        assert len(set(zip(numbers.ravel().tolist(), theirs.ravel().tolist(), strict=True))) == len(np.unique(theirs))
        assert sizes.tolist() == sorted(np.bincount(numbers.ravel())[1:].tolist(), reverse=True)


@given(SMALL_MASKS, st.permutations([1, 2, 3]), st.randoms())
@settings(deadline=None)
def test_measures_do_not_depend_on_what_labels_are_called(mask: np.ndarray, names: list[int], random) -> None:
    labels = np.where(mask, [[[random.randint(1, 3) for _ in row] for row in plane] for plane in mask.tolist()], 0)
    renamed = np.array([0, *names])[labels]
    first, second = (find_lesions(values, np.eye(4)) for values in (labels, renamed))
    np.testing.assert_array_equal(first.numbers, second.numbers)
    for one, other in zip(first.lesions, second.lesions, strict=True):
        assert one.row() == other.row()
        assert {names[value - 1]: volume for value, volume in one.parts_ml.items()} == other.parts_ml
        assert sum(one.parts_ml.values()) == pytest.approx(one.volume_ml)


@given(SMALL_MASKS, st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 3))
@settings(deadline=None)
def test_measures_do_not_depend_on_the_field_of_view(mask: np.ndarray, margins) -> None:
    affine = grid((0.9, 1.3, 2.1), mask.shape, rotation=OBLIQUE)
    wider = affine.copy()
    wider[:3, 3] -= affine[:3, :3] @ [before for before, _ in margins]
    first, second = find_lesions(mask, affine), find_lesions(np.pad(mask, margins), wider)
    for one, other in zip(first.lesions, second.lesions, strict=True):
        assert {**one.row(), "axial_slice": 0} == pytest.approx({**other.row(), "axial_slice": 0}, abs=1e-9)


@given(SMALL_MASKS.filter(np.any), st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
@settings(deadline=None)
def test_measures_do_not_depend_on_the_order_and_direction_of_the_axes(mask: np.ndarray, order: list[int], flips) -> None:
    affine = grid((0.9, 1.3, 2.1), mask.shape)
    turn = np.eye(4)[:, [*order, 3]]
    flipped = [axis for axis in range(3) if flips[axis]]
    for axis in flipped:
        turn[:, axis] *= -1
        turn[:3, 3] += np.eye(3)[order[axis]] * (mask.shape[order[axis]] - 1)
    turned = np.flip(mask.transpose(order), flipped)
    first, second = find_lesions(mask, affine), find_lesions(turned, affine @ turn)
    both = [
        sorted(found.lesions, key=lambda lesion: (lesion.voxels, np.round(lesion.centroid_mm, 6).tolist())) for found in (first, second)
    ]
    for one, other in zip(*both, strict=True):
        assert one.volume_ml == pytest.approx(other.volume_ml)
        assert one.centroid_mm == pytest.approx(other.centroid_mm, abs=1e-9)
        assert one.diameter.length_mm == pytest.approx(other.diameter.length_mm)
        assert one.axial.longest.length_mm == pytest.approx(other.axial.longest.length_mm)
        assert one.axial.perpendicular.length_mm == pytest.approx(other.axial.perpendicular.length_mm)


@given(SMALL_MASKS, st.floats(0.1, 20))
@settings(deadline=None)
def test_volumes_scale_with_the_cube_of_the_spacing_and_lengths_with_the_spacing(mask: np.ndarray, factor: float) -> None:
    affine = grid((0.9, 1.3, 2.1), mask.shape)
    first, second = find_lesions(mask, affine), find_lesions(mask, affine @ np.diag([factor, factor, factor, 1]))
    for one, other in zip(first.lesions, second.lesions, strict=True):
        assert other.volume_ml == pytest.approx(one.volume_ml * factor**3)
        assert other.diameter.length_mm == pytest.approx(one.diameter.length_mm * factor)
        assert other.axial.product_mm2 == pytest.approx(one.axial.product_mm2 * factor**2)


def test_a_large_solid_of_many_corners_is_measured_between_the_right_two() -> None:
    # More corners than are compared at a time, so that the pair is found across batches.
    shape = (130, 130, 130)
    affine = grid((0.5, 0.5, 0.5), shape)
    lesion = only(ball(affine, shape, 29) | ball(affine, shape, 2, (0, 0, 30)), affine)
    assert lesion.volume_ml > 100
    assert lesion.diameter.length_mm == pytest.approx(29 + 32, abs=0.5)


def test_a_volume_without_lesions_has_none() -> None:
    found = find_lesions(np.zeros((4, 5, 6), np.uint8), np.eye(4))
    assert found.lesions == ()
    assert found.volume_ml == 0
    assert not found.numbers.any()


def test_what_cannot_be_measured_is_refused() -> None:
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(ValueError, match="three axes"):
        find_lesions(mask[0], np.eye(4))
    with pytest.raises(ValueError, match="float64: compare a probability"):
        find_lesions(mask * 0.7, np.eye(4))
    with pytest.raises(ValueError, match="got -1"):
        find_lesions(-mask.astype(int), np.eye(4))
    for affine in (np.eye(3), np.diag([1.0, 0.0, 1.0, 1.0]), np.full((4, 4), np.nan)):
        with pytest.raises(ValueError, match="affine"):
            find_lesions(mask, affine)
    with pytest.raises(ValueError, match="minimum_ml"):
        find_lesions(mask, np.eye(4), minimum_ml=-1)
    with pytest.raises(ValueError, match="axis must be 0, 1 or 2"):
        find_lesions(mask, np.eye(4), axis=3)
