"""Codes for places."""

from __future__ import annotations

import pytest
import torch

from shared.attention import create
from shared.attention.positions import grid_positions


def test_products_of_features_depend_on_the_difference_of_two_places_alone() -> None:
    block = create("fourier_positions", channels=32).double()
    places, shift = torch.rand(1, 6, 2, dtype=torch.float64), torch.tensor([0.3, -1.7], dtype=torch.float64)
    here, there = (block.features(each)[0, :, 0] for each in (places, places + shift))
    torch.testing.assert_close(here @ here.mT, there @ there.mT)


def test_at_the_start_they_fall_off_as_a_gaussian() -> None:
    torch.manual_seed(0)
    for gamma in (0.7, 1.0, 2.0):
        block = create("fourier_positions", channels=16, features=40_000, gamma=gamma, rank=1).double()
        distances = torch.linspace(0, 3, 7, dtype=torch.float64) * gamma**2
        features = block.features(distances.reshape(1, -1, 1))[0, :, 0]
        # Each of 20,000 random frequencies contributes a cosine of deviation below 1: 0.007; four times that.
        expected = torch.exp(-(distances**2) / (2 * gamma**4)) / 2
        torch.testing.assert_close(features @ features[0], expected, rtol=0, atol=0.015)


def test_points_of_a_group_are_coded_alike_one_after_the_other() -> None:
    block = create("fourier_positions", channels=32, groups=2, rank=3)
    one, other = torch.rand(1, 5, 3), torch.rand(1, 5, 3)
    code, turned = block(torch.cat([one, other], dim=-1)), block(torch.cat([other, one], dim=-1))
    torch.testing.assert_close(code, turned.roll(16, dims=-1))


def test_half_precision_does_not_blur_far_places() -> None:
    block, places = create("fourier_positions", channels=32), 1000 + torch.rand(1, 5, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(block.features(places), block.features(places.clone()))
        rough = block.features(places)
    assert torch.equal(rough, block.features(places))


def test_centres_of_cells_as_fractions() -> None:
    expected = [[0.25, 1 / 6], [0.25, 0.5], [0.25, 5 / 6], [0.75, 1 / 6], [0.75, 0.5], [0.75, 5 / 6]]
    torch.testing.assert_close(grid_positions((2, 3)), torch.tensor(expected))
    assert grid_positions((2, 3, 4)).shape == (24, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 3}, "groups=3 must divide channels=32"),
        ({"features": 5}, "features must be even, not 5"),
        ({"gamma": 0.0}, "gamma=0.0"),
        ({"rank": 0}, "rank=0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("fourier_positions", channels=32, **settings)
