"""The published way of a volume into the network and back: what comes back lies where it came from. Parity is in tests/parity."""

from __future__ import annotations

import importlib.resources
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.agunet.prepost import (
    Placement,
    Preparation,
    crop_box,
    normalise,
    prepare,
    read_preparation,
    resample,
    resize,
    restore_labels,
    restore_probability,
    threshold,
)
from shared.errors import InputError, UserError
from shared.imaging.volumes import Grid

OBLIQUE = np.array([[-1.1, 0.0, 0.0, 20.0], [0.0, 0.9, 0.1, -15.0], [0.0, -0.1, 1.7, -9.0], [0.0, 0.0, 0.0, 1.0]])
SMALL = Preparation(size=(48, 40, 56))


def ellipsoid(shape: tuple[int, int, int], radius: float, centre: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return sum((axis - middle) ** 2 for axis, middle in zip(axes, centre, strict=True)) < radius**2


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def as_probability(mask: np.ndarray, placement: Placement, size: tuple[int, ...]) -> np.ndarray:
    """The mask as a perfect network would answer it: [2, X, Y, Z] of the network's size."""
    moved, _ = resample(mask.astype(np.float32), placement.source.affine, placement.resampled.spacing_mm)
    foreground = resize(moved[placement.box], size)
    return np.stack([1 - foreground, foreground])


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    noise = np.random.default_rng(0).random((44, 40, 30))
    return np.where(ellipsoid((44, 40, 30), 0.85), 300 + 200 * noise, 20 * noise).astype(np.float32)


@pytest.mark.parametrize("affine", [OBLIQUE, np.diag([1.0, 1.0, 1.5, 1.0]), OBLIQUE[:, [2, 0, 1, 3]]], ids=["oblique", "plain", "sagittal"])
@pytest.mark.parametrize("preparation", [SMALL, replace(SMALL, crop=False), replace(SMALL, spacing_mm=None, percentiles=(0, 99.5))])
def test_a_tumour_comes_back_to_where_it_was(head: np.ndarray, affine: np.ndarray, preparation: Preparation) -> None:
    """Dice 0.95: linear interpolation, twice, of a ball of about 3,000 voxels moves its border by a fraction of a voxel."""
    tumour = ellipsoid(head.shape, 0.4, (0.2, -0.1, 0.3))
    prepared = prepare(head, affine, preparation)
    assert prepared.image.shape == preparation.size
    assert prepared.image.dtype == np.float32
    assert 0 <= prepared.image.min() < prepared.image.max() <= 1
    probability = as_probability(tumour, prepared.placement, preparation.size)
    restored = restore_probability(probability, prepared.placement)
    assert restored.shape == (2, *head.shape)
    assert 0 <= restored.min() < restored.max() <= 1
    assert dice(threshold(restored, (0.5,))[1], tumour) > 0.95
    labels = restore_labels(probability.argmax(axis=0), prepared.placement)
    assert labels.dtype == np.uint8
    assert dice(labels == 1, tumour) > 0.9  # nearest voxels, twice


@settings(max_examples=20, deadline=None)
@given(codes=st.permutations(range(3)), flips=st.tuples(*3 * [st.booleans()]))
def test_any_order_and_direction_of_the_axes_comes_back(codes: list[int], flips: tuple[bool, bool, bool]) -> None:
    """At 1 mm and without resizing nothing is interpolated: a labelled corner comes back bit for bit."""
    ras = np.zeros((9, 12, 15), np.float32)
    ras[:3, :4, :5] = 1
    orientation = np.array([[axis, -1 if flip else 1] for axis, flip in zip(codes, flips, strict=True)])
    values = nibabel.orientations.apply_orientation(ras, orientation)
    affine = nibabel.orientations.inv_ornt_aff(orientation, ras.shape)
    prepared = prepare(values, affine, Preparation(size=ras.shape, crop=False))
    assert np.array_equal(prepared.image, ras)
    restored = restore_probability(np.stack([1 - prepared.image, prepared.image]), prepared.placement)
    assert np.array_equal(restored[1], values)
    assert np.array_equal(restore_labels(prepared.image, prepared.placement), values)


def test_outside_the_crop_no_class_is_probable_unless_one_says_which(head: np.ndarray) -> None:
    preparation = replace(SMALL, spacing_mm=(1.1, 0.9, 1.7))
    prepared = prepare(head, np.diag([1.1, 0.9, 1.7, 1.0]), preparation)
    probability = np.stack([np.full(preparation.size, 0.3, np.float32), np.full(preparation.size, 0.7, np.float32)])
    published = restore_probability(probability, prepared.placement)
    assert not published[:, 0, 0, 0].any()
    sound = restore_probability(probability, prepared.placement, outside=(1, 0))
    assert np.allclose(sound.sum(axis=0), 1, atol=1e-6)
    assert sound[0, 0, 0, 0] == 1
    assert np.allclose(sound[1], published[1])


def test_the_head_is_cropped_with_every_bright_speck() -> None:
    values = np.zeros((20, 20, 20))
    values[5:12, 6:13, 7:14] = 0.2
    values[8, 8, 8] = 0  # a hole changes nothing
    assert crop_box(values) == (slice(5, 12), slice(6, 13), slice(7, 14))
    values[1, 19, 0] = 0.9
    assert crop_box(values) == (slice(1, 12), slice(6, 20), slice(0, 14))
    assert crop_box(np.zeros((3, 4, 5))) == (slice(0, 3), slice(0, 4), slice(0, 5))


def test_values_are_clipped_at_percentiles_and_scaled() -> None:
    values = np.append(np.arange(1000.0), 1e6)
    clipped = normalise(values, percentiles=(0, 99), normalisation="range")
    assert clipped.min() == 0
    assert clipped.max() == 1
    assert (clipped == 1).sum() == 11  # one in a hundred, and the one at the percentile itself
    assert np.allclose(normalise(values, percentiles=(0, 100), normalisation="range"), values / 1e6)
    centred = normalise(values, percentiles=(1, 99), normalisation="zero_mean")
    assert (centred.mean(), centred.std()) == pytest.approx((0, 1), abs=1e-9)


def test_without_a_spacing_the_smallest_of_the_volume_is_taken(head: np.ndarray) -> None:
    _, grid = resample(head, OBLIQUE, None)
    assert grid.spacing_mm == pytest.approx(3 * [float(np.hypot(0.9, 0.1))], rel=1e-6)
    assert grid.axes == "RAS"


def test_two_sizes_keep_the_proportion_of_the_last_two_axes(head: np.ndarray) -> None:
    image = prepare(head, np.eye(4), Preparation(size=(24, 20), crop=False)).image
    assert image.shape == (24, 20, 15)


def test_each_class_has_its_threshold_and_a_list_that_does_not_fit_stands_for_its_first() -> None:
    probability = np.array([0.5, 0.4, 0.3], np.float32).reshape(3, 1, 1, 1)
    assert threshold(probability, (0.6, 0.4, 0.2)).ravel().tolist() == [False, True, True]
    assert threshold(probability, (0.4, 0.1)).ravel().tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("spoil", "preparation", "says"),
    [
        (lambda head: np.where(head > 480, np.nan, head), SMALL, "not finite"),
        (lambda head: np.where(head > 480, np.inf, head), SMALL, "not finite"),
        (lambda head: np.full_like(head, 7), SMALL, "every voxel is 7"),
        (lambda head: np.pad([[[9.0]]], 20), replace(SMALL, percentiles=(0, 99)), "percentiles 0 and 99 are the same"),
    ],
)
def test_a_volume_without_an_image_is_refused_by_name(head: np.ndarray, spoil, preparation: Preparation, says: str) -> None:
    with pytest.raises(InputError, match=rf"^t1\.nii: .*{says}"):
        prepare(spoil(head), np.eye(4), preparation, name="t1.nii")


