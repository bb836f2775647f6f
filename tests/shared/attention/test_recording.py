"""Maps of a whole network, on request: exact, and gone without a trace."""

from __future__ import annotations

import threading
import weakref
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention import AttentionMap, GivenMap, SoftmaxMap, create, record
from shared.attention.measure import peak_bytes


class Transformer(nn.Module):
    def __init__(self, *, depth: int = 3, channels: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(create("mhsa", channels=channels, heads=heads) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(F.layer_norm(x, x.shape[-1:]))
        return x


def network(**settings: int) -> Transformer:
    torch.manual_seed(0)
    return Transformer(**settings).double()


X = torch.randn(2, 10, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_every_layer_is_there_by_its_name_and_maps_times_values_are_the_output() -> None:
    model = network()
    outputs = {}
    for name, block in model.blocks.named_children():
        block.out.register_forward_pre_hook(lambda module, arguments, name=name: outputs.update({f"blocks.{name}": arguments[0]}))
    with record(model) as maps:
        model(X)
    assert list(maps) == ["blocks.0", "blocks.1", "blocks.2"]
    for name, found in maps.items():
        assert isinstance(found, SoftmaxMap)
        weights = found.dense()
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 10, dtype=torch.float64))
        product = (weights @ found.value).transpose(1, 2).flatten(2)
        # float64 sums in another order.
        torch.testing.assert_close(product, outputs[name], rtol=1e-10, atol=1e-10)


def test_some_queries_heads_and_keys_are_the_same_numbers() -> None:
    with record(network()) as maps:
        network()(X)
    assert not maps, "another model's attention is not this one's"
    model = network()
    with record(model) as maps:
        model(X)
    found = maps["blocks.1"]
    whole = found.dense()
    torch.testing.assert_close(found.dense(queries=0), whole[:, :, :1])
    torch.testing.assert_close(found.dense(queries=[3, -1], heads=1), whole[:, 1:2, [3, 9]])
    torch.testing.assert_close(found.dense(queries=slice(2, 5), keys=[0, 7]), whole[:, :, 2:5][..., [0, 7]])
    torch.testing.assert_close(found.mean(), whole.mean(1))
    torch.testing.assert_close(found.lse, found.logits().logsumexp(-1))
    torch.testing.assert_close(torch.cat([found.dense(queries=rows) for rows in found.tiles()], dim=2), whole)
    with pytest.raises(IndexError, match="12 is outside 0 to 9"):
        found.dense(queries=12)


def test_gradients_of_maps_are_those_of_a_map_that_was_held() -> None:
    model = network(depth=1)
    with record(model, gradients=True) as maps:
        model(X)[:, 0].pow(2).sum().backward()
    found = maps["blocks.0"]

    block = model.blocks[0]
    held: list[Tensor] = []

    def explicit(x: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in block.qkv(x).chunk(3, -1))
        held.append(torch.softmax(query @ key.mT / 8**0.5, dim=-1))
        held[0].retain_grad()
        return block.out((held[0] @ value).transpose(1, 2).flatten(2))

    (X + explicit(F.layer_norm(X, (16,))))[:, 0].pow(2).sum().backward()
    torch.testing.assert_close(found.gradient(), held[0].grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.gradient(queries=0, heads=1), held[0].grad[:, 1:, :1], rtol=1e-9, atol=1e-12)


def test_gradients_that_were_not_recorded_are_asked_for_by_name() -> None:
    model = network()
    with record(model) as maps:
        model(X).sum().backward()
    with pytest.raises(RuntimeError, match=r"use record\(model, gradients=True\)"):
        maps["blocks.0"].gradient()


def test_a_loss_on_maps_trains() -> None:
    model = network()
    with record(model) as maps:
        model(X)
    maps["blocks.2"].logits(queries=0).pow(2).sum().backward()
    assert all(block.qkv.weight.grad.any() for block in model.blocks)


@pytest.mark.filterwarnings("ignore")
def test_other_peoples_attention_is_recorded_too() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, depth=2).eval()
    x = torch.randn(1, 3, 32, 32)
    plain = model(x)
    with record(model, where="*.1.attn") as maps:
        recorded = model(x)
    assert torch.equal(plain, recorded)
    assert list(maps) == ["blocks.1.attn"]
    assert maps["blocks.1.attn"].shape == (1, 3, 5, 5)

    layer = nn.TransformerEncoderLayer(16, 2, batch_first=True).double().train()
    layer.self_attn.dropout = 0.0
    for mode in (layer, layer.eval()):
        with record(mode) as maps:
            mode(X)
        assert {name: found.shape for name, found in maps.items()} == {"self_attn": (2, 2, 10, 10)}
    assert F.scaled_dot_product_attention.__module__ != "shared.attention.recording"


