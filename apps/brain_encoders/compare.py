"""Feature spaces compared on one study: image, text and joint models, as "Visio-Linguistic Brain Encoding" does, and without its leak.

Oota et al., COLING 2022: ten folds without shuffling, penalties from 1e-6 to 1e9 chosen within each fold, no intercept, presentations as
samples. Where a picture was shown twice, its presentations fall into different folds, so that test pictures were fitted; beside those
scores stand the ones with all presentations of a picture in one fold. On these folds the spaces also predict together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.brain_encoders.compare_report import print_comparison, write_comparison_report
from apps.brain_encoders.config import CompareConfig
from apps.brain_encoders.data import check_pictures, open_study
from apps.brain_encoders.features import FeatureStore, backbone_of
from apps.brain_encoders.joined import FoldAnswers, answer_folds
from apps.brain_encoders.language import caption_vectors, joint_vectors
from apps.brain_encoders.maps import NONE
from apps.brain_encoders.study import Study
from apps.brain_encoders.tables import csv_text, region_table, unit_table
from apps.brain_encoders.trivial import picture_statistics
from shared.encoding.ridge import fit_ridge
from shared.encoding.splits import Split, contiguous_splits, grouped_splits
from shared.errors import UserError
from shared.files import write_json, write_text
from shared.imaging import read_image
from shared.metrics.encoding import noise_normalised, pearson, pearson_over_voxels, r2, region_summary, two_v_two
from shared.metrics.noise_ceiling import noise_ceiling, signal_to_noise
from shared.metrics.permutation import block_permutations, false_discovery_rate, permutation_test
from shared.metrics.variance import variance_partition

__all__ = ["Comparison", "SpaceScores", "UnitScores", "compare", "compare_spaces", "published_folds"]

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-6, 9, 16))
FOLDS = 10


@dataclass(frozen=True, kw_only=True)
class SpaceScores:
    """One feature space, or one way in which all predict together."""

    space: str
    features: int
    published_two_v_two: float | None
    """Mean over the published folds, which are for single spaces."""
    published_pattern_correlation: float | None
    """Mean over samples of the correlation across units: the paper's "Pearson"."""
    two_v_two: float
    """With each picture in one fold, as all that follows."""
    pattern_correlation: float
    correlation: float
    """Mean over units."""
    r2: float
    noise_normalised: float | None
    """Mean over the units that have a noise ceiling; None if nothing tells it."""
    units_above_chance: int | None


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitScores:
    """The same by unit, [V]."""

    correlation: NDArray[np.float64]
    r2: NDArray[np.float64]
    normalised: NDArray[np.float64] | None
    p: NDArray[np.float64] | None
    """One-sided, of a permutation of the pictures; not adjusted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Everything about one study."""

    study: Study
    spaces: tuple[str, ...]
    rows: list[SpaceScores]
    """The spaces, then the joined models."""
    units: dict[str, UnitScores]
    """By the rows' names."""
    answers: FoldAnswers
    shared: dict[str, float]
    """Spaces -> mean over units of the held-out variance that exactly they share."""
    ceiling: NDArray[np.float64] | None
    """[V], of single presentations, in R2."""
    preferred: NDArray[np.intp]
    """[V]: the space that explains most, by number; NONE where no space alone predicts the unit above chance."""
    leaked: int
    """Presentations whose picture is also among those fitted, in the published folds."""

    def summary(self) -> dict[str, Any]:
        """Numbers for metrics.json."""
        answers, known = self.answers, self.preferred != NONE
        found: dict[str, Any] = {"spaces": [asdict(row) for row in self.rows], "shared_r2": self.shared}
        if answers.weights is not None:
            found["stacking_weights"] = self._by_space(answers.weights)
        if answers.shares is not None:
            found["product_measure"] = {"r2_about_fitted_mean": float(answers.shares.sum(axis=0).mean()), **self._by_space(answers.shares)}
        return found | {
            "leaked_presentations": self.leaked,
            "mean_noise_ceiling": _known_mean(self.ceiling),
            "predicted_units": int(known.sum()),
            "preferred": {name: int((self.preferred == index).sum()) for index, name in enumerate(self.spaces)},
        }

    def _by_space(self, values: NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(self.spaces, values.mean(axis=1).tolist(), strict=True))


