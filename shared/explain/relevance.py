"""Which inputs an answer rests on, by way of attention: rollout, attention flow, and the relevance rules of Chefer and others.

All of them take what ``shared.attention.record`` gives, so the network keeps its fused kernels, and all work on rows of maps in tiles:
the relevance for a class token costs one row of memory per layer, never a map.

Abnar and Zuidema, "Quantifying attention flow in transformers", ACL 2020; Chefer et al., "Generic attention-model explainability for
interpreting bi-modal and encoder-decoder transformers", ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shared.attention import AttentionMap, record

__all__ = ["Rollout", "attention_flow", "attention_gradcam", "chefer", "chefer_decoder", "rollout", "token_relevance"]

Fusion = Literal["mean", "max", "min"]


class Rollout:
    """Attention rollout, layer by layer as a network runs: memory does not grow with depth.

        rolled = Rollout()
        with record(vit, where="blocks.*", reduce=rolled):
            vit(image)
        rolled.relevance  # [B, N, N]: row 0 is what the class token rests on

    Args:
        fusion: how the heads of a layer become one map.
        discard: the smallest weights of each query that make up this share of the keys count as 0; 0.9 keeps a tenth.
        residual: whether a layer passes on what it got, as transformers do: A becomes (A + 1) / 2 (paper, section 3).
    """

    def __init__(self, *, fusion: Fusion = "mean", discard: float = 0.0, residual: bool = True) -> None:
        if not 0 <= discard < 1:
            raise ValueError(f"discard must be at least 0 and below 1, not {discard}")
        self._fuse = _fusing(fusion, discard, residual)
        self.relevance: Tensor | None = None

    @torch.no_grad()
    def __call__(self, name: str, found: AttentionMap) -> None:
        before = self.relevance
        parts = [self._fuse(found, rows) for rows in found.tiles()]
        self.relevance = torch.cat([part if before is None else part @ before for part in parts], dim=1)


@torch.no_grad()
def rollout(
    maps: Iterable[AttentionMap], *, queries: int | Sequence[int] = 0, fusion: Fusion = "mean", discard: float = 0.0, residual: bool = True
) -> Tensor:
    """Attention rollout for the wanted tokens of the last layer, without any N x N matrix.

    Args:
        maps: of self-attention layers, first to last: ``maps.values()`` of a recording.
        queries: the tokens to explain; 0 is a class token.
        fusion, discard, residual: as ``Rollout``.

    Returns:
        [B, wanted tokens, N]: how much each input token contributes. Rows sum to 1.
    """
    fuse = _fusing(fusion, discard, residual)
    return _backwards(list(maps), queries, fuse)


@torch.no_grad()
def chefer(maps: Iterable[AttentionMap], *, queries: int | Sequence[int] = 0) -> Tensor:
    """Relevance of input tokens in a network of self-attention layers (Chefer et al., ICCV 2021, equations 5 and 6).

    R = I; R = R + mean over heads of max(0, dA * A) times R for each layer; the wanted rows of R are returned, computed from the last
    layer to the first. dA comes from ``record(model, gradients=True)``.

    Args:
        maps: first layer to last, of a recording in which the answer was differentiated.
        queries: the tokens whose answer was differentiated; 0 is a class token.

    Returns:
        [B, wanted tokens, N], at least 0. A token's relevance for itself contains the 1 that R starts with.

    Raises:
        RuntimeError: if no gradients were recorded.
    """

    def added(found: AttentionMap, rows: Tensor) -> Tensor:
        return _positive(found.dense(queries=rows), found.gradient(queries=rows)) + _identity_rows(found, rows)

    return _backwards(list(maps), queries, added)


def token_relevance(
    model: nn.Module,
    x: Tensor,
    *,
    target: int | Callable[[Any], Tensor],
    method: Literal["chefer", "rollout", "gradcam"] = "chefer",
    where: str = "*",
    queries: int | Sequence[int] = 0,
) -> Tensor:
    """Which tokens of ``x`` the answer ``target`` rests on. The network's own attention kernels stay in use.

    Args:
        model: a network whose self-attention layers lie one after another, such as a vision transformer of timm.
        x: its input.
        target: a class, or a function from the model's output to the numbers [B] to explain.
        method: "chefer"; "rollout", which knows no target; "gradcam", attention grad-CAM of the last layer.
        where: the modules whose attention counts, by name, with wildcards.
        queries: the tokens that the answer is read from; 0 is a class token.

    Returns:
        [B, wanted tokens, N].

    Raises:
        ValueError: if nothing was recorded under ``where``.
    """
    x = x.detach().requires_grad_(x.is_floating_point())
    with torch.enable_grad(), record(model, where=where, gradients=True) as maps:
        output = model(x)
        score = target(output) if callable(target) else output[:, target]
        if method != "rollout":
            sources = [x] if x.requires_grad else [weight for weight in model.parameters() if weight.requires_grad]
            torch.autograd.grad(score.sum(), sources, allow_unused=True)
    if not maps:
        raise ValueError(f"no attention was recorded in modules that match {where!r}")
    if method == "gradcam":
        with torch.no_grad():
            return attention_gradcam(list(maps.values())[-1], queries=queries)
    return rollout(maps.values(), queries=queries) if method == "rollout" else chefer(maps.values(), queries=queries)


def attention_gradcam(found: AttentionMap, *, queries: int | Sequence[int] | None = None) -> Tensor:
    """max(0, mean over heads of A times the mean of its gradient) (Chefer et al., ICCV 2021, section 4, baseline "Grad-CAM").

    Returns:
        [B, wanted queries, keys]; all queries by default.
    """
    return _gradcam(found.dense(), found.gradient(), queries)


def _gradcam(weights: Tensor, gradient: Tensor, queries: int | Sequence[int] | None) -> Tensor:
    cam = (weights * gradient.mean((-2, -1), keepdim=True)).mean(1).clamp(min=0)
    return cam if queries is None else cam[:, [queries] if isinstance(queries, int) else list(queries)]


@torch.no_grad()
def chefer_decoder(
    encoder: Sequence[tuple[Tensor, Tensor]], decoder: Sequence[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Relevance in an encoder-decoder, such as DETR (Chefer et al., ICCV 2021, equations 5 to 11).

    Args:
        encoder: for each layer the map of its self-attention and its gradient, each [B, heads, keys, keys].
        decoder: for each layer the same for its self-attention [B, heads, queries, queries], and for its cross-attention
            [B, heads, queries, keys].

    Returns:
        Of image tokens to image tokens [B, keys, keys], of queries to queries, and of queries to image tokens [B, queries, keys]. The last
        is what explains a detection.
    """
    if not decoder:
        raise ValueError("chefer_decoder needs at least one decoder layer")
    batch, _, queries, keys = decoder[0][1][0].shape
    like = decoder[0][1][0]
    image = torch.eye(keys, dtype=like.dtype, device=like.device).repeat(batch, 1, 1)
    query = torch.eye(queries, dtype=like.dtype, device=like.device).repeat(batch, 1, 1)
    mixed = like.new_zeros(batch, queries, keys)
    for weights, gradient in encoder:
        image = image + _positive(weights, gradient) @ image
    for (own, own_gradient), (cross, cross_gradient) in decoder:
        relevance = _positive(own, own_gradient)
        query, mixed = query + relevance @ query, mixed + relevance @ mixed
        # Equation 10 has the transpose on the queries' side.
        mixed = mixed + normalised_residual(query).mT @ _positive(cross, cross_gradient) @ normalised_residual(image)
    return image, query, mixed


