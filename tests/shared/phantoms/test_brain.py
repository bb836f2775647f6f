"""Phantom brains: their truth is what it says."""

from __future__ import annotations

import numpy as np
import pytest

from shared.metrics.noise_ceiling import noise_ceiling, signal_to_noise
from shared.phantoms.brain import REGIONS, BrainPhantom, brain_phantom


@pytest.fixture(scope="module")
def phantom() -> BrainPhantom:
    return brain_phantom(1, train=120, test=60, side=48, repeats=4)


def test_every_unit_is_in_one_region_and_both_hemispheres_have_all_of_them(phantom: BrainPhantom) -> None:
    assert np.array_equal(sum(mask.astype(int) for mask in phantom.regions.values()), np.ones(phantom.responses.shape[1]))
    left = np.arange(phantom.responses.shape[1]) < phantom.left
    assert all((mask & left).any() and (mask & ~left).any() for mask in phantom.regions.values())


def test_the_ceiling_estimated_from_repeats_is_the_true_one(phantom: BrainPhantom) -> None:
    """On average over units: a single unit's estimate from 60 pictures is off by about 0.1."""
    test = np.flatnonzero(phantom.test)
    repeats = np.stack([phantom.responses[[np.flatnonzero(phantom.trials == one)[k] for one in test]] for k in range(4)])
    estimated = noise_ceiling(signal_to_noise(repeats).ratio, 4)
    has = ~phantom.regions["control"]
    assert estimated[has].mean() == pytest.approx(phantom.ceiling(4)[has].mean(), abs=0.03)
    assert estimated[~has].mean() < 0.15


def test_category_units_respond_to_their_category_and_more_on_the_other_side(phantom: BrainPhantom) -> None:
    shown = np.array([one.shows["face"] for one in phantom.stimuli])
    face = phantom.signal[:, phantom.regions["FFA"]]
    assert face[shown].min() > face[~shown].max()
    left = (np.arange(phantom.responses.shape[1]) < phantom.left)[phantom.regions["FFA"]]
    on_the_right = np.array([one.place.get("face", (0,))[0] > 0.5 for one in phantom.stimuli])
    assert face[shown & on_the_right][:, left].mean() > face[shown & ~on_the_right][:, left].mean()


def test_receptive_fields_are_on_the_other_side_of_the_picture(phantom: BrainPhantom) -> None:
    early, left = phantom.regions["V1"], np.arange(phantom.responses.shape[1]) < phantom.left
    assert (phantom.receptive_fields[early & left, 0] > 0.5).all()
    assert (phantom.receptive_fields[early & ~left, 0] < 0.5).all()
    assert np.isnan(phantom.receptive_fields[~early]).all()


def test_control_units_carry_no_signal(phantom: BrainPhantom) -> None:
    assert not phantom.signal[:, phantom.regions["control"]].any()
    assert not phantom.signal_share[phantom.regions["control"]].any()


def test_test_faces_are_never_shown_in_training_and_the_seed_decides(phantom: BrainPhantom) -> None:
    again = brain_phantom(1, train=120, test=60, side=48, repeats=4)
    assert np.array_equal(again.responses, phantom.responses)
    assert all(np.array_equal(one.image, other.image) for one, other in zip(again.stimuli, phantom.stimuli, strict=True))


def test_a_volume_has_its_voxels_where_the_mask_says() -> None:
    phantom = brain_phantom(0, train=4, test=2, side=48, space="volume")
    assert phantom.mask.sum() == phantom.responses.shape[1]
    places = np.argwhere(phantom.mask) @ phantom.affine[:3, :3].T + phantom.affine[:3, 3]
    assert (places[: phantom.left, 0] < 0).all()
    centre = np.array(REGIONS["PPA"].centre_mm)
    right = np.arange(len(places)) >= phantom.left
    assert np.linalg.norm(places[phantom.regions["PPA"] & right] - centre, axis=1).max() <= REGIONS["PPA"].radius_mm
