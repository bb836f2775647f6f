"""What the network is given: the size, the range and the colours that it was trained with, whatever the frame's size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apps.pranet.preprocessing import MEAN, STD, resize, to_input, to_target


@pytest.mark.parametrize("shape", [(352, 352), (33, 47), (288, 384), (1, 1), (966, 1225)])
def test_a_frame_of_any_size_becomes_the_square(shape: tuple[int, int]) -> None:
    tensor = to_input(np.zeros((*shape, 3), np.uint8), size=64)
    assert tensor.shape == (3, 64, 64)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()


def test_values_are_normalised_channel_by_channel_in_the_order_red_green_blue() -> None:
    colour = np.array([200, 100, 50], np.uint8)
    tensor = to_input(np.broadcast_to(colour, (20, 30, 3)).copy(), size=32)
    expected = (colour / 255 - np.array(MEAN)) / np.array(STD)
    assert tensor[:, 5, 7].numpy() == pytest.approx(expected, abs=1e-6)  # float32


def test_the_aspect_ratio_is_not_kept() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 255
    tensor = to_input(image, size=32)
    assert (tensor[0, :, :15] < 0).all()
    assert (tensor[0, :, 17:] > 0).all()


def test_shrinking_blends_and_does_not_skip_pixels() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize(stripes, 16).astype(int) - 127).max() <= 20


def test_a_mask_keeps_its_soft_edge_between_zero_and_one() -> None:
    mask = np.zeros((50, 50), np.uint8)
    mask[10:40, 10:40] = 255
    target = to_target(mask, size=32)
    assert target.shape == (1, 32, 32)
    assert float(target.min()) == 0
    assert float(target.max()) == 1
    assert ((target > 0) & (target < 1)).any()


def test_a_frame_that_has_the_size_already_is_not_touched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(resize(image, 32), image)
