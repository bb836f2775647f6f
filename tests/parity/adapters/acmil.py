"""ACMIL and what it is compared with: networks, losses, masking, metrics, schedule and splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from tests.parity.fixture import Fixture

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["matches", "run"]

Arrays = dict[str, np.ndarray]


def matches(fixture: Fixture) -> bool:
    return fixture.system in _RUNNERS


def run(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    return _RUNNERS[fixture.system](fixture, state, inputs)


def _loaded(network: nn.Module, state: Arrays, name: str) -> nn.Module:
    import torch

    from apps.acmil.published_names import from_published

    network.load_state_dict(from_published({key: torch.from_numpy(value) for key, value in state.items()}, name=name), strict=True)
    return network.eval()


def _sizes(fixture: Fixture) -> dict[str, int]:
    return {"features": fixture.config["D_feat"], "channels": fixture.config["D_inner"], "classes": fixture.config["n_class"]}


def _bag(inputs: Arrays) -> Tensor:
    import torch

    return torch.from_numpy(inputs["x"]).reshape(-1, inputs["x"].shape[-1])


def _label(inputs: Arrays) -> Tensor:
    import torch

    return torch.tensor(int(inputs["label"][0]))


def _branches(config: dict[str, Any]) -> dict[str, Any]:
    return {"branches": config["n_token"], "top_instances": config["n_masked_patch"], "drop": config["mask_drop"]}


def _numpy(answers: dict[str, Tensor]) -> Arrays:
    return {name: value.detach().numpy() for name, value in answers.items()}


@contextmanager
def _drawn(values: np.ndarray) -> Iterator[None]:
    """The masking's random numbers are these, one for each call of torch.rand."""
    import torch

    draws = iter(torch.from_numpy(values))
    with patch("torch.rand", lambda *shape, **_: next(draws).reshape(shape)):
        yield


