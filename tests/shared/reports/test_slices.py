"""What is seen of a segmented volume: the right side at the left, true proportions, every lesion, nothing hidden."""

from itertools import permutations, product

import numpy as np
import pytest

from shared.explain.overlay import AGREEMENT_COLORS
from shared.imaging.volumes import Grid, Volume, grid_with_axes, resample
from shared.reports.planes import content_box, grey_window, view
from shared.reports.slices import LABEL_COLORS, agreement, figure, label_colors, montage, preview, probability_map
from shared.reports.style import to_png

NAMES = {1: "necrotic core", 2: "oedema", 4: "enhancing"}
ORIENTATIONS = ["".join(axes) for order in permutations(("RL", "AP", "SI")) for axes in product(*order)]


def head(shape=(40, 48, 32), spacing=(1.0, 1.0, 1.0)):
    """An ellipsoid in noisy air, in RAS order, around the origin."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    middle = [np.linspace(-1.1, 1.1, size) for size in shape]
    inside = sum(axis**2 for axis in np.meshgrid(*middle, indexing="ij")) < 1
    noise = np.random.default_rng(0).rayleigh(5, shape)
    return Volume(values=(300 * inside + noise).astype(np.float32), affine=affine)


def where(picture, color, *, tolerance=40):
    """Rows and columns of the pixels of a colour, the legend left out."""
    near = np.abs(picture.astype(int) - color).sum(axis=-1) < tolerance
    return np.nonzero(near[: int(0.85 * len(near))])


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_a_lesion_on_the_right_in_front_and_above_is_there_in_the_picture_whatever_the_orientation(axes):
    volume = head()
    labels = np.zeros(volume.shape, np.uint8)
    labels[26:30, 32:38, 20:24] = 1
    turned = grid_with_axes(volume.grid, axes)
    stored = resample(volume, turned, order=0)
    shown = view(stored, resample(volume.with_values(labels), turned, order=0).values)
    slices = shown.best_slices()
    size = 100, 120
    for plane, left, top in (("axial", True, True), ("coronal", True, True), ("sagittal", True, True)):
        rows, columns = np.nonzero(shown.mask(shown.labels == 1, plane, slices[plane], size))
        assert (columns.mean() < 60) == left, plane
        assert (rows.mean() < 50) == top, plane
    assert shown.position("axial", slices["axial"]).startswith("S ")
    assert shown.position("sagittal", slices["sagittal"]).startswith("R ")
    assert shown.position("coronal", slices["coronal"]).startswith("A ")


def test_thick_slices_have_the_proportions_of_the_patient():
    volume = head(shape=(90, 90, 18), spacing=(0.9, 0.9, 4.5))
    labels = np.zeros(volume.shape, np.uint8)
    labels[35:55, 35:55, 7:11] = 1  # 18 mm in each direction
    picture = preview(volume, labels, {1: "tumour"})
    rows, columns = where(picture, LABEL_COLORS[0])
    third = picture.shape[1] // 3
    for panel in range(3):
        inside = (columns >= panel * third) & (columns < (panel + 1) * third)
        assert np.ptp(rows[inside]) == pytest.approx(np.ptp(columns[inside]), abs=4)


@pytest.mark.parametrize("box", [(20, 24, 16), (slice(10, 30), 24, 16), (20, slice(20, 30), 16), (20, 24, slice(10, 20))])
def test_no_lesion_is_too_small_to_be_seen(box):
    volume, labels = head(), np.zeros((40, 48, 32), np.uint8)
    labels[box] = 4
    picture = preview(volume, labels, NAMES, height=64)
    _, columns = where(picture, label_colors(NAMES)[4], tolerance=120)
    third = picture.shape[1] // 3
    assert {column // third for column in columns.tolist()} >= {0, 1, 2}


def test_the_slices_are_those_of_the_largest_lesion_and_without_one_the_middle_of_the_head():
    volume, labels = head(), np.zeros((40, 48, 32), np.uint8)
    labels[10, 10, 4] = 1
    labels[25:30, 30:34, 18:21] = 2
    slices = view(volume, labels, channel=0).best_slices()
    shown = view(volume, labels)
    assert [shown.labels.take(slices[plane], axis).max() for plane, axis in (("sagittal", 0), ("coronal", 1), ("axial", 2))] == [2, 2, 2]
    empty = view(volume).best_slices()
    middle = {plane: view(volume).count(plane) / 2 for plane in empty}
    assert all(abs(empty[plane] - middle[plane]) < 2 for plane in empty)


@pytest.mark.parametrize(
    "values",
    [
        np.full((12, 10, 8), np.nan, np.float32),
        np.zeros((12, 10, 8), np.float32),
        np.full((12, 10, 8), 7, np.float32),
        np.zeros((1, 1, 1), np.float32),
        np.where(np.arange(12)[:, None, None] > 5, np.nan, np.ones((12, 10, 8), np.float32)),
    ],
)
def test_volumes_that_show_nothing_still_give_a_picture(values):
    volume = Volume(values=values, affine=np.eye(4))
    empty = np.zeros(values.shape, np.uint8)
    assert preview(volume, empty, NAMES).dtype == np.uint8
    assert montage(volume, None, NAMES).ndim == 3
    assert agreement(volume, empty, empty).ndim == 3
    assert probability_map(volume, empty.astype(np.float32)).ndim == 3


def test_one_bright_voxel_does_not_darken_the_picture():
    volume = head()
    values = volume.values.copy()
    low, high = grey_window(values)
    values[20, 24, 16], values[0, 0, 0] = 1e6, np.nan
    again = grey_window(values)
    assert again == pytest.approx((low, high), rel=0.02)
    assert 280 < high < 330


def test_a_skull_stripped_and_normalised_volume_keeps_its_dark_tissue():
    volume = head()
    inside = volume.values > 100
    values = np.where(inside, np.random.default_rng(1).normal(0, 1, volume.shape), 0).astype(np.float32)
    low, high = grey_window(values)
    assert low < -1.9
    assert high > 1.9
    box = content_box(volume.with_values(values), np.zeros(volume.shape, np.uint8), (low, high))
    assert all(part.stop - part.start >= size * 0.9 for part, size in zip(box, volume.shape, strict=True))


def test_agreement_says_what_was_found_missed_and_wrong():
    volume = head()
    truth, predicted = np.zeros((2, 40, 48, 32), np.uint8)
    truth[16:26, 20:30, 12:20] = 1
    predicted[20:30, 20:30, 12:20] = 4
    axial = agreement(volume, predicted, truth)[:, :300]
    middles = {name: where(axial, color)[1].mean() for name, color in AGREEMENT_COLORS.items()}
    # The patient's right is at the left: what lies farther to the right there was predicted only.
    assert middles["false alarm"] < middles["found"] < middles["missed"]


def test_channels_are_shown_one_at_a_time_and_contours_are_the_same():
    volume, labels = head(), np.zeros((40, 48, 32), np.uint8)
    labels[18:24, 20:30, 12:18] = 1
    both = Volume(values=np.stack([volume.values, volume.values.max() - volume.values]), affine=volume.affine)
    first, second = (preview(both, labels, NAMES, channel=channel) for channel in (0, 1))
    assert np.array_equal(first, preview(volume, labels, NAMES))
    assert not np.array_equal(first, second)


def test_what_does_not_fit_is_refused_with_what_was_expected():
    volume, names = head(), {1: "tumour"}
    with pytest.raises(ValueError, match=r"labels are uint8 \[2, 2, 2\]: expected whole numbers \[40, 48, 32\]"):
        preview(volume, np.zeros((2, 2, 2), np.uint8), names)
    with pytest.raises(ValueError, match="labels are float32"):
        preview(volume, volume.values, names)
    with pytest.raises(ValueError, match="channel is 1: the volume has 1"):
        preview(volume, np.zeros(volume.shape, np.uint8), names, channel=1)
    with pytest.raises(ValueError, match="0 to 1"):
        probability_map(volume, volume.values)
    with pytest.raises(ValueError, match="count is 0"):
        montage(volume, None, names, count=0)


def test_the_figure_of_a_paper_draws_and_leaves_the_input_alone():
    volume, labels = head(), np.zeros((40, 48, 32), np.uint8)
    labels[18:24, 20:30, 12:18] = 2
    before = volume.values.copy()
    assert to_png(figure(volume, labels, NAMES), dpi=50).startswith(b"\x89PNG")
    assert np.array_equal(volume.values, before)


def test_an_oblique_volume_is_shown_in_the_planes_it_was_acquired_in():
    volume = head()
    turn = np.deg2rad(20)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    oblique = Volume(values=volume.values, affine=rotation @ volume.affine)
    straight, askew = (preview(one, np.zeros(volume.shape, np.uint8), {}) for one in (volume, oblique))
    assert straight.shape == askew.shape
    assert Grid(shape=volume.shape, affine=oblique.affine).axes == "RAS"
