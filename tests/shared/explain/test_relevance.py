"""What explains an answer: the same numbers as with every map in memory, without one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention import create, record
from shared.attention.measure import peak_bytes
from shared.explain.relevance import Rollout, attention_flow, attention_gradcam, chefer, chefer_decoder, rollout, token_relevance


class Transformer(nn.Module):
    """A class token's view of a sequence."""

    def __init__(self, *, depth: int = 3, channels: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(create("mhsa", channels=channels, heads=heads) for _ in range(depth))
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(F.layer_norm(x, x.shape[-1:]))
        return self.head(x[:, 0])


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer().double()


X = torch.randn(2, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
EYE = torch.eye(9, dtype=torch.float64)


def test_rollout_by_rows_is_the_product_of_whole_maps(model: Transformer) -> None:
    rolled = Rollout()
    with record(model, reduce=rolled):
        model(X)
    with record(model) as maps:
        model(X)
    whole = EYE
    for found in maps.values():
        layer = found.dense().mean(1) + EYE
        whole = layer / layer.sum(-1, keepdim=True) @ whole
    torch.testing.assert_close(rolled.relevance, whole)
    torch.testing.assert_close(rollout(maps.values(), queries=range(9)), whole)
    torch.testing.assert_close(rollout(maps.values(), queries=0), whole[:, :1])
    torch.testing.assert_close(rollout(maps.values(), queries=-1), whole[:, 8:])


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_discarding_keeps_the_large_weights(model: Transformer, fusion: str) -> None:
    with record(model, where="blocks.0") as maps:
        model(X)
    (found,) = maps.values()
    weights = {"mean": found.dense().mean(1), "max": found.dense().amax(1), "min": found.dense().amin(1)}[fusion]
    kept = rollout([found], queries=range(9), fusion=fusion, discard=0.7, residual=False)
    assert ((kept > 0).sum(-1) == 3).all(), "6 of 9 are dropped"
    torch.testing.assert_close(kept.amax(-1), weights.amax(-1))
    with pytest.raises(ValueError, match=r"discard must be at least 0 and below 1, not 1\.5"):
        Rollout(discard=1.5)


def explicit_chefer(model: Transformer, target: int) -> Tensor:
    """Every map held, and its gradient asked of autograd."""
    held = []
    x = X
    for block in model.blocks:
        normed = F.layer_norm(x, (16,))
        query, key, value = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in block.qkv(normed).chunk(3, -1))
        held.append(torch.softmax(query @ key.mT / 8**0.5, dim=-1))
        held[-1].retain_grad()
        x = x + block.out((held[-1] @ value).transpose(1, 2).flatten(2))
    model.head(x[:, 0])[:, target].sum().backward()
    relevance = EYE
    for weights in held:
        relevance = relevance + (weights * weights.grad).clamp(min=0).mean(1) @ relevance
    return relevance.detach()


def test_chefers_rule_is_that_of_maps_that_were_held(model: Transformer) -> None:
    expected = explicit_chefer(model, target=2)
    model.zero_grad()
    found = token_relevance(model, X, target=2, queries=range(9))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(token_relevance(model, X, target=lambda output: output[:, 2]), expected[:, :1])
    assert all(weight.grad is None for weight in model.parameters()), "explaining leaves no gradients"


def test_a_token_that_decides_is_found() -> None:
    torch.manual_seed(0)
    model = Transformer(depth=2).double()
    x = 0.1 * torch.randn(1, 9, 16, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(120):
        batch = 0.1 * torch.randn(32, 9, 16, dtype=torch.float64)
        label = torch.randint(0, 2, (32,), generator=torch.Generator().manual_seed(step))
        batch[:, 5, 0] = 4.0 * (2 * label - 1)
        loss = F.cross_entropy(model(batch), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x[:, 5, 0] = 4.0
    for method in ("chefer", "gradcam"):
        relevance = token_relevance(model, x, target=1, method=method)[0, 0]
        assert relevance[1:].argmax() == 4, method


def test_the_class_tokens_relevance_needs_no_map_in_memory() -> None:
    model, tokens = Transformer(depth=2, channels=8, heads=1), 3000
    x = torch.randn(1, tokens, 8)
    for method in ("chefer", "rollout"):
        held = peak_bytes(lambda method=method: token_relevance(model, x, target=0, method=method))
        # Some tiles of 64 MB of weights, their gradients and their product; two maps of float32 alone would be 72 MB more per layer.
        assert held < 5 * 64 * 2**20


def test_a_decoders_image_tokens_are_found() -> None:
    weights = torch.zeros(1, 1, 2, 4)
    weights[0, 0, 0, 3] = weights[0, 0, 1, 1] = 1
    own = torch.eye(2).reshape(1, 1, 2, 2)
    image, query, mixed = chefer_decoder([], [((own, torch.zeros_like(own)), (weights, torch.ones_like(weights)))])
    assert torch.equal(image[0], torch.eye(4))
    assert torch.equal(query[0], torch.eye(2))
    assert mixed[0].argmax(-1).tolist() == [3, 1]
    with pytest.raises(ValueError, match="at least one decoder layer"):
        chefer_decoder([], [])


def test_flow_and_rollout_agree_on_one_layer() -> None:
    weights = torch.softmax(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), -1)
    torch.testing.assert_close(attention_flow([weights]), weights)


def test_gradcam_needs_gradients(model: Transformer) -> None:
    with record(model, gradients=True) as maps:
        model(X)[:, 1].sum().backward()
    cam = attention_gradcam(maps["blocks.2"])
    assert cam.shape == (2, 9, 9)
    assert (cam >= 0).all()
    torch.testing.assert_close(attention_gradcam(maps["blocks.2"], queries=[0]), cam[:, :1])
    with record(model) as maps:
        model(X)
    with pytest.raises(RuntimeError, match="gradients=True"):
        chefer(maps.values())


def test_what_cannot_be_explained_is_said(model: Transformer) -> None:
    with pytest.raises(ValueError, match=r"no attention was recorded in modules that match 'encoder\.\*'"):
        token_relevance(model, X, target=0, where="encoder.*")
    with pytest.raises(ValueError, match="was anything recorded"):
        rollout([])


@pytest.mark.filterwarnings("ignore")
def test_a_vision_transformer_of_timm_is_explained() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, depth=2, num_classes=3).eval()
    image = torch.randn(2, 3, 64, 64)
    relevance = token_relevance(model, image, target=1, where="blocks.*")
    assert relevance.shape == (2, 1, 17)
    assert relevance.isfinite().all()
    assert relevance[0, 0, 1:].any()