def _acmil_ga(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    from apps.acmil.model import ACMIL

    network = _loaded(ACMIL(**_sizes(fixture), **_branches(fixture.config)), state, "acmil_ga")
    assert isinstance(network, ACMIL)
    if fixture.config["mode"] == "train":
        grads = {
            "attention.attention_weights.weight": network.pooling.scorer.score.weight,
            "attention.attention_V.0.weight": network.pooling.scorer.hidden.weight,
            "Slide_classifier.fc.weight": network.classifier.weight,
            "dimreduction.fc1.weight": network.reduction.linear.weight,
        }
        with _drawn(inputs["rand"][None]):
            answer = network.train()(_bag(inputs))
        with _drawn(inputs["rand"][None]):
            losses = network.losses(_bag(inputs), _label(inputs))
        return _trained(answer.logits, answer.branch_logits, answer.attention[None], losses, grads)
    bag = _bag(inputs)
    answer = network(bag)
    return _numpy(
        {
            "sub_logits": answer.branch_logits,
            "slide_logits": answer.logits[None],
            "attention_raw": network.pooling.scores(network.reduction(bag)[None]),
            "bag_feature": network.slide_feature(bag)[None],
        }
    )


def _trained(logits: Tensor, branch_logits: Tensor, weights: Tensor, losses: dict[str, Tensor], parameters: dict[str, Any]) -> Arrays:
    """What the published training loop has after the backward pass. weights: [heads, branches, N]."""
    import torch

    total = torch.stack(list(losses.values())).sum()
    grads = torch.autograd.grad(total, list(parameters.values()))
    return _numpy(
        {
            "slide_logits": logits[None],
            "sub_logits": branch_logits,
            "attention": weights,
            "masked": (weights == 0).float(),
            "sub_loss": losses["branches"],
            "slide_loss": losses["slide"],
            "diversity_loss": losses["diversity"],
            "total_loss": total,
            **{f"grad.{name}": grad for name, grad in zip(parameters, grads, strict=True)},
        }
    )


def _acmil_mha(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.acmil.model import MultiHeadACMIL

    dropout = fixture.config.get("dropout", 0.1)
    network = _loaded(MultiHeadACMIL(**_sizes(fixture), **_branches(fixture.config), dropout=dropout), state, "acmil_mha")
    assert isinstance(network, MultiHeadACMIL)
    if fixture.config["mode"] == "train":
        with _drawn(inputs["rand"]):
            answer, weights = network.train()._read(_bag(inputs))
        with _drawn(inputs["rand"]):
            losses = network.losses(_bag(inputs), _label(inputs))
        grads = {
            "q": network.queries,
            "bag_attention.v_proj.weight": network.bag_pooling.value.weight,
            "sub_attention.0.k_proj.weight": network.branches[0].key.weight,
        }
        answers = _trained(answer.logits, answer.branch_logits, weights, losses, grads)
        return answers | {"grad.q": answers["grad.q"][None]}
    bag = _bag(inputs)
    answer, reduced = network(bag), network.reduction(bag)
    scores = [branch.scores(reduced, query) for branch, query in zip(network.branches, network.queries, strict=True)]
    return _numpy({"sub_logits": answer.branch_logits, "slide_logits": answer.logits[None], "attention_raw": torch.stack(scores, dim=1)})


def _stkim(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from shared.attention.bags import drop_top_instances, pool_bag

    answers: Arrays = {}
    for number, case in enumerate(fixture.config["cases"]):
        scores, noise = (torch.from_numpy(inputs[f"{name}{number}"])[None] for name in ("scores", "rand"))
        masked = drop_top_instances(scores, noise, drop=case["mask_drop"])
        weights = pool_bag(torch.zeros(1, case["N"], 1), masked).weights[0]
        answers[f"attention{number}"] = weights.numpy()
        answers[f"masked{number}"] = (masked[0] != scores[0]).float().numpy()
        answers[f"bag_attention{number}"] = weights.mean(0).numpy()
    return answers


def _losses(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.acmil.losses import branch_diversity, branch_loss, negative_entropy, slide_loss

    label, logits = _label(inputs), torch.from_numpy(inputs["sub_logits"])
    slide = slide_loss(torch.from_numpy(inputs["slide_logits"][0]), label)
    answers = {}
    for name in ("ga", "mha", "one"):
        weights = torch.softmax(fixture.config["attention_multiplier"] * torch.from_numpy(inputs[f"attn_{name}"]), dim=-1)
        branches, diversity = branch_loss(logits[: weights.shape[1]], label), branch_diversity(weights)
        answers |= {f"{name}.sub": branches, f"{name}.slide": slide, f"{name}.diversity": diversity}
        answers |= {f"{name}.total": branches + slide + diversity, f"{name}.neg_entropy": negative_entropy(weights)}
    return _numpy(answers)


def _metrics(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    from scipy.special import softmax

    from apps.acmil.metrics import slide_scores

    answers = {}
    for classes in (2, 3):
        labels = inputs[f"labels{classes}"]
        scores = slide_scores(softmax(inputs[f"logits{classes}"] + 0.9 * np.eye(classes)[labels], axis=1), labels)
        answers |= {f"auroc{classes}": scores.auc, f"f1_reported{classes}": scores.f1_micro, f"f1_macro{classes}": scores.f1_macro}
        answers[f"acc1_{classes}"] = 100 * scores.accuracy
    return {name: np.array(value) for name, value in answers.items()}


def _schedule(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    """Ours is the shared schedule. It warms up from the first step's share rather than from 0, one step earlier, and falls to 0."""
    from shared.training.config import FitConfig, OptimizerConfig, ScheduleConfig
    from shared.training.schedule import learning_rate_factor

    answers = {}
    for name, case in fixture.config.items():
        warmup, steps = case["warmup"] * case["iterations"], case["epochs"] * case["iterations"]
        config = FitConfig(
            epochs=case["epochs"], optimizer=OptimizerConfig(lr=case["lr"]), schedule=ScheduleConfig(name="cosine", warmup=warmup)
        )
        factor = learning_rate_factor(config, case["iterations"])
        warm = [case["lr"] * (factor(step - 1) if step else 0) for step in range(warmup)]
        falling = [case["min_lr"] + (case["lr"] - case["min_lr"]) * factor(step) for step in range(warmup, steps)]
        answers[name] = 1e4 * np.array(warm + falling)
    return answers


def _abmil(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    from apps.acmil.baselines import ABMIL

    network = _loaded(ABMIL(**_sizes(fixture)), state, "abmil")
    assert isinstance(network, ABMIL)
    bag = _bag(inputs)
    return _numpy({"logits": network(bag).logits[None], "attention_raw": network.pooling.scores(network.reduction(bag)[None])[0]})


def _mha(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    from apps.acmil.baselines import MultiHeadMIL

    return _numpy({"logits": _loaded(MultiHeadMIL(**_sizes(fixture)), state, "mha")(_bag(inputs)).logits[None]})


def _dsmil(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.acmil.baselines import DSMIL

    network = _loaded(DSMIL(**_sizes(fixture)), state, "dsmil")
    assert isinstance(network, DSMIL)
    bag = _bag(inputs)
    highest, bag_logits, _ = network.streams(bag)
    return _numpy(
        {
            "instance_logits": network.instance_classifier(bag),
            "max_logits": highest[None],
            "bag_logits": bag_logits[None],
            "attention_raw": network.attention_scores(bag)[0],
            "probability": torch.softmax(network(bag).logits, -1)[None],
        }
    )


def _ibmil(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    from apps.acmil.baselines import IBMIL

    config = fixture.config
    network = IBMIL(**_sizes(fixture), prototypes=config["confounders"], joint_channels=config["confounder_dim"])
    network = _loaded(network, state, "ibmil")
    assert isinstance(network, IBMIL)
    bag = _bag(inputs)
    joint, weights = network.join(network.pooling.pool(network.reduction(bag)[None]).features[0, 0])
    return _numpy({"logits": network(bag).logits[None], "joint_feature": joint[None], "confounder_attention": weights[:, None]})


def _clam(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.acmil.clam import Clam, softmax_one

    config = fixture.config
    upstream = "embed_dim" in config
    classes = config["n_classes"] if upstream else config["n_class"]
    multi_branch = "-mb" in fixture.name
    network = Clam(
        features=config["embed_dim"] if upstream else config["D_feat"],
        classes=classes,
        channels=512 if upstream else config["D_inner"],
        attention_channels=256 if upstream else config["attention_dim"],
        multi_branch=multi_branch,
        samples=config["k_sample"],
        subtyping=config["subtyping"] if upstream else classes > 2,
        **({"normalise": softmax_one} if multi_branch and not upstream else {}),
    )
    network = _loaded(network, state, "clam_sb")
    assert isinstance(network, Clam)
    bag, label = _bag(inputs), _label(inputs)
    logits = network(bag).logits
    x, scores = network.scores(bag)
    asked = network.instance_answers(x, scores, label)
    return _numpy(
        {
            "logits": logits[None],
            "prob": torch.softmax(logits, -1)[None],
            "y_hat": logits.argmax().reshape(1, 1),
            "attention_raw": scores,
            "instance_loss": network.instance_loss(x, scores, label),
            "inst_preds": torch.cat([answers.argmax(-1) for answers, _ in asked]),
            "inst_labels": torch.cat([targets for _, targets in asked]),
            "bag_feature": network.slide_features(x, scores),
        }
    )


def _transmil(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.acmil.transmil import TransMIL

    config, bag = fixture.config, _bag(inputs)
    features, classes, channels = (
        (config["dim_in"], config["n_classes"], config["dim"])
        if "dim_in" in config
        else (config["D_feat"], config["n_class"], config["D_inner"])
    )
    network = _loaded(TransMIL(features=features, classes=classes, channels=channels, heads=config["heads"]), state, "transmil")
    assert isinstance(network, TransMIL)
    tokens = network.tokens(bag)
    first = network.first(tokens)
    placed = network.position(first)
    logits = network(bag).logits[None]
    return _numpy(
        {
            "logits": logits,
            "prob": torch.softmax(logits, -1),
            "layer1": first[None],
            "ppeg": placed[None],
            "layer2_cls": network.second(placed)[:1],
            "layer1_unpadded": network.first(tokens[: 1 + len(bag)])[None],
        }
    )


def _dtfd(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.acmil.dtfd import DTFD

    config, answers = fixture.config, {}
    for published, ours in {"AFS": "afs", "MaxMinS": "maxmins", "MaxS": "maxs"}.items():
        network = DTFD(
            features=config["in_dim"],
            classes=config["num_cls"],
            channels=config["mDim"],
            attention_channels=config["attention_dim"],
            groups=config["numGroup"],
            distillation=ours,  # type: ignore[arg-type]
            distilled=config["total_instance"],
        )
        network = _loaded(network, state, "dtfd")
        assert isinstance(network, DTFD)
        groups = np.array_split(inputs["order"], config["numGroup"])
        tiers = network.read([torch.from_numpy(group) for group in groups], _bag(inputs))
        answers |= {
            f"{published}.distilled": tiers.distilled,
            f"{published}.slide_logits": tiers.logits[None],
            "sub_logits": tiers.group_logits,
        }
    return _numpy(answers)


def _functions(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    import torch

    from apps.acmil.clam import softmax_one
    from apps.acmil.dtfd import class_activation

    features, weight = (torch.from_numpy(inputs[name]) for name in ("features", "weight"))
    return _numpy({"softmax_one": softmax_one(torch.from_numpy(inputs["a"])), "cam_1d": class_activation(features[0], weight)[None]})


def _clam_splits(fixture: Fixture, state: Arrays, inputs: Arrays) -> Arrays:
    from apps.acmil.folds import class_weights, monte_carlo_splits

    config = fixture.config
    labels = np.repeat(np.arange(len(config["class_sizes"])), config["class_sizes"])
    answers: Arrays = {"balance_weights": class_weights(labels)}
    splits = monte_carlo_splits(
        labels, validation=config["val_num"], test=config["test_num"], repeats=config["n_splits"], seed=config["seed"]
    )
    for number, one in enumerate(splits):
        answers |= {f"train{number}": one.train, f"val{number}": one.validation, f"test{number}": one.test}
    return answers


_RUNNERS: dict[str, Callable[[Fixture, Arrays, Arrays], Arrays]] = {
    "abmil": _abmil,
    "acmil-ga": _acmil_ga,
    "acmil-ga-train": _acmil_ga,
    "acmil-losses": _losses,
    "acmil-metrics": _metrics,
    "acmil-mha": _acmil_mha,
    "acmil-mha-train": _acmil_mha,
    "acmil-schedule": _schedule,
    "acmil-stkim": _stkim,
    **{f"clam-{kind}{variant}": _clam for kind in ("sb", "mb") for variant in ("", "-subtyping", "-acmil")},
    "clam-splits": _clam_splits,
    "dsmil": _dsmil,
    "dtfd": _dtfd,
    "ibmil": _ibmil,
    "mha-mil": _mha,
    "mil-functions": _functions,
    "transmil": _transmil,
    "transmil-acmil": _transmil,
}
