"""Explanations: rollout, flow, Chefer's rules, class activation maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention import GivenMap, create, load_published
from shared.explain.cam import class_activation_map
from shared.explain.relevance import Rollout, _gradcam, _positive, attention_flow, chefer_decoder, normalised_residual, token_relevance
from tests.parity.attention import below, runs


@runs("explain-rollout")
def rollout(config, state, inputs):
    answers = {}
    for name, residual in (("rollout", True), ("rollout_no_residual", False)):
        rolled = Rollout(residual=residual)
        layers = []
        for layer in range(config["layers"]):
            rolled("", GivenMap(torch.softmax(2 * inputs[f"l{layer}"], dim=-1).unsqueeze(0)))
            layers.append(rolled.relevance[0])
        answers[name] = torch.stack(layers)
    return answers


@runs("explain-flow")
def flow(config, state, inputs):
    maps = []
    for layer in range(config["layers"]):
        weights = torch.softmax(2 * inputs[f"l{layer}"], dim=-1).mean(0) + torch.eye(4)
        maps.append(weights / weights.sum(-1, keepdim=True))
    return {"flow_last_layer": attention_flow(maps), "flow_layer_1": attention_flow(maps, layer=0)}


@runs("explain-chefer")
def chefer(config, state, inputs):
    def pair(name: str) -> tuple[Tensor, Tensor]:
        return torch.softmax(2 * inputs[name], dim=-1).unsqueeze(0), inputs[f"{name}_grad"].unsqueeze(0)

    encoder = [pair("enc0"), pair("enc1")]
    image, query, mixed = chefer_decoder(encoder, [(pair("self0"), pair("cross0")), (pair("self1"), pair("cross1"))])
    rolled = Rollout()
    for weights, _ in encoder:
        rolled("", GivenMap(weights))
    last, gradient = pair("cross1")
    return {
        "avg_heads": _positive(*encoder[0])[0],
        "R_ii": image[0],
        "R_qq": query[0],
        "R_qi": mixed[0],
        "handle_residual": normalised_residual(image)[0],
        "attention_gradcam": _gradcam(last, gradient + 0.5, None)[0],
        "rollout": rolled.relevance[0],
    }


class TinyTransformer(nn.Module):
    def __init__(self, dim: int, heads: int, layers: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.attentions = nn.ModuleList(create("mhsa", channels=dim, heads=heads) for _ in range(layers))
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x = x + attention(norm(x))
        return self.head(x[:, 0])


@runs("explain-chefer-vit")
def chefer_vit(config, state, inputs):
    model = TinyTransformer(config["dim"], config["heads"], config["layers"])
    for layer in range(config["layers"]):
        load_published("mhsa", model.attentions[layer], below(state, f"blocks.{layer}.attn"))
        model.norms[layer].load_state_dict(below(state, f"blocks.{layer}.norm"))
    model.head.load_state_dict(below(state, "head"))
    x = inputs["x"]
    whole = token_relevance(model, x, target=config["target_class"], queries=range(x.shape[1]))
    return {"logits": model(x), "relevance": whole[0, 0, 1:], "R": whole[0]}


class TinyNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.c2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c2(F.relu(self.c1(x))))
        return self.fc(F.relu(x - 0.1).mean((2, 3)))


@runs("explain-gradcam")
def gradcam(config, state, inputs):
    model = TinyNetwork()
    model.load_state_dict(state)
    names = {"gradcampp": "gradcam++"}
    answers = {
        name: class_activation_map(model, inputs["x"], layer="c2", target=config["target_class"], method=names.get(name, name))
        for name in ("gradcam", "hirescam", "gradcampp", "xgradcam", "layercam", "elementwise")
    }
    return answers | {"logits": model(inputs["x"])}
