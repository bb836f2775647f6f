"""The paper's claim, on bags of which it is known what makes them positive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from apps.acmil.baselines import ABMIL
from apps.acmil.data import read_labels
from apps.acmil.model import ACMIL
from apps.acmil.prediction import concentration
from apps.acmil.witnesses import WitnessBag, draw_bags, witness_recall, write_witness_bags
from shared.metrics.intervals import paired_difference

SEEDS = 4


def trained(network: torch.nn.Module, bags: list[WitnessBag]) -> torch.nn.Module:
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=1e-5)
    for _ in range(12):
        for index in torch.randperm(len(bags)).tolist():
            losses = network.losses(torch.from_numpy(bags[index].features), torch.tensor(bags[index].label))
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
    return network.eval()


def test_acmil_finds_more_of_the_witnesses_than_abmil_and_looks_at_more_tiles() -> None:
    """Bags that neither has seen, four trainings of each on the same bags and seeds; the interval is over the seeds."""
    sizes = {"features": 16, "classes": 2, "channels": 16, "attention_channels": 16}
    recall: dict[str, list[float]] = {"acmil": [], "abmil": []}
    share: dict[str, list[float]] = {"acmil": [], "abmil": []}
    for seed in range(SEEDS):
        bags, unseen = list(draw_bags(24, seed=seed)), [bag for bag in draw_bags(40, seed=1000 + seed) if bag.label]
        for name, kind in (("acmil", lambda: ACMIL(**sizes, branches=3)), ("abmil", lambda: ABMIL(**sizes))):
            torch.manual_seed(seed)
            network = trained(kind(), bags)
            with torch.inference_mode():
                attention = [network(torch.from_numpy(bag.features)).attention.mean(0).numpy() for bag in unseen]
            recall[name].append(float(np.mean([witness_recall(one, bag.witnesses) for one, bag in zip(attention, unseen, strict=True)])))
            share[name].append(float(np.mean([concentration(one, [10])[0] for one in attention])))
    difference = paired_difference(recall["acmil"], recall["abmil"], seed=0)
    assert difference.low is not None
    assert difference.low > 0.03, (recall, share)
    assert np.mean(share["acmil"]) < np.mean(share["abmil"]), "the paper's second claim: the attention is less concentrated"


def test_recall_counts_witnesses_among_as_many_tiles_as_there_are_witnesses() -> None:
    assert witness_recall([0.5, 0.1, 0.3, 0.1], [True, True, False, False]) == 0.5
    assert witness_recall([0.5, 0.4, 0.05, 0.05], [True, True, False, False]) == 1
    assert witness_recall([0, 0, 0.5, 0.5], [True, True, False, False]) == 0


def test_the_bags_are_the_same_for_a_seed_and_every_second_one_is_positive() -> None:
    first, again, other = (list(draw_bags(6, seed=seed)) for seed in (1, 1, 2))
    assert [bag.label for bag in first] == [0, 1, 0, 1, 0, 1]
    assert all((one.features == two.features).all() for one, two in zip(first, again, strict=True))
    assert first[0].features.shape != other[0].features.shape or (first[0].features != other[0].features).any()
    assert {int(kind) for kind in first[1].kinds} == {0, 1, 2, 3, 4}


def test_a_written_folder_can_be_trained_on_and_says_where_the_witnesses_are(tmp_path: Path) -> None:
    write_witness_bags(tmp_path / "w", count=8, seed=0)
    rows = read_labels(tmp_path / "w" / "labels.csv")
    assert len(rows) == 8
    patients = {row.patient: {other.label for other in rows if other.patient == row.patient} for row in rows}
    assert len(patients) == 4
    assert all(len(labels) == 1 for labels in patients.values())
    lines = (tmp_path / "w" / "witnesses.csv").read_text().splitlines()[1:]
    found = {line.split(",")[0] for line in lines}
    assert found == {row.slide for row in rows if row.label == "positive"}
