"""A reversible chain gives the gradients of an ordinary one from its output alone, whatever its halves do."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from shared.layers.reversible import ReversibleBlock, ReversibleSequence

CHANNELS = 8
"""Of the whole; a half has 4."""


def half(*, drop: float = 0.0) -> nn.Module:
    return nn.Sequential(nn.GroupNorm(2, 4), nn.LeakyReLU(0.01), nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(drop))


def chain(depth: int, *, drop: float = 0.0) -> ReversibleSequence:
    torch.manual_seed(0)
    return ReversibleSequence(ReversibleBlock(half(drop=drop), half(drop=drop)) for _ in range(depth))


def image(*, dtype: torch.dtype = torch.float64, batch: int = 2) -> Tensor:
    return torch.randn(batch, CHANNELS, 5, 6, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()


def ordinary(blocks: ReversibleSequence) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        for block in blocks:
            x = block.plain(x)
        return x

    return run


def gradients(run: Callable[[Tensor], Tensor], x: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    answer = run(x)
    cotangent = torch.randn(answer.shape, dtype=answer.dtype, generator=torch.Generator().manual_seed(2))
    return torch.autograd.grad((answer * cotangent).sum(), [x, *weights])


def kept(run: Callable[[Tensor], Tensor], x: Tensor, blocks: nn.Module) -> int:
    """Numbers kept for the gradient, without the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in blocks.parameters()}
    found: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes() // value.element_size()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        answer = run(x)
    del answer
    return sum(found.values())


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_the_ordinary_ones(depth: int, training: bool) -> None:
    blocks, x = chain(depth).double().train(training), image()
    weights = list(blocks.parameters())
    for one, other in zip(gradients(blocks, x, weights), gradients(ordinary(blocks), x, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_answers_are_the_ordinary_ones_to_the_last_bit() -> None:
    blocks, x = chain(3), image(dtype=torch.float32)
    expected = ordinary(blocks)(x)
    assert torch.equal(blocks(x), expected)
    with torch.no_grad():
        assert torch.equal(blocks(x), expected)


def test_it_can_be_run_backwards() -> None:
    blocks, x = chain(3).double(), image()
    torch.testing.assert_close(blocks.inverse(blocks(x)), x)
    torch.testing.assert_close(blocks[0].inverse(blocks[0](x)), x)


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_memory_does_not_grow_with_depth(depth: int) -> None:
    blocks, x = chain(depth), image(dtype=torch.float32)
    assert kept(blocks, x, blocks) == x.numel()
    assert kept(ordinary(blocks), x, blocks) > depth * x.numel()


def test_weights_that_are_not_trained_get_no_gradient() -> None:
    blocks, x = chain(2).double(), image()
    blocks[0].f.requires_grad_(False)
    weights = [weight for weight in blocks.parameters() if weight.requires_grad]
    for one, other in zip(gradients(blocks, x, weights), gradients(ordinary(blocks), x, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert all(weight.grad is None for weight in blocks[0].f.parameters())


def test_halves_may_share_their_weights() -> None:
    shared = half()
    blocks, x = ReversibleSequence([ReversibleBlock(shared, half()), ReversibleBlock(half(), shared)]).double(), image()
    weights = list(blocks.parameters())
    for one, other in zip(gradients(blocks, x, weights), gradients(ordinary(blocks), x, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_halves_without_weights_or_use_of_their_input_are_fine() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.ones(4, 1, 1).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.value.expand_as(x)

    blocks, x = ReversibleSequence([ReversibleBlock(nn.Tanh(), Constant())]), image()
    weights = list(blocks.parameters())
    for one, other in zip(gradients(blocks, x, weights), gradients(ordinary(blocks), x, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_weights_exchanged_for_one_pass_get_their_own_gradients() -> None:
    blocks, x = chain(2).double(), image()
    exchanged = {name: (2 * weight).detach().requires_grad_() for name, weight in blocks.named_parameters()}
    doubled = copy.deepcopy(blocks)
    doubled.load_state_dict(exchanged)
    found = gradients(lambda value: torch.func.functional_call(blocks, exchanged, (value,)), x, list(exchanged.values()))
    for one, other in zip(found, gradients(ordinary(doubled), x, list(doubled.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_dropout_drops_the_same_again() -> None:
    blocks, x = chain(3, drop=0.5).double().train(), image()
    weights = list(blocks.parameters())
    torch.manual_seed(3)
    found = gradients(blocks, x, weights)
    torch.manual_seed(3)
    for one, other in zip(found, gradients(ordinary(blocks), x, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_gradients_leave_the_random_numbers_that_follow_alone() -> None:
    blocks, x = chain(2, drop=0.5).double().train(), image()
    answer = blocks(x)
    state = torch.get_rng_state()
    answer.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_under_autocast_streams_are_float32_and_halves_are_not(given: torch.dtype) -> None:
    blocks, x = chain(3), image(dtype=torch.float32).detach().to(given).requires_grad_()
    seen = []
    blocks[0].f[2].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    weights = list(blocks.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = blocks(x)
        expected = ordinary(blocks)(x.float())
    assert answer.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}
    assert torch.equal(answer, expected)
    # Outside of autocast, as training loops do: recomputation must find it again by itself.
    one = torch.autograd.grad(answer.square().sum(), [x, *weights])
    other = torch.autograd.grad(expected.square().sum(), [x, *weights])
    assert set(seen) == {torch.bfloat16}
    for a, b in zip(one, other, strict=True):
        # Streams recomputed to 1e-6 may round to the other of two neighbours in bfloat16, 2 ** -8 apart.
        assert (a - b).float().norm() <= 0.01 * b.float().norm()


def test_autocast_s_cache_is_left_clean() -> None:
    """A weight cast within the chain, without gradients, must not be what another user of the weight finds."""
    shared = nn.Conv2d(4, 4, 1)
    block, x = ReversibleBlock(shared, half()), image(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        block(x)
        shared(x[:, :4]).sum().backward()
    assert shared.weight.grad is not None
    assert shared.weight.grad.any()


def test_a_compiled_chain_trains_alike() -> None:
    torch._dynamo.reset()
    blocks, x = chain(2).double(), image()
    weights = list(blocks.parameters())
    compiled = torch.compile(blocks, backend="aot_eager")
    for one, other in zip(gradients(compiled, x, weights), gradients(ordinary(blocks), x, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_chain_of_none_is_nothing() -> None:
    x = image()
    assert torch.equal(ReversibleSequence()(x), x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_dropout_and_autocast_are_repeated() -> None:
    blocks, x = chain(3, drop=0.5).cuda().train(), image(dtype=torch.float32).detach().cuda().requires_grad_()
    found = []
    for run in (blocks, ordinary(blocks)):
        torch.manual_seed(3)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            answer = run(x)
        found.append(torch.autograd.grad(answer.square().sum(), [x, *blocks.parameters()]))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 0.01 * other.norm()


@pytest.mark.parametrize("bad", [nn.BatchNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True)])
def test_running_statistics_are_refused(bad: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf"g\.1, a {type(bad).__name__}, has running statistics, which recomputation would update twice"):
        ReversibleBlock(half(), nn.Sequential(nn.Conv2d(4, 4, 1), bad))
    ReversibleBlock(half(), nn.InstanceNorm2d(4))


def test_an_odd_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="even number of channels, not 7"):
        chain(1)(torch.randn(1, 7, 4, 4))


def test_only_reversible_blocks_make_a_chain() -> None:
    with pytest.raises(ValueError, match=r"blocks\[1\] must be a ReversibleBlock, not Tanh"):
        ReversibleSequence([ReversibleBlock(half(), half()), nn.Tanh()])
