"""DaViT: windows of tokens, groups of channels."""

from __future__ import annotations

import pytest
import torch

from shared.attention import create, record
from shared.attention.davit import ChannelGroupAttention
from tests.shared.attention.depth import give_depth
from tests.shared.attention.random_blocks import load, random_block, random_tokens


def test_the_published_form_gives_weight_to_padding_and_says_so() -> None:
    settings = {"channels": 16, "heads": 2, "window": 4}
    sound, published = (random_block(name, **settings) for name in ("davit_spatial", "davit_spatial_published"))
    load(published, sound.state_dict())
    x = random_tokens(2, 35, 16)
    for block, full in ((sound, True), (published, False)):
        with record(block) as maps:
            block(x, grid=(5, 7))
        found = maps["attention"]
        assert found.shape == (2, 2, 35, 35)
        sums = found.dense().sum(-1).unflatten(-1, (5, 7))
        # Rows of a softmax in float64.
        torch.testing.assert_close(sums[..., :4, :4], torch.ones_like(sums[..., :4, :4]), rtol=1e-12, atol=0)
        assert torch.allclose(sums[..., 4:], torch.ones_like(sums[..., 4:])) == full
    assert not torch.allclose(sound(x, grid=(5, 7)), published(x, grid=(5, 7)))
    x = random_tokens(2, 32, 16)
    assert torch.equal(sound(x, grid=(4, 8)), published(x, grid=(4, 8))), "where windows fit there is no padding"


def test_a_window_and_its_larger_padded_form_answer_the_same() -> None:
    """Masked padding changes nothing: one window of the grid's size, or of any larger one."""
    x = random_tokens(2, 15, 16)
    exact = random_block("davit_spatial", channels=16, heads=2, window=(3, 5))
    larger = load(random_block("davit_spatial", channels=16, heads=2, window=7), exact.state_dict())
    # float64 sums in another order.
    torch.testing.assert_close(exact(x, grid=(3, 5)), larger(x, grid=(3, 5)), rtol=1e-10, atol=1e-10)


def test_volumes_of_one_slice_are_images() -> None:
    x = random_tokens(2, 35, 16)
    for name, flat, deep in (
        ("davit_spatial", {"heads": 2, "window": 3}, {"heads": 2, "window": (1, 3, 3)}),
        ("davit_channel", {"groups": 2}, {"groups": 2}),
    ):
        image = random_block(name, channels=16, **flat)
        volume = give_depth(image, random_block(name, channels=16, rank=3, **deep))
        # float64 sums in another order.
        torch.testing.assert_close(image(x, grid=(5, 7)), volume(x, grid=(1, 5, 7)), rtol=1e-10, atol=1e-10)


def groups(channels: int, count: int) -> ChannelGroupAttention:
    torch.manual_seed(0)
    return ChannelGroupAttention(channels=channels, groups=count, qkv_bias=True).double()


def test_channels_are_attended_as_the_formula_says() -> None:
    block, x = groups(8, 2), random_tokens(2, 11, 8)
    query, key, value = block.qkv(x).split(8, dim=-1)
    expected = torch.zeros_like(x)
    for group in (slice(0, 4), slice(4, 8)):
        weights = torch.softmax(torch.einsum("bnc,bnd->bcd", key[..., group], value[..., group]) / 4**0.5, dim=-1)
        expected[..., group] = torch.einsum("bcd,bnd->bnc", weights, query[..., group])
    with record(block) as maps:
        found = block(x)
    # float64 sums in another order.
    torch.testing.assert_close(found, block.out(expected), rtol=1e-10, atol=1e-10)
    assert maps[""].shape == (2, 2, 4, 4)
    torch.testing.assert_close(maps[""].dense().sum(-1), torch.ones(2, 2, 4, dtype=torch.float64))


def test_channel_attention_knows_no_places() -> None:
    block, x = groups(16, 4), random_tokens(2, 11, 16)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(2))
    # Sums over positions in another order.
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order], rtol=1e-10, atol=1e-10)


def test_one_channel_in_each_group_mixes_nothing() -> None:
    block, x = groups(8, 8), random_tokens(2, 11, 8)
    # A softmax over one channel is 1.
    torch.testing.assert_close(block(x), block.out(block.qkv(x)[..., :8]), rtol=1e-12, atol=1e-12)


def test_channel_maps_are_summed_in_float32_under_autocast() -> None:
    """Over 4096 positions a bfloat16 sum would lose whole units of a logit."""
    block, x = groups(16, 2).float(), random_tokens(1, 4096, 16).float()
    with torch.no_grad(), record(block) as exact:
        block(x)
    with torch.no_grad(), record(block) as rough, torch.autocast("cpu", dtype=torch.bfloat16):
        block(x)
    assert rough[""].dense().dtype == torch.bfloat16
    # Keys and values are rounded to 8 bits before they meet, which moves a weight by under a hundredth on average.
    assert (rough[""].dense().float() - exact[""].dense()).abs().mean() < 0.01


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="heads=3 must divide channels=16"):
        create("davit_spatial", channels=16, heads=3)
    with pytest.raises(ValueError, match="groups=3 must divide channels=16"):
        create("davit_channel", channels=16, groups=3)
    with pytest.raises(ValueError, match="must be positive: channels=16, expansion=0"):
        create("davit_channel", channels=16, groups=2, expansion=0)
    with pytest.raises(ValueError, match="rank must be 1, 2 or 3, not 4"):
        create("davit_spatial", channels=16, heads=2, rank=4)
    for name in ("davit_spatial", "davit_channel"):
        with pytest.raises(ValueError, match=r"grid must have 2 axes, not \(12,\)"):
            random_block(name, channels=16)(random_tokens(1, 12, 16), grid=(12,))