def compare(config: CompareConfig) -> None:
    """Scores the spaces asked for; leaves spaces.csv, units.csv, regions.csv, metrics.json, maps and report.html."""
    if not config.spaces:
        raise UserError("spaces: name at least one of image, text, joint and light.")
    study = open_study(config.data)
    if set(config.spaces) - {"text"}:
        check_pictures(study.images)
    vectors = {space: _vectors(space, study, config)[study.trials].astype(np.float64) for space in config.spaces}
    found = compare_spaces(study, vectors, config)
    print_comparison(found)
    write_text(config.output / "spaces.csv", csv_text(list(asdict(found.rows[0])), [list(asdict(row).values()) for row in found.rows]))
    write_text(config.output / "units.csv", unit_table(study.space, _columns(found)))
    write_text(config.output / "regions.csv", region_table(_regions(found)))
    write_json(config.output / "metrics.json", found.summary())
    maps = {f"r2 {name}": units.r2 for name, units in found.units.items()}
    numbers = ", ".join(f"{number} {name}" for number, name in enumerate(found.spaces, start=1))
    maps[f"preferred ({numbers})"] = found.preferred + 1.0
    study.space.write(np.stack(list(maps.values())), config.output, "spaces", formats=("gifti", "nifti", "cifti"), maps=list(maps))
    print(f"To look at: {write_comparison_report(config.output, found)}")


def compare_spaces(study: Study, vectors: Mapping[str, NDArray[np.floating]], config: CompareConfig) -> Comparison:
    """Scores the spaces [presentations, C] and what is joined of them."""
    names, responses = tuple(vectors), np.asarray(study.responses, dtype=np.float64)
    published = {
        name: np.mean([_published_scores(found, responses, fold) for fold in published_folds(len(responses))], axis=0).tolist()
        for name, found in vectors.items()
    }
    folds = grouped_splits(study.trials.tolist(), min(FOLDS, len(study.images)), seed=config.seed)
    joined = config.joined if len(names) > 1 else ()
    parts = len(names) in (2, 3)
    together = [chosen for size in range(2, len(names) + 1) for chosen in combinations(names, size)] if parts else []
    answers = answer_folds(
        vectors,
        responses,
        folds,
        groups=study.trials,
        alphas=ALPHAS,
        together=together or ([names] if "concatenated" in joined else []),
        stacked="stacked" in joined,
        banded_search=config.search if "banded" in joined else 0,
        seed=config.seed,
    )
    models = {**answers.alone, **{name: answer for name, answer in answers.joined().items() if name in joined}}
    ceiling = _ceiling(study)
    units = {name: _unit_scores(study, responses, answer, ceiling, config) for name, answer in models.items()}
    widths = {name: found.shape[1] for name, found in vectors.items()}
    rows = [
        SpaceScores(
            space=name,
            features=widths.get(name, sum(widths.values())),
            published_two_v_two=published[name][0] if name in published else None,
            published_pattern_correlation=published[name][1] if name in published else None,
            two_v_two=float(np.mean([two_v_two(responses[test], answer[test]) for _, test in folds])),
            pattern_correlation=float(pearson_over_voxels(responses, answer).mean()),
            correlation=float(units[name].correlation.mean()),
            r2=float(units[name].r2.mean()),
            noise_normalised=_known_mean(units[name].normalised),
            units_above_chance=_above_chance(units[name].p),
        )
        for name, answer in models.items()
    ]
    return Comparison(
        study=study,
        spaces=names,
        rows=rows,
        units=units,
        answers=answers,
        shared=_partition(answers, responses) if parts else {},
        ceiling=ceiling,
        preferred=_preferred([units[name] for name in names], answers.shares),
        leaked=_repeated(study),
    )


def published_folds(samples: int) -> list[Split]:
    """Ten successive blocks of presentations, as published."""
    return contiguous_splits(samples, min(FOLDS, samples))


def _published_scores(features: NDArray, responses: NDArray, fold: Split) -> tuple[float, float]:
    """2V2 and Pearson of one fold as the authors' program computes them."""
    train, test = fold
    inner = contiguous_splits(len(train), min(FOLDS, len(train)))
    fitted = fit_ridge(features[train], responses[train], alphas=ALPHAS, splits=inner, score="r2", intercept=False)
    answer = fitted.predict(features[test])
    return two_v_two(responses[test], answer), float(pearson_over_voxels(responses[test], answer).mean())


def _unit_scores(study: Study, responses: NDArray, answer: NDArray, ceiling: NDArray | None, config: CompareConfig) -> UnitScores:
    correlation = pearson(responses, answer)
    p = None
    if config.permutations:
        # Pictures change places, not presentations: those of one picture are alike.
        pictures = np.unique(study.trials)
        orders = block_permutations(len(pictures), 1, permutations=config.permutations, seed=config.seed)
        p = permutation_test(_by_picture(responses, study.trials), _by_picture(answer, study.trials), orders=orders, block=1)
    return UnitScores(
        correlation=correlation,
        r2=r2(responses, answer),
        normalised=None if ceiling is None else noise_normalised(correlation, ceiling),
        p=p,
    )