def test_what_is_no_volume_or_no_preparation_is_a_mistake_of_the_caller(head: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\[44, 40\]"):
        prepare(head[..., 0], np.eye(4), SMALL)
    with pytest.raises(ValueError, match="percentiles"):
        Preparation(percentiles=(99, 1))
    with pytest.raises(ValueError, match="size"):
        Preparation(size=(128, 128, 0))
    with pytest.raises(ValueError, match="spacing"):
        Preparation(spacing_mm=(1, 1, 0))


def test_a_real_image_goes_in_and_comes_back() -> None:
    """nibabel's small T1; Dice 0.9: its head is a thin shell of 2 mm voxels, interpolated twice."""
    path = importlib.resources.files("nibabel") / "tests" / "data" / "anatomical.nii"
    if not path.is_file():
        pytest.skip("this nibabel comes without its test images")
    image = nibabel.load(str(path))
    values = image.get_fdata(dtype=np.float32)
    prepared = prepare(values, image.affine, Preparation(size=(64, 80, 48)))
    bright = values > np.percentile(values, 60)
    restored = restore_probability(as_probability(bright, prepared.placement, (64, 80, 48)), prepared.placement)
    assert dice(restored[1] >= 0.5, bright) > 0.9


def test_the_settings_beside_a_released_model_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pre_processing.ini"
    path.write_text(
        "[Preprocessing]\noutput_spacing=1,1,1.5\nintensity_clipping_range=0.0, 99.5\nnormalization_method=zeromean\n"
        "background_cropping=True\nnew_axial_size=128,128,144\nintensity_final_range=0,1\n[Other]\noptimal_thresholds=0.5,0.4\n"
    )
    assert read_preparation(path) == Preparation(
        spacing_mm=(1, 1, 1.5), percentiles=(0, 99.5), normalisation="zero_mean", crop=True, size=(128, 128, 144), thresholds=(0.5, 0.4)
    )
    path.write_text("[Preprocessing]\nnew_axial_size=[256, 256]\noutput_spacing=\n")
    assert read_preparation(path) == Preparation(spacing_mm=None, crop=False, size=(256, 256))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "is no pre_processing.ini"),
        ("output_spacing=1", "is no pre_processing.ini"),
        ("[P]\noutput_spacing=1,1", "output_spacing is '1,1', expected 3 numbers"),
        ("[P]\nnew_axial_size=128", "expected 2 or 3 numbers"),
        ("[P]\nintensity_clipping_range=99,1", "percentiles must rise"),
        ("[P]\nnew_axial_size=0,0,0", "positive"),
    ],
)
def test_settings_that_cannot_be_understood_are_refused_with_the_key(text: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "pre_processing.ini"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        read_preparation(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_placement_says_where_the_input_lies(head: np.ndarray) -> None:
    placement = prepare(head, OBLIQUE, SMALL).placement
    assert isinstance(placement.source, Grid)
    assert placement.source.shape == head.shape
    assert np.array_equal(placement.source.affine, OBLIQUE)
    assert placement.resampled.spacing_mm == pytest.approx((1, 1, 1))
    assert all(0 <= side.start < side.stop <= size for side, size in zip(placement.box, placement.resampled.shape, strict=True))
