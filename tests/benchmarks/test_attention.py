"""Fused attention beside the formula written out, in one process: what is saved in time and in memory.

Every pair is first checked to give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention import create, neighborhood_attend, record, window_attend
from shared.attention.attend import merge_heads, split_heads
from shared.explain.relevance import token_relevance

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS, CHANNELS, HEADS = 4096, 64, 4


def explicit(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return torch.softmax(scale * query @ key.mT, dim=-1) @ value


def training(forward: Callable[..., Tensor], x: Tensor, block: nn.Module) -> Callable[[], object]:
    return lambda: torch.autograd.grad(forward(x).square().mean(), [x, *block.parameters()], allow_unused=True)


def inference(forward: Callable[..., Tensor], x: Tensor) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            forward(x)

    return run


def made(name: str, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    block = create(name, **settings).to(DEVICE)
    for name, weight in block.named_parameters():
        if name == "gamma":
            weight.data.fill_(0.5)
    return block


def naive_self_attention(block: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        query, key, value = (split_heads(part, HEADS) for part in block.qkv(x).chunk(3, -1))
        return block.out(merge_heads(explicit(query, key, value, (CHANNELS // HEADS) ** -0.5)))

    return forward


def naive_position_attention(block: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2).mT for layer in (block.query, block.key, block.value))
        return block.gamma * explicit(query, key, value, 1.0).mT.reshape(x.shape) + x

    return forward


def sequence() -> Tensor:
    return torch.randn(1, TOKENS, CHANNELS, device=DEVICE)


def picture() -> Tensor:
    return torch.randn(1, CHANNELS, 64, 64, device=DEVICE)


PAIRS = {
    "mhsa": (lambda: made("mhsa", channels=CHANNELS, heads=HEADS), naive_self_attention, sequence),
    "pam": (lambda: made("pam", channels=CHANNELS), naive_position_attention, picture),
}


@pytest.mark.parametrize("way", ["written out", "fused"])
@pytest.mark.parametrize("phase", ["inference", "training"])
@pytest.mark.parametrize("name", PAIRS)
def test_softmax_attention_of_4096_tokens(measure, name: str, phase: str, way: str) -> None:
    make, naive, inputs = PAIRS[name]
    block, x = make(), inputs()
    forward = naive(block) if way == "written out" else block
    torch.testing.assert_close(naive(block)(x), block(x), rtol=1e-4, atol=1e-4)
    run = inference(forward, x) if phase == "inference" else training(forward, x.requires_grad_(), block)
    measure(f"{name}, {TOKENS} tokens, {phase}", way, run, images=1, rounds=3, tensors_only=True)


class Transformer(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(made("mhsa", channels=CHANNELS, heads=HEADS) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(F.layer_norm(x, (CHANNELS,)))
        return x[:, 0]


WAYS = ["whole maps kept", "recorded, class token's rows", "not recorded"]


@pytest.mark.parametrize("way", WAYS)
def test_maps_of_six_layers(measure, way: str) -> None:
    model, x = Transformer(6).to(DEVICE), torch.randn(1, 2048, CHANNELS, device=DEVICE)

    def run() -> None:
        with torch.no_grad():
            if way == "not recorded":
                model(x)
                return
            with record(model) as maps:
                model(x)
            if way == "whole maps kept":
                _ = [found.dense() for found in maps.values()]
            else:
                _ = [found.dense(queries=0) for found in maps.values()]

    measure("maps of 6 layers, 2048 tokens", way, run, images=1, rounds=3, tensors_only=True)


@pytest.mark.parametrize("way", ["maps and gradients held", "rebuilt from dO V^T in tiles"])
def test_chefers_relevance_of_four_layers(measure, way: str) -> None:
    model, x = Transformer(4).to(DEVICE), torch.randn(1, 2048, CHANNELS, device=DEVICE)

    def held() -> Tensor:
        maps, y = [], x
        for block in model.blocks:
            query, key, value = (split_heads(part, HEADS) for part in block.qkv(F.layer_norm(y, (CHANNELS,))).chunk(3, -1))
            maps.append(torch.softmax((CHANNELS // HEADS) ** -0.5 * query @ key.mT, dim=-1))
            y = y + block.out(merge_heads(maps[-1] @ value))
        gradients = torch.autograd.grad(y[:, 0, 3].sum(), maps)
        relevance = torch.eye(x.shape[1], device=DEVICE)
        for weights, gradient in zip(maps, gradients, strict=True):
            relevance = relevance + (weights * gradient).clamp(min=0).mean(1).detach() @ relevance
        return relevance[:, :1]

    def rebuilt() -> Tensor:
        return token_relevance(model, x, target=3)

    torch.testing.assert_close(held(), rebuilt(), rtol=1e-3, atol=1e-5)
    measure(
        "Chefer relevance, 4 layers, 2048 tokens", way, held if way.startswith("maps") else rebuilt, images=1, rounds=2, tensors_only=True
    )


def heads_on_a_grid() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(1, HEADS, 64, 64, CHANNELS // HEADS, device=DEVICE) for _ in range(3))  # type: ignore[return-value]


def unfolded(query: Tensor, key: Tensor, value: Tensor, kernel: int) -> Tensor:
    """Neighbourhood attention with ``kernel * kernel`` copies of keys and values; windows are clamped at the borders."""
    *_, height, width, channels = query.shape
    starts = [(torch.arange(extent, device=query.device) - kernel // 2).clamp(0, extent - kernel) for extent in (height, width)]
    reach = torch.arange(kernel, device=query.device)
    rows, columns = (start[:, None] + reach for start in starts)
    places = (rows[:, None, :, None] * width + columns[None, :, None, :]).reshape(height * width, kernel * kernel)
    keys, values = (x.flatten(2, 3)[:, :, places] for x in (key, value))
    flat = query.flatten(2, 3).unsqueeze(3)
    weights = torch.softmax(channels**-0.5 * flat @ keys.mT, dim=-1)
    return (weights @ values).reshape(query.shape)


def masked(query: Tensor, key: Tensor, value: Tensor, kernel: int) -> Tensor:
    """Window attention as attention of all to all, in which other windows are masked."""
    height, width = query.shape[2:4]
    rows, columns = torch.arange(height, device=query.device) // kernel, torch.arange(width, device=query.device) // kernel
    window = (rows[:, None] * (width // kernel + 1) + columns).flatten()
    logits = query.shape[-1] ** -0.5 * query.flatten(2, 3) @ key.flatten(2, 3).mT
    logits = logits.masked_fill(window[:, None] != window, float("-inf"))
    return (torch.softmax(logits, dim=-1) @ value.flatten(2, 3)).reshape(query.shape)


LOCAL = {
    "neighbourhood of 7 x 7": (lambda q, k, v: unfolded(q, k, v, 7), lambda q, k, v: neighborhood_attend(q, k, v, kernel=7), "unfolded"),
    "window of 7 x 7": (lambda q, k, v: masked(q, k, v, 7), lambda q, k, v: window_attend(q, k, v, window=(7, 7)), "map of all to all"),
}


@pytest.mark.parametrize("ours", [False, True], ids=["naive", "ours"])
@pytest.mark.parametrize("phase", ["inference", "training"])
@pytest.mark.parametrize("name", LOCAL)
def test_local_attention_on_64_x_64(measure, name: str, phase: str, ours: bool) -> None:
    naive, fused, way = LOCAL[name]
    query, key, value = heads_on_a_grid()
    torch.testing.assert_close(naive(query, key, value), fused(query, key, value), rtol=1e-4, atol=1e-5)
    chosen = fused if ours else naive

    def run() -> None:
        if phase == "inference":
            with torch.no_grad():
                chosen(query, key, value)
        else:
            inputs = [x.requires_grad_() for x in (query, key, value)]
            torch.autograd.grad(chosen(*inputs).square().mean(), inputs)

    measure(f"{name}, 64 x 64 positions, {phase}", "tiles, fused" if ours else way, run, images=1, rounds=3, tensors_only=True)
