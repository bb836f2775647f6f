"""The structure loss is what its formula says; parity with the published one is in tests/parity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from apps.pranet.losses import boundary_weight, published_structure_loss, structure_loss

both = pytest.mark.parametrize("loss", [structure_loss, published_structure_loss])


@pytest.fixture
def disc() -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(80), indexing="ij")
    return (((rows - 30) ** 2 + (columns - 40) ** 2) < 200).float()[None, None]


def test_pixels_far_from_any_boundary_weigh_one_and_those_on_it_more(disc: Tensor) -> None:
    weight = boundary_weight(disc)
    assert weight[0, 0, 63, 0] == 1
    assert 1 <= float(weight.min()) < float(weight.max()) <= 6
    assert float(weight[0, 0, 30, 53]) > 3  # just inside the disc: most of the 31 x 31 around it is background


def test_the_border_of_the_frame_counts_as_background() -> None:
    corner = float(boundary_weight(torch.ones(1, 1, 64, 64))[0, 0, 0, 0])
    assert corner == pytest.approx(1 + 5 * (1 - 16 * 16 / 31**2), rel=1e-6)


def test_it_is_the_formula_of_the_paper(disc: Tensor) -> None:
    """Written out in double precision; 1e-5 is float32's rounding in sums over 5120 pixels."""
    logits = torch.randn(disc.shape, generator=torch.Generator().manual_seed(0))
    z, m = logits[0, 0].double().numpy(), disc[0, 0].double().numpy()
    padded = np.pad(m, 15)
    mean = np.lib.stride_tricks.sliding_window_view(padded, (31, 31)).mean(axis=(2, 3))
    w, p = 1 + 5 * np.abs(mean - m), 1 / (1 + np.exp(-z))
    entropy = -(m * np.log(p) + (1 - m) * np.log(1 - p))
    intersection, total = (p * m * w).sum(), ((p + m) * w).sum()
    iou = 1 - (intersection + 1) / (total - intersection + 1)
    assert float(structure_loss(logits, disc)) == pytest.approx((w * entropy).sum() / w.sum() + iou, rel=1e-5)
    assert float(published_structure_loss(logits, disc)) == pytest.approx(entropy.mean() + iou, rel=1e-5)


@both
def test_a_sure_right_answer_costs_nothing_and_a_sure_wrong_one_much(loss: Callable[[Tensor, Tensor], Tensor], disc: Tensor) -> None:
    sure = 40 * (2 * disc - 1)
    assert float(loss(sure, disc)) < 1e-3
    assert float(loss(-sure, disc)) > 10


def test_each_image_of_a_batch_counts_the_same(disc: Tensor) -> None:
    logits = torch.randn(disc.shape, generator=torch.Generator().manual_seed(0))
    empty = torch.zeros_like(disc)
    together = structure_loss(logits.repeat(2, 1, 1, 1), torch.cat([disc, empty]))
    alone = [structure_loss(logits, disc), structure_loss(logits, empty)]
    assert float(together) == pytest.approx(float(sum(alone)) / 2, rel=1e-5)


@both
@pytest.mark.parametrize("extreme", [0.0, 1e4, -1e4])
def test_empty_full_and_soft_masks_have_a_finite_loss_and_gradient(loss: Callable[[Tensor, Tensor], Tensor], extreme: float) -> None:
    masks = torch.stack([torch.zeros(1, 40, 40), torch.ones(1, 40, 40), torch.full((1, 40, 40), 0.3)])
    logits = torch.full(masks.shape, extreme, requires_grad=True)
    value = loss(logits, masks)
    value.backward()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
