"""Attention in pieces is attention: whatever the chunks, forwards and backwards, and without the map in memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.attention import attend, create, record
from shared.attention.chunked import chunked_attend, tiled_attend
from shared.attention.measure import peak_bytes

CHUNKS = [{"query_chunk": 3, "key_chunk": 4}, {"query_chunk": 1, "key_chunk": 1}, {"query_chunk": 99, "key_chunk": 5}, {}]


def sample(*, queries: int = 7, keys: int = 11, out_width: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(2, 3, queries, 4, dtype=dtype),
        torch.randn(2, 3, keys, 4, dtype=dtype),
        torch.randn(2, 3, keys, out_width, dtype=dtype),
    )


@settings(max_examples=30, deadline=None)
@given(
    queries=st.integers(1, 9),
    keys=st.integers(1, 9),
    query_chunk=st.integers(1, 10),
    key_chunk=st.integers(1, 10),
    bias_shape=st.sampled_from([None, (2, 3, 0, 0), (3, 0, 0), (1, 1, 1, 0), (2, 1, 0, 1)]),
    mask_shape=st.sampled_from([None, (2, 1, 1, 0), (0, 0), (0,)]),
    scale=st.sampled_from([None, 1.0]),
)
def test_it_is_attend(queries, keys, query_chunk, key_chunk, bias_shape, mask_shape, scale) -> None:
    query, key, value = sample(queries=queries, keys=keys, out_width=5)

    def sized(shape: tuple[int, ...]) -> tuple[int, ...]:
        """Zeros stand for the number of queries and of keys, from the end."""
        ends = {1: keys, 2: queries}
        return tuple(ends[len(shape) - axis] if extent == 0 else extent for axis, extent in enumerate(shape))

    bias = None if bias_shape is None else torch.randn(sized(bias_shape), dtype=torch.float64)
    mask = None if mask_shape is None else torch.rand(sized(mask_shape)) < 0.6
    given = {"bias": bias, "mask": mask, "scale": scale}
    answer = chunked_attend(query, key, value, **given, query_chunk=query_chunk, key_chunk=key_chunk)
    # The same sums in another order, in float64.
    torch.testing.assert_close(answer, attend(query, key, value, **given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunks", CHUNKS)
def test_gradients_are_those_of_attend(chunks: dict[str, int]) -> None:
    values = [*sample(), torch.randn(3, 7, 11, dtype=torch.float64)]
    seen = torch.rand(7, 11) < 0.7
    seen[2] = False
    found = []
    for attention, settings_ in ((attend, {}), (chunked_attend, chunks)):
        query, key, value, bias = (x.clone().requires_grad_() for x in values)
        attention(query, key, value, bias=bias, mask=seen, **settings_).square().sum().backward()
        found.append([x.grad for x in (query, key, value, bias)])
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_large_logits_do_not_overflow() -> None:
    query, key, value = sample(dtype=torch.float32)
    answer = chunked_attend(1000 * query, key, value, key_chunk=2)
    torch.testing.assert_close(answer, attend(1000 * query, key, value), rtol=1e-4, atol=1e-4)


def test_half_precision_is_summed_in_single() -> None:
    query, key, value = sample(keys=501, dtype=torch.float32)
    rough = chunked_attend(*(x.bfloat16() for x in (query, key, value)), key_chunk=10)
    assert rough.dtype == torch.bfloat16
    exact = attend(*(x.bfloat16().double() for x in (query, key, value)))
    # One rounding of the answer, 2 ** -9, and none of the 51 partial sums.
    torch.testing.assert_close(rough.double(), exact, rtol=2**-8, atol=1e-5)


def test_neither_way_holds_the_map() -> None:
    query, key, value = (torch.randn(1, 1, 2048, 4).requires_grad_() for _ in range(3))
    chunks = {"query_chunk": 128, "key_chunk": 256}
    quarter = 2048 * 2048 * 4 / 4
    with torch.no_grad():
        assert peak_bytes(lambda: chunked_attend(query, key, value, **chunks)) < quarter
    assert peak_bytes(lambda: chunked_attend(query, key, value, **chunks).sum().backward()) < quarter


def test_it_compiles_for_training_in_several_chunks() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(chunked_attend, fullgraph=True, backend="aot_eager")
    query, key, value = (x.requires_grad_() for x in sample())
    answer = compiled(query, key, value, query_chunk=4, key_chunk=6)
    torch.testing.assert_close(answer, attend(query, key, value), rtol=1e-12, atol=1e-12)
    answer.sum().backward()
    assert query.grad is not None


def test_the_recorded_map_times_the_values_is_the_answer() -> None:
    class Pieces(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return chunked_attend(*inputs, query_chunk=3, key_chunk=4)

    block, (query, key, value) = Pieces(), sample()
    with record(block) as maps:
        answer = block(query, key, value)
    torch.testing.assert_close(maps[""].dense() @ value, answer, rtol=1e-12, atol=1e-12)


def test_the_block_is_multi_head_attention() -> None:
    torch.manual_seed(0)
    block = create("chunked", channels=16, heads=4, query_chunk=4, key_chunk=3).double()
    known = create("mhsa", channels=16, heads=4).double()
    known.load_state_dict(block.state_dict())
    x, mask = torch.randn(2, 10, 16, dtype=torch.float64), torch.rand(2, 1, 1, 10) < 0.7
    torch.testing.assert_close(block(x, mask), known(x, mask), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tile", [1, 3, 7, 50])
def test_tiles_change_neither_answer_nor_gradients(tile: int) -> None:
    def weigh(logits: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is not None
        return torch.sigmoid(logits) * mask

    values, mask = sample(), torch.rand(2, 1, 7, 11) < 0.6
    found = []
    for rows in (None, tile):
        inputs = [x.clone().requires_grad_() for x in values]
        answer = tiled_attend(*inputs, weigh=weigh, mask=mask, tile=rows)
        answer.square().sum().backward()
        found.append([answer, *(x.grad for x in inputs)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"heads": 3}, "heads=3 must divide channels=16"),
        ({"query_chunk": 0}, "query_chunk=0"),
        ({"key_chunk": -1}, "key_chunk=-1"),
    ],
)
def test_wrong_settings_are_named(settings_: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("chunked", channels=16, **settings_)


def test_a_wrong_chunk_is_named() -> None:
    with pytest.raises(ValueError, match="key_chunk=0"):
        chunked_attend(*sample(), key_chunk=0)
