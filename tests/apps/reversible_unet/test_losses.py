"""The losses are what their formulas say, and the default one means the same for any batch; parity with the published ones is elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from apps.reversible_unet.losses import dice_loss, published_dice_loss, published_squared_dice_loss

LOSSES = [dice_loss, published_dice_loss, published_squared_dice_loss]


def pair(batch: int = 1, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, 6, 5, 4)
    return torch.randn(shape, generator=generator, dtype=torch.float64), torch.rand(shape, generator=generator) > 0.7


def test_it_is_one_minus_the_mean_dice_of_the_regions() -> None:
    logits, regions = pair()
    probability = logits.sigmoid()[0]
    dice = [(2 * p[t].sum() + 1) / (p.sum() + t.sum() + 1) for p, t in zip(probability, regions[0], strict=True)]
    torch.testing.assert_close(dice_loss(logits, regions), 1 - sum(dice) / 3)


def test_the_published_one_is_three_fifths_of_it_for_a_single_volume() -> None:
    logits, regions = pair()
    torch.testing.assert_close(published_dice_loss(logits, regions), 0.6 * dice_loss(logits, regions))


@pytest.mark.parametrize("loss", [dice_loss, published_squared_dice_loss])
def test_each_volume_of_a_batch_counts_by_itself(loss) -> None:
    logits, regions = pair(3)
    alone = torch.stack([loss(logits[i : i + 1], regions[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(loss(logits, regions), alone.mean())


def test_the_published_training_loss_mixes_volumes() -> None:
    """Twice the same volume is no longer right when everything is: half the Dice is lost to the denominator."""
    _, regions = pair()
    sure = torch.where(regions, 40.0, -40.0)
    assert published_dice_loss(sure, regions) == pytest.approx(0, abs=1e-6)
    assert published_dice_loss(sure.repeat(2, 1, 1, 1, 1), regions.repeat(2, 1, 1, 1, 1)) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_0_for_what_is_right_also_where_there_is_no_tumour(loss) -> None:
    _, regions = pair(2)
    if loss is published_dice_loss:
        regions = regions[:1]
    for truth in (regions, torch.zeros_like(regions)):
        assert loss(torch.where(truth, 60.0, -60.0), truth) == pytest.approx(0, abs=1e-6)
    assert loss(torch.full(regions.shape, 60.0), torch.zeros_like(regions)) > 0.5


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_the_formula(loss) -> None:
    logits, regions = pair()
    assert torch.autograd.gradcheck(lambda z: loss(z, regions), logits.requires_grad_())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(loss, dtype: torch.dtype) -> None:
    """The sums are of more than float16's largest number, 65504, and where a bfloat16 sum stands still, at 512 for steps of one."""
    logits, regions = torch.full((1, 3, 48, 48, 48), 8.0, dtype=dtype), torch.ones(1, 3, 48, 48, 48, dtype=torch.bool)
    assert loss(logits, regions).dtype == torch.float32
    torch.testing.assert_close(loss(logits, regions), loss(logits.float(), regions))


@pytest.mark.parametrize("loss", LOSSES)
def test_regions_of_another_shape_are_refused(loss) -> None:
    with pytest.raises(ValueError, match=r"one shape, not \[1, 3, 6, 5, 4\] and \[1, 1, 6, 5, 4\]"):
        loss(pair()[0], pair()[1][:, :1])
