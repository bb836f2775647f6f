"""The losses are what their formulas say, and the default one does not forget small tumours; parity with the published one is elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apps.agunet.losses import class_dice, deep_supervision, dice_loss, published_dice_loss


def logits_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def ball() -> Tensor:
    """Labels [1, 1, 16, 16, 16]: a ball of 33 voxels in the background."""
    axis = torch.arange(16)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    return (((x - 6) ** 2 + (y - 7) ** 2 + (z - 9) ** 2) <= 4).long()[None, None]


def sure(labels: Tensor, classes: int = 2) -> Tensor:
    """Logits of one who is certain of the labels."""
    return 40.0 * F.one_hot(labels[:, 0], classes).movedim(-1, 1)


@pytest.mark.parametrize("classes", [2, 4])
def test_it_is_one_minus_the_mean_dice_of_the_foreground(classes: int) -> None:
    """MONAI's sum and ours, written out; tolerance: float32 sums over 1536 voxels."""
    logits = logits_of(2, classes, 8, 8, 12)
    labels = torch.randint(classes, (2, 1, 8, 8, 12), generator=torch.Generator().manual_seed(1))
    dice = class_dice(logits.softmax(dim=1), labels)
    assert dice.shape == (classes,)
    assert float(dice_loss(logits, labels)) == pytest.approx(1 - float(dice[1:].mean()), rel=1e-5)
    assert float(dice_loss(logits, labels, include_background=True)) == pytest.approx(1 - float(dice.mean()), rel=1e-5)
    p, t = logits.softmax(dim=1)[:, 1].double(), (labels[:, 0] == 1).double()
    assert float(dice[1]) == pytest.approx(float((2 * (p * t).sum() + 1) / ((p * p).sum() + (t * t).sum() + 1)), rel=1e-5)


def test_a_network_that_knows_the_background_alone_learns_the_tumour_from_ours_and_nothing_from_the_published_loss(ball: Tensor) -> None:
    logits = torch.zeros(1, 2, 16, 16, 16)
    logits[:, 0] = 3.0
    logits[:, 1] += 2.0 * ball[0]  # sees a little of the tumour
    probability = logits.softmax(dim=1).requires_grad_()
    published = published_dice_loss(probability, ball)
    (gradient,) = torch.autograd.grad(published, probability)
    assert published.item() == 0
    assert not gradient.any()

    logits.requires_grad_()
    ours = dice_loss(logits, ball)
    (gradient,) = torch.autograd.grad(ours, logits)
    assert ours.item() > 0.3
    assert (gradient[:, 1][ball[:, 0] == 1] < 0).all()  # descending makes the tumour more probable where it is


def test_a_sure_right_answer_costs_nothing_and_a_sure_wrong_one_everything(ball: Tensor) -> None:
    """The smoothing of one voxel leaves a little: 1 / 34 where nothing overlaps."""
    assert float(dice_loss(sure(ball), ball)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(sure(1 - ball), ball)) > 0.96


def test_a_batch_counts_as_one_volume(ball: Tensor) -> None:
    """Tolerance: float32 sums over 8192 voxels in another order."""
    logits = logits_of(1, 2, 16, 16, 16)
    together = dice_loss(torch.cat([logits, logits], dim=0), torch.cat([ball, ball], dim=0))
    longer = dice_loss(torch.cat([logits, logits], dim=2), torch.cat([ball, ball], dim=2))
    assert float(together) == pytest.approx(float(longer), rel=1e-5)


@pytest.mark.parametrize("extreme", [0.0, 1e4, -1e4])
def test_an_empty_volume_has_a_finite_loss_and_gradient(extreme: float) -> None:
    logits = torch.full((1, 2, 4, 4, 4), extreme)
    logits[:, 1] *= -1
    logits.requires_grad_()
    value = dice_loss(logits, torch.zeros(1, 1, 4, 4, 4, dtype=torch.long))
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_half_precision_logits_are_scored_in_float32(ball: Tensor) -> None:
    logits = logits_of(1, 2, 16, 16, 16).bfloat16()
    assert torch.equal(dice_loss(logits, ball), dice_loss(logits.float(), ball))


def test_deep_supervision_adds_up_each_output_against_the_nearest_labels(ball: Tensor) -> None:
    outputs = [logits_of(1, 2, size, size, size, seed=size) for size in (16, 8, 4)]
    halved, quartered = ball[:, :, 1::2, 1::2, 1::2], ball[:, :, 2::4, 2::4, 2::4]
    alone = [dice_loss(output, labels) for output, labels in zip(outputs, (ball, halved, quartered), strict=True)]
    assert float(deep_supervision(outputs, ball)) == pytest.approx(float(sum(alone)), rel=1e-6)
    weighted = sum(weight * value for weight, value in zip((1, 0.5, 0.25), alone, strict=True))
    assert float(deep_supervision(outputs, ball, weights=(1, 0.5, 0.25))) == pytest.approx(float(weighted), rel=1e-6)
    assert float(deep_supervision(outputs[:1], ball)) == pytest.approx(float(alone[0]), rel=1e-6)


def test_deep_supervision_takes_any_loss_and_refuses_weights_that_do_not_fit(ball: Tensor) -> None:
    outputs = [logits_of(1, 2, 16, 16, 16), logits_of(1, 2, 8, 8, 8)]
    assert float(deep_supervision(outputs, ball, loss=lambda logits, labels: labels.sum() * 0 + 2)) == 4
    with pytest.raises(ValueError, match="3 weights for 2 outputs"):
        deep_supervision(outputs, ball, weights=(1, 1, 1))
