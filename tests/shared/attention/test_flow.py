"""Flow-Attention: flow is conserved, and in the causal form it never runs backwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shared.attention import create, record
from shared.attention.flow import causal_flow_attend, flow_attend
from shared.attention.measure import peak_bytes
from tests.shared.attention.random_blocks import load, random_block, random_tokens


def running_sums(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The causal form as the paper's code has it: a running sum of k^T v for every token."""
    q, k, count = query.sigmoid(), key.sigmoid(), torch.arange(1, query.shape[2] + 1, dtype=query.dtype).unsqueeze(-1)

    def flow(x: Tensor, other: Tensor) -> Tensor:
        return ((x + 1e-6) * (other.cumsum(2) + 1e-6)).sum(-1, keepdim=True)

    incoming, outgoing = count / flow(q, k), count / flow(k, q)
    sink, source = flow(q, k * outgoing) / count, (flow(k, q * incoming) / count).clamp(-1, 1).exp()
    competed = value * source / source.cumsum(2) * count
    sums = torch.einsum("bhnd,bhne->bhnde", k, competed).cumsum(2)
    return torch.einsum("bhnd,bhnde->bhne", q * incoming / count, sums) * sink.sigmoid()


@pytest.mark.parametrize("chunk", [1, 4, 11, 64])
def test_chunks_change_no_answer(chunk: int) -> None:
    query, key, value = random_tokens(3, 2, 2, 11, 4)
    # float64 sums in another order.
    torch.testing.assert_close(causal_flow_attend(query, key, value, chunk=chunk), running_sums(query, key, value), rtol=1e-10, atol=1e-10)


def test_memory_does_not_grow_as_a_state_for_every_token() -> None:
    x = torch.randn(1, 1, 1024, 64)
    assert peak_bytes(lambda: causal_flow_attend(x, x, x)) < 1024 * 64 * 64 * 4 / 2, "half of what running sums of k^T v take"


def test_what_comes_later_changes_nothing() -> None:
    block, x = random_block("flow_causal", channels=16, heads=2, chunk=4), random_tokens(2, 11, 16)
    # Chunks of other numbers of tokens sum in another order.
    torch.testing.assert_close(block(x[:, :6]), block(x)[:, :6], rtol=1e-10, atol=1e-10)
    with record(block) as maps:
        block(x)
    dense = maps[""].dense()
    assert ((dense > 0) == torch.ones(11, 11, dtype=torch.bool).tril()).all()
    assert torch.equal(maps[""].dense(queries=[7, 2], heads=1, keys=slice(1, 9)), dense[:, 1:, [7, 2], 1:9])


def test_equal_tokens_pass_on_their_value() -> None:
    """Nobody wins: each gets sigmoid(1) of the value that all have, since one unit flows in and one out."""
    x = random_tokens(1, 2, 1, 4)
    value = random_tokens(1, 2, 1, 3, seed=2)
    for attended in (
        flow_attend(x.expand(-1, -1, 5, -1), x.expand(-1, -1, 9, -1), value.expand(-1, -1, 9, -1)),
        causal_flow_attend(*(each.expand(-1, -1, 9, -1) for each in (x, x, value)), chunk=4),
    ):
        expected = value.expand_as(attended) * torch.sigmoid(torch.ones(()))
        # 1e-6 is added to each factor.
        torch.testing.assert_close(attended, expected, rtol=1e-4, atol=1e-4)


def test_a_context_of_its_own_gives_keys_and_values() -> None:
    block, x, context = random_block("flow", channels=16, heads=2), random_tokens(2, 5, 16), random_tokens(2, 8, 16, seed=2)
    with record(block) as maps:
        answer = block(x, context)
    assert answer.shape == x.shape
    assert maps[""].shape == (2, 2, 5, 8)
    assert torch.equal(block(x, x), block(x))


def test_widths_may_differ() -> None:
    for name in ("flow", "flow_causal"):
        assert create(name, channels=16, heads=2, inner_channels=6, out_channels=5)(torch.randn(1, 7, 16)).shape == (1, 7, 5)


def test_the_causal_form_takes_the_weights_of_the_other() -> None:
    load(random_block("flow_causal", channels=16), random_block("flow", channels=16).state_dict())


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="chunk must be positive, not 0"):
        create("flow_causal", channels=16, chunk=0)
    for name in ("flow", "flow_causal"):
        with pytest.raises(ValueError, match="heads=4 must divide the inner width 6"):
            create(name, channels=16, heads=4, inner_channels=6)