def _by_picture(values: NDArray, trials: NDArray[np.intp]) -> NDArray[np.float64]:
    """[pictures, V]: the mean over presentations."""
    _, place, counts = np.unique(trials, return_inverse=True, return_counts=True)
    total = np.zeros((len(counts), values.shape[1]))
    np.add.at(total, place, values)
    return total / counts[:, None]


def _ceiling(study: Study) -> NDArray[np.float64] | None:
    """[V]: of single presentations, in R2: from the pictures that were shown again (of those, the most usual number of times).

    Of responses that come averaged, one a picture, it is the publisher's.
    """
    counts = np.bincount(study.trials)
    again = counts[counts > 1]
    if not len(again):
        return study.ceiling
    repeats = study.presentations(np.flatnonzero(counts == np.bincount(again).argmax()))
    return None if repeats is None or repeats.shape[1] < 2 else noise_ceiling(signal_to_noise(repeats).ratio, 1)


def _preferred(alone: Sequence[UnitScores], shares: NDArray[np.float64] | None) -> NDArray[np.intp]:
    """Which explains most of each unit: by the product measure of the banded model, if it was fitted, else by R2 alone."""
    explained = np.stack([units.r2 for units in alone])
    found = [units.p for units in alone if units.p is not None]
    # Some space predicts the unit: its best p, for as many tries as there are spaces.
    predicted = false_discovery_rate(np.minimum(1, len(found) * np.min(found, axis=0))) < 0.05 if found else (explained > 0).any(axis=0)
    return np.where(predicted, (explained if shares is None else shares).argmax(axis=0), NONE)


def _partition(answers: FoldAnswers, responses: NDArray) -> dict[str, float]:
    """Spaces -> mean over units of the variance that exactly they share, on held-out pictures."""
    predicted = {**{frozenset([name]): answer for name, answer in answers.alone.items()}, **answers.together}
    parts = variance_partition({spaces: r2(responses, answer) for spaces, answer in predicted.items()})
    return {" and ".join(sorted(spaces)): float(values.mean()) for spaces, values in parts.items()}


def _known_mean(values: NDArray[np.float64] | None) -> float | None:
    return None if values is None or np.isnan(values).all() else float(np.nanmean(values))


def _above_chance(p: NDArray[np.float64] | None) -> int | None:
    return None if p is None else int((false_discovery_rate(p) < 0.05).sum())


def _vectors(space: str, study: Study, config: CompareConfig) -> NDArray[np.floating]:
    """[images, C]"""
    if space == "light":
        return np.stack([picture_statistics(path) for path in study.images])
    if space == "text":
        return caption_vectors(study.captions, name=config.text_model, layer=config.text_layer, pooling=config.text_pooling)
    if space == "joint":
        return joint_vectors([read_image(path) for path in study.images], study.captions, name=config.joint_model)
    store = FeatureStore(backbone_of(config.backbone), config.backbone, folder=config.data.cache)
    store.extract(study.images)
    return np.concatenate([batch.mean(dim=(2, 3)).numpy() for batch in store.batches(study.images)])


def _repeated(study: Study) -> int:
    """Presentations whose picture is also among those fitted, in the published folds."""
    return sum(int(np.isin(study.trials[test], study.trials[train]).sum()) for train, test in published_folds(len(study.trials)))


def _columns(found: Comparison) -> dict[str, Any]:
    """Of units.csv."""
    columns: dict[str, Any] = {}
    for name, units in found.units.items():
        columns |= {f"{name}_correlation": units.correlation, f"{name}_r2": units.r2}
        if units.normalised is not None:
            columns[f"{name}_noise_normalised"] = units.normalised
    for kind, values in _of_spaces(found):
        columns |= {f"{name}_{kind}": values[index] for index, name in enumerate(found.spaces)}
    if found.ceiling is not None:
        columns["noise_ceiling"] = found.ceiling
    return {**columns, "preferred": ["" if index == NONE else found.spaces[index] for index in found.preferred]}


def _regions(found: Comparison) -> list[Any]:
    """Of regions.csv."""
    regions = {"all": np.ones(found.study.units, dtype=bool), **found.study.regions}
    rows = []
    for name, units in found.units.items():
        kinds = {"correlation": units.correlation, "r2": units.r2, "noise_normalised": units.normalised}
        rows += [(name, kind, region_summary(values, regions)) for kind, values in kinds.items() if values is not None]
    for kind, values in _of_spaces(found):
        rows += [(name, kind, region_summary(values[index], regions)) for index, name in enumerate(found.spaces)]
    return rows


def _of_spaces(found: Comparison) -> list[tuple[str, NDArray[np.float64]]]:
    """What the joined models say of each space [spaces, V]."""
    kinds = {"stacking_weight": found.answers.weights, "product_measure": found.answers.shares}
    return [(kind, values) for kind, values in kinds.items() if values is not None]
