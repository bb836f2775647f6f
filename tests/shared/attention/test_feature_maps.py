"""Hedgehog and log-normal features: positive, of known size, and as near the softmax as their papers say."""

from __future__ import annotations

import pytest
import torch

from shared.attention import create, record
from shared.attention.attend import attend, merge_heads, split_heads
from shared.attention.feature_maps import HedgehogFeatures, log_normal_attend, log_normal_features, matched_deviation
from tests.shared.attention.random_blocks import load, random_block, random_tokens


def test_hedgehog_features_are_two_softmaxes() -> None:
    features = HedgehogFeatures(heads=2, head_channels=4, features=6).double()
    x = random_tokens(2, 2, 5, 4)
    answer = features(x)
    assert answer.shape == (2, 2, 5, 12)
    assert (answer > 0).all()
    # They start with the identity: two columns are empty. float64 rounding.
    padded = torch.nn.functional.pad(x, (0, 2))
    torch.testing.assert_close(answer, torch.cat((padded.softmax(-1), (-padded).softmax(-1)), dim=-1), rtol=1e-10, atol=1e-10)


def test_hedgehog_features_of_huge_numbers_are_not_zero() -> None:
    features = HedgehogFeatures(heads=1, head_channels=4, features=4)
    x = torch.tensor([1e4, 0.0, 0.0, -1e4]).reshape(1, 1, 1, 4).requires_grad_()
    answer = features(x)
    answer.log().sum().backward()
    assert (answer > 0).all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("over_batch", [False, True])
def test_exponents_spread_as_the_fit_says(over_batch: bool) -> None:
    query, key = 3 * random_tokens(2, 2, 9, 4), random_tokens(2, 2, 7, 4, seed=2)
    query[0] *= 2
    target, of_query, of_key = matched_deviation(query, key, over_batch=over_batch)
    assert target.shape == ((1, 1, 1, 1) if over_batch else (2, 1, 1, 1))
    # Of a softmax of q.k the logarithm's variance is the product of theirs; the fit maps it to the exponents'. float64 rounding.
    torch.testing.assert_close(2 * 0.148552 * target**2 - 0.35487, of_query**2 * of_key**2, rtol=1e-10, atol=1e-10)
    of_queries, of_keys = log_normal_features(query, key, over_batch=over_batch)
    # The largest of a query and of a head's keys is 1; differences of logarithms are those of the scaled exponents.
    assert (of_queries.amax(-1) == 1).all()
    assert (of_keys.amax((-2, -1)) == 1).all()
    expected = (query - query[..., :1]) * target / of_query, (key - key[..., :1]) * target / of_key
    for features, exponents in zip((of_queries, of_keys), expected, strict=True):
        torch.testing.assert_close((features / features[..., :1]).log(), exponents, rtol=1e-10, atol=1e-10)


def test_deviations_are_constants_to_the_gradient() -> None:
    query, key, value = (x.requires_grad_() for x in random_tokens(3, 1, 2, 9, 4).unbind())
    target, of_query, of_key = matched_deviation(query, key)
    found = torch.autograd.grad(log_normal_attend(query, key, value).square().sum(), (query, key, value))
    logits = (query * (target / of_query)).exp() @ (key * (target / of_key)).exp().mT
    expected = torch.autograd.grad((logits / logits.sum(-1, keepdim=True) @ value).square().sum(), (query, key, value))
    for one, other in zip(found, expected, strict=True):
        # 1e-8 is added to the sum before the division, where the largest feature is 1.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_equal_tokens_have_finite_answers() -> None:
    block = random_block("lln", channels=16, heads=2)
    block.qkv.weight.data.zero_()
    block.qkv.bias.data.zero_()
    assert block(random_tokens(1, 5, 16)).isfinite().all(), "no spread at all"


def test_huge_logits_do_not_overflow() -> None:
    query, key, value = (1e3 * x.float() for x in random_tokens(3, 1, 2, 9, 4))
    assert log_normal_attend(query, key, value).isfinite().all()


def test_of_one_sample_the_published_form_is_the_same() -> None:
    for name in ("lln", "lln_diagonal"):
        sound = random_block(name, channels=16, heads=2)
        published = load(random_block(f"{name}_published", channels=16, heads=2), sound.state_dict())
        one, two = random_tokens(1, 11, 16), random_tokens(2, 11, 16) * torch.tensor([1.0, 3.0]).reshape(2, 1, 1)
        # float64 sums in another order.
        torch.testing.assert_close(sound(one), published(one), rtol=1e-10, atol=1e-10)
        assert not torch.allclose(sound(two), published(two))


@pytest.mark.parametrize("block", [4, 11, 64])
def test_the_diagonal_is_softmax_attention_of_neighbours(block: int) -> None:
    attention, x = random_block("lln_diagonal", channels=16, heads=2, block=block), random_tokens(2, 11, 16)
    with record(attention) as maps:
        answer = attention(x)
    assert list(maps) == ["diagonal", "linear"]
    heads = [split_heads(each, 2) for each in attention.qkv(x).chunk(3, dim=-1)]
    near = torch.cat([attend(*(each[:, :, start : start + block] for each in heads)) for start in range(0, 11, block)], dim=2)
    expected = attention.out(merge_heads(near + log_normal_attend(*heads)) / 2)
    # float64 sums in another order.
    torch.testing.assert_close(answer, expected, rtol=1e-10, atol=1e-10)
    both = (maps["diagonal"].dense() + maps["linear"].dense()) / 2
    torch.testing.assert_close(attention.out(merge_heads(both @ heads[2])), answer, rtol=1e-10, atol=1e-10)


def test_a_block_is_as_long_as_a_head_is_wide() -> None:
    assert create("lln_diagonal", channels=24, heads=4).block == 6


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="block must be positive, not 0"):
        create("lln_diagonal", channels=16, block=0)
    with pytest.raises(ValueError, match="must be positive: heads=8, head_channels=2, features=0"):
        create("hedgehog", channels=16, features=0)
