"""Weights that are no softmax: signed ones, and rectified ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shared.attention import create, record
from shared.attention.chunked import tiled_attend
from shared.attention.maps import TILE_BYTES
from shared.attention.measure import peak_bytes
from shared.attention.relu_attention import rectified_weights
from shared.attention.signed import signed_weights

both = pytest.mark.parametrize("name", ["cog", "rela"])


def built(name: str) -> tuple[torch.nn.Module, Tensor]:
    torch.manual_seed(0)
    return create(name, channels=16, heads=4).double(), torch.randn(2, 9, 16, dtype=torch.float64)


def test_sizes_of_signed_weights_sum_to_one_and_signs_are_those_of_the_products() -> None:
    logits = torch.randn(5, 7, dtype=torch.float64)
    weights = signed_weights(logits)
    torch.testing.assert_close(weights.abs().sum(-1), torch.ones(5, dtype=torch.float64))
    assert torch.equal(weights.sign(), logits.sign())
    torch.testing.assert_close(signed_weights(logits.abs()), logits.abs().softmax(-1))


def test_an_opposing_key_is_subtracted() -> None:
    logits = torch.randn(5, 7, dtype=torch.float64)
    turned = logits.clone()
    turned[:, 3] *= -1
    expected = signed_weights(logits)
    expected[:, 3] *= -1
    torch.testing.assert_close(signed_weights(turned), expected)


def test_rectified_weights_are_zero_where_query_and_key_disagree() -> None:
    block, x = built("rela")
    with record(block) as maps:
        block(x)
    dense = maps[""].dense()
    assert dense.min() == 0
    assert 0.2 < (dense == 0).double().mean() < 0.8


def test_the_norm_makes_rectified_attention_blind_to_the_scale_of_queries() -> None:
    block, x = built("rela")
    expected = block(x)
    with torch.no_grad():
        block.qkv.weight[:16] *= 30
        block.qkv.bias[:16] *= 30
        block.norm.eps *= 30**2
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("weigh", [signed_weights, rectified_weights])
def test_the_recorded_map_times_the_values_is_the_answer(weigh) -> None:
    class Attention(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return tiled_attend(*inputs, weigh=weigh, tile=4)

    block = Attention()
    query, key, value = (torch.randn(2, 3, 9, 4, dtype=torch.float64).requires_grad_() for _ in range(3))
    with record(block, gradients=True) as maps:
        answer = block(query, key, value)
    found = maps[""]
    torch.testing.assert_close(found.dense() @ value, answer, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.dense(queries=[4, 1], heads=2, keys=[0, 5]), found.dense()[:, 2:3][:, :, [4, 1]][..., [0, 5]])
    answer.sum().backward()
    # d(sum of outputs)/dA_ij is the sum of value j.
    torch.testing.assert_close(found.gradient(), value.detach().sum(-1).unsqueeze(2).expand(found.shape))


@both
def test_padding_that_is_masked_is_as_if_it_were_not_there(name: str) -> None:
    block, x = built(name)
    padded = torch.cat([x, 100 * torch.randn(2, 3, 16, dtype=torch.float64)], dim=1)
    real = torch.arange(12) < 9
    torch.testing.assert_close(block(padded, real)[:, :9], block(x), rtol=1e-12, atol=1e-12)


@both
def test_a_query_without_keys_gets_nothing_and_finite_gradients(name: str) -> None:
    block, x = built(name)
    seen = torch.ones(9, 9, dtype=torch.bool)
    seen[4] = False
    answer = block(x, seen)
    torch.testing.assert_close(answer[:, 4], block.out.bias.expand(2, 16))
    answer.square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in block.parameters())


@both
def test_tokens_have_no_order(name: str) -> None:
    block, x = built(name)
    order = torch.randperm(9)
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weigh", [signed_weights, rectified_weights])
def test_large_maps_are_never_whole(weigh) -> None:
    query, key, value = (torch.randn(1, 1, 2048, 4).requires_grad_() for _ in range(3))
    quarter = 2048 * 2048 * 4 / 4

    def run() -> Tensor:
        return tiled_attend(query, key, value, weigh=weigh, tile=64)

    with torch.no_grad():
        assert peak_bytes(run) < quarter
    assert peak_bytes(lambda: run().sum().backward()) < quarter


def test_the_default_tile_is_of_64_megabytes() -> None:
    rows = []

    def weigh(logits: Tensor, mask: Tensor | None) -> Tensor:
        rows.append(logits.shape[2])
        return logits

    x = torch.randn(1, 1, 6000, 1)
    with torch.no_grad():
        tiled_attend(x, x, x, weigh=weigh)
    assert sum(rows) == 6000
    assert max(rows) == TILE_BYTES // (4 * 6000)


@both
def test_wrong_heads_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="heads=5 must divide channels=16"):
        create(name, channels=16, heads=5)