def normalised_residual(relevance: Tensor) -> Tensor:
    """Rows of R - I scaled to sum to 1, plus I (Chefer et al., ICCV 2021, equations 8 and 9). A row of zeros stays zero."""
    identity = torch.eye(relevance.shape[-1], dtype=relevance.dtype, device=relevance.device)
    excess = relevance - identity
    return torch.nan_to_num(excess / excess.sum(-1, keepdim=True), nan=0.0, posinf=0.0, neginf=0.0) + identity


def attention_flow(maps: Sequence[Tensor], *, layer: int = -1) -> Tensor:
    """Attention flow: how much could reach each input token, if weights were the widths of pipes (Abnar and Zuidema, 2020, section 3).

    One maximum-flow problem for each pair of tokens: for some 50 tokens at most.

    Args:
        maps: [N, N] of each layer, first to last, with heads fused and residual added, rows summing to 1.
        layer: whose tokens are explained.

    Returns:
        [N, N]: of each token of that layer to each input token; rows sum to 1.
    """
    import networkx

    count = maps[0].shape[-1]
    top = range(len(maps))[layer] + 1
    graph = networkx.DiGraph()
    for level, weights in enumerate(maps[:top], start=1):
        for source in range(count):
            for sink in range(count):
                graph.add_edge((level, source), (level - 1, sink), capacity=float(weights[source, sink]))
    flows = torch.tensor(
        [[networkx.maximum_flow_value(graph, (top, source), (0, sink)) for sink in range(count)] for source in range(count)],
        dtype=maps[0].dtype,
    )
    return flows / flows.sum(-1, keepdim=True)


def _positive(weights: Tensor, gradient: Tensor) -> Tensor:
    """Equation 5: mean over heads of max(0, dA * A), [B, queries, keys]."""
    return (weights * gradient).clamp(min=0).mean(1)


def _fusing(fusion: Fusion, discard: float, residual: bool) -> Callable[[AttentionMap, Tensor], Tensor]:
    def fuse(found: AttentionMap, rows: Tensor) -> Tensor:
        heads = found.dense(queries=rows)
        weights = heads.mean(1) if fusion == "mean" else heads.amax(1) if fusion == "max" else heads.amin(1)
        if discard:
            dropped = weights.topk(int(discard * weights.shape[-1]), largest=False).indices
            weights = weights.scatter(-1, dropped, 0.0)
        if residual:
            weights = weights + _identity_rows(found, rows)
            weights = weights / weights.sum(-1, keepdim=True)
        return weights

    return fuse


def _identity_rows(found: AttentionMap, rows: Tensor) -> Tensor:
    queries, keys = found.shape[-2:]
    if queries != keys:
        raise ValueError(f"{queries} queries and {keys} keys: rollout and chefer need self-attention; see chefer_decoder")
    some = found.dense(queries=rows[:1], heads=0)
    return torch.nn.functional.one_hot(rows, keys).to(dtype=some.dtype, device=some.device)


def _backwards(maps: list[AttentionMap], queries: int | Sequence[int], rows_of: Callable[[AttentionMap, Tensor], Tensor]) -> Tensor:
    """Wanted rows of the product of all layers' matrices, last times ... times first, without any of these matrices."""
    if not maps:
        raise ValueError("no maps: was anything recorded?")
    wanted = torch.as_tensor([queries] if isinstance(queries, int) else list(queries))
    wanted = wanted % maps[-1].shape[-2]
    product = rows_of(maps[-1], wanted)
    for found in reversed(maps[:-1]):
        product = sum((product[..., rows] @ rows_of(found, rows) for rows in found.tiles()), start=product.new_zeros(()))
    return product