def test_causal_and_masked_calls_of_torch_are_understood() -> None:
    class Causal(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            blocked = F.scaled_dot_product_attention(x, x, x, is_causal=True)
            return blocked + F.scaled_dot_product_attention(x, x, x, attn_mask=torch.eye(10, dtype=torch.bool), scale=0.1)

    x = X.unflatten(-1, (2, 8)).transpose(1, 2)
    with record(model := Causal()) as maps:
        model(x)
    assert list(maps) == ["", "#2"]
    assert (maps[""].dense().triu(1) == 0).all()
    torch.testing.assert_close(maps["#2"].dense(), torch.eye(10, dtype=torch.float64).expand(2, 2, 10, 10))


def test_a_reducer_keeps_what_it_answers_and_memory_flat() -> None:
    model = network(depth=8)

    def one(name: str, found: AttentionMap) -> Tensor:
        return found.dense(queries=0).clone()

    def run(depth: int) -> int:
        part = Transformer(depth=depth, channels=64, heads=2)
        x = torch.randn(1, 512, 64)

        def call() -> None:
            with torch.no_grad(), record(part, reduce=one):
                part(x)

        return peak_bytes(call)

    with record(model, reduce=one) as maps:
        model(X)
    assert {tuple(value.shape) for value in maps.values()} == {(2, 2, 1, 10)}
    rows_per_layer = 2 * 512 * 4
    assert run(8) - run(2) <= 6 * 2 * rows_per_layer, "only the kept rows are added by a layer, not queries and keys"


def test_nothing_is_left_behind_even_after_an_error() -> None:
    model = network()
    before = {name: set(vars(module)) for name, module in model.named_modules()}

    def run() -> weakref.ref[Any]:
        with suppress(ZeroDivisionError), record(model) as maps:
            model(X)
            raise ZeroDivisionError
        return weakref.ref(maps["blocks.0"].query)

    assert run()() is None, "the queries went with the recording"
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with record(model) as maps:
        model(X)
    assert len(maps) == 3


def test_a_recording_within_a_recording_is_refused() -> None:
    model = network()
    with record(model), pytest.raises(RuntimeError, match="running already"), record(model.blocks[0]):
        pass


def test_another_thread_is_not_recorded() -> None:
    model = network()
    with record(model) as maps:
        other = threading.Thread(target=model, args=(X,))
        other.start()
        other.join()
    assert not maps


def test_a_compiled_network_is_recorded() -> None:
    torch._dynamo.reset()
    model = network()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = compiled(X)
    with record(compiled) as maps:
        torch.testing.assert_close(compiled(X), expected)
    assert [name.removeprefix("_orig_mod.") for name in maps] == ["blocks.0", "blocks.1", "blocks.2"]
    torch.testing.assert_close(compiled(X), expected)


def test_a_gate_is_recorded_with_its_gradient() -> None:
    torch.manual_seed(0)
    gate = create("sse", channels=4)
    x = torch.randn(2, 4, 5, 6)
    with record(gate, gradients=True) as maps:
        gate(x).sum().backward()
    found = maps[""]
    assert isinstance(found, GivenMap)
    assert found.shape == (2, 1, 5, 6)
    torch.testing.assert_close(found.gradient(), x.sum(1, keepdim=True))


def test_half_precision_maps_are_summed_in_float32() -> None:
    torch.manual_seed(0)
    x = 4 * torch.randn(1, 300, 16)
    model = create("mhsa", channels=16, heads=1)
    with record(model) as exact:
        model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16), record(model) as rough:
        model(x)
    weights = rough[""].dense()
    assert weights.dtype == torch.bfloat16
    # A row of 300 weights, each rounded to 8 bits.
    torch.testing.assert_close(weights.float().sum(-1), torch.ones(1, 1, 300), rtol=0, atol=0.01)
    assert (weights.float() - exact[""].dense()).abs().mean() < 1e-3


def test_it_says_what_it_holds() -> None:
    model = network(depth=1)
    with record(model) as maps:
        model(X)
    assert repr(maps) == "1 attention maps\n  blocks.0: [2, 2, 10, 10]"


def test_heads_that_share_keys_are_understood() -> None:
    class Grouped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x[:, :1], x[:, :1], enable_gqa=True)

    x = X.unflatten(-1, (2, 8)).transpose(1, 2)
    with record(model := Grouped()) as maps:
        output = model(x)
    weights = maps[""].dense()
    assert weights.shape == (2, 2, 10, 10)
    torch.testing.assert_close(weights @ x[:, :1], output)
