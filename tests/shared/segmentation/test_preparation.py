"""The way to a network's voxels and back: nothing is flipped or shifted, whatever the orientation, and outside is what was said."""

import numpy as np
import pytest

from shared.errors import InputError
from shared.imaging.volumes import Volume
from shared.segmentation.config import PreprocessingConfig
from shared.segmentation.preparation import NativePreparation, foreground
from tests.shared.imaging.volumes.made import OBLIQUE, labelled_corners, orientations
from tests.shared.segmentation.bright import block

ALL = {f"{code} {name}": affine for name, turned in OBLIQUE.items() for code, affine in orientations(turned)}
UPRIGHT = [affine for code, affine in ALL.items() if code.endswith("upright")]
OUTSIDE = (1.0, 0.0, 0.0, 0.0, 0.0)


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.stack([labels == value for value in range(5)]).astype(np.float32)


def in_air(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A bright block with labelled corners, off the middle of a volume of zeros; and where it lies."""
    inner = block((3, 2, 1), (9, 7, 6), shape)
    labels = np.zeros(shape, np.uint8)
    labels[3:9, 2:7, 1:6] = labelled_corners((6, 5, 5))
    return labels, inner


@pytest.mark.parametrize("affine", ALL.values(), ids=ALL)
@pytest.mark.parametrize("crop", [True, False])
def test_labels_on_the_volumes_own_spacing_come_back_to_their_very_voxels(affine, crop):
    labels, inner = in_air((14, 11, 9))
    values = np.random.default_rng(0).uniform(50, 100, inner.shape).astype(np.float32) * inner
    volume = Volume(values=values, affine=affine)
    ready = NativePreparation(PreprocessingConfig(spacing_mm=None, crop=crop))(volume)
    placed = ready.place(volume.with_values(labels))
    assert ready.image.shape == (1, *placed.shape)
    assert (placed.size < labels.size) == crop
    back = ready.restore(one_hot(placed), OUTSIDE)
    np.testing.assert_array_equal(back, one_hot(labels))


@pytest.mark.parametrize("affine", UPRIGHT[::3])
def test_another_spacing_keeps_a_thing_where_it_is(affine):
    """Half a voxel is what nearest voxels may be off by; a flip would be off by the size of the block."""
    truth = block((3, 6, 2), (11, 20, 9), (24, 24, 12))
    volume = Volume(values=np.where(truth, 100, 10).astype(np.float32), affine=affine)
    ready = NativePreparation(PreprocessingConfig(spacing_mm=(0.9, 0.9, 0.9), crop=False))(volume)
    assert ready.spacing_mm == pytest.approx((0.9, 0.9, 0.9), rel=0.05)
    placed = ready.place(volume.with_values(truth.astype(np.uint8)))
    back = ready.restore(one_hot(placed), OUTSIDE)
    assert back.shape == (5, *truth.shape)
    found = back[1] > 0.5
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.85
    apart = (np.argwhere(found).mean(axis=0) - np.argwhere(truth).mean(axis=0)) * volume.spacing_mm
    assert np.abs(apart).max() < 0.5
    assert back.sum(axis=0) == pytest.approx(1, abs=1e-3)  # of every voxel, those at the border too


def test_what_was_cropped_away_is_surely_background():
    _, inner = in_air((14, 11, 9))
    volume = Volume(values=(inner * np.arange(1, 10)).astype(np.float32), affine=np.eye(4))
    ready = NativePreparation(PreprocessingConfig(spacing_mm=None, crop=True))(volume)
    everything = np.zeros((5, *ready.image.shape[1:]), np.float32)
    everything[1] = 1
    back = ready.restore(everything, OUTSIDE)
    assert back[:, -1, -1, -1].tolist() == list(OUTSIDE)
    assert (back[1][inner] == 1).all()


def test_air_around_a_head_is_left_out_and_air_within_is_not():
    rng = np.random.default_rng(0)
    head = block((4, 4, 4), (16, 16, 16), (20, 20, 20))
    sinus = block((9, 9, 9), (11, 11, 11), (20, 20, 20))
    speck = block((1, 1, 1), (2, 2, 2), (20, 20, 20))
    values = (rng.uniform(1, 5, head.shape) + 200 * ((head & ~sinus) | speck)).astype(np.float32)
    np.testing.assert_array_equal(foreground(values[None]), head)


def test_where_the_background_was_zeroed_every_other_voxel_counts_also_in_one_channel_only():
    values = np.zeros((2, 8, 8, 8), np.float32)
    values[0, 2:5, 2:5, 2:5], values[1, 6, 6, 6] = 3, -1
    expected = block((2, 2, 2), (5, 5, 5), (8, 8, 8))
    expected[6, 6, 6] = True
    np.testing.assert_array_equal(foreground(values), expected)
    assert foreground(np.ones((1, 4, 4, 4), np.float32)).all()


@pytest.mark.parametrize("how", ["foreground", "all", "range"])
def test_each_channel_is_normalised_for_itself(how):
    rng = np.random.default_rng(0)
    head = block((2, 2, 2), (10, 10, 10), (12, 12, 12))
    values = np.stack([rng.normal(500, 50, head.shape), rng.normal(-3, 0.1, head.shape)]).astype(np.float32) * head
    ready = NativePreparation(PreprocessingConfig(spacing_mm=None, crop=False, normalisation=how))(Volume(values=values, affine=np.eye(4)))
    for channel in ready.image:
        measured = channel[head] if how == "foreground" else channel
        if how == "range":
            assert (measured.min(), measured.max()) == (0, 1)
        else:
            assert measured.mean() == pytest.approx(0, abs=1e-3)
            assert measured.std() == pytest.approx(1, abs=1e-3)
    if how == "foreground":
        assert (ready.image[:, ~head] == 0).all()


def test_one_voxel_that_outshines_all_does_not_upset_the_network():
    values = np.random.default_rng(0).normal(100, 10, (10, 10, 10)).astype(np.float32)
    values[3, 3, 3] = 1e5
    ready = NativePreparation(PreprocessingConfig(spacing_mm=None, crop=False, normalisation="all"))(
        Volume(values=values, affine=np.eye(4))
    )
    assert np.abs(ready.image).max() <= 6


def test_a_channel_that_is_the_same_everywhere_is_named():
    values = np.random.default_rng(0).uniform(1, 2, (2, 6, 6, 6)).astype(np.float32)
    values[1] = 7
    with pytest.raises(InputError, match=r"^a\.nii: every voxel is 7 in channel 1\."):
        NativePreparation(PreprocessingConfig())(Volume(values=values, affine=np.eye(4), name="a.nii"))
