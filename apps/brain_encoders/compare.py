"""Feature spaces compared on one study: image, text and joint models, as "Visio-Linguistic Brain Encoding" does, and without its leak.

Oota et al., COLING 2022: ten folds without shuffling, penalties from 1e-6 to 1e9 chosen within each fold, no intercept, presentations as
samples. Where a picture was shown twice, its presentations fall into different folds, so that test pictures were fitted; beside those
scores stand the ones with all presentations of a picture in one fold.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from apps.brain_encoders.config import CompareConfig
from apps.brain_encoders.data import open_study
from apps.brain_encoders.features import FeatureStore, backbone_of
from apps.brain_encoders.language import caption_vectors, joint_vectors
from apps.brain_encoders.study import Study
from apps.brain_encoders.trivial import picture_statistics
from shared.encoding.ridge import fit_ridge
from shared.encoding.splits import Split, contiguous_splits, grouped_splits
from shared.errors import UserError
from shared.files import write_json, write_text
from shared.imaging import read_image
from shared.metrics.encoding import pearson, pearson_over_voxels, r2, two_v_two
from shared.metrics.variance import model_variances, variance_partition
from shared.reports.html import Report

__all__ = ["SpaceScores", "compare", "predict_folds", "published_folds"]

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-6, 9, 16))
FOLDS = 10


@dataclass(frozen=True, kw_only=True)
class SpaceScores:
    """One feature space."""

    space: str
    features: int
    published_two_v_two: float
    """Mean over the published folds."""
    published_pattern_correlation: float
    """Mean over samples of the correlation across units: the paper's "Pearson"."""
    two_v_two: float
    """With each picture in one fold."""
    pattern_correlation: float
    correlation: float
    """Mean over units."""
    r2: float


def compare(config: CompareConfig) -> None:
    """Scores the spaces asked for; leaves spaces.csv, metrics.json and report.html."""
    if not config.spaces:
        raise UserError("spaces: name at least one of image, text, joint and light.")
    study = open_study(config.data)
    vectors = {space: _vectors(space, study, config)[study.trials].astype(np.float64) for space in config.spaces}
    responses = np.asarray(study.responses, dtype=np.float64)
    safe = grouped_splits(study.trials.tolist(), min(FOLDS, len(study.images)), seed=config.seed)
    predicted: dict[str, NDArray] = {}
    rows = []
    for space, found in vectors.items():
        published = [_published_scores(found, responses, fold) for fold in published_folds(len(responses))]
        predicted[space] = predict_folds(found, responses, safe, groups=study.trials)
        rows.append(_scores(space, found.shape[1], published, responses, predicted[space], safe))
    shares = _partition(vectors, responses, safe, study) if 2 <= len(vectors) <= 3 else {}
    leaked = _repeated(study)
    _print(rows, shares, leaked, len(responses))
    write_text(config.output / "spaces.csv", _table(rows))
    write_json(
        config.output / "metrics.json", {"spaces": [asdict(row) for row in rows], "shared_r2": shares, "leaked_presentations": leaked}
    )
    report = Report("Feature spaces compared", subtitle=f"{study.name}: {len(study.images):,} pictures, {study.units:,} units")
    columns = list(asdict(rows[0]))
    report.table(columns, [list(asdict(row).values()) for row in rows], caption=_CAPTION.format(leaked=leaked, samples=len(responses)))
    if shares:
        report.table(["spaces", "mean R2"], [list(pair) for pair in shares.items()], caption="Held-out variance that exactly these share.")
    report.write(config.output / "report.html")
    print(f"To look at: {config.output / 'report.html'}")


def published_folds(samples: int) -> list[Split]:
    """Ten successive blocks of presentations, as published."""
    return contiguous_splits(samples, min(FOLDS, samples))


def predict_folds(
    features: NDArray[np.floating], responses: NDArray[np.floating], folds: Sequence[Split], *, groups: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Out-of-fold predictions [N, V]: standardised by the fitted samples, with an intercept, penalties chosen over groups as well."""
    predicted = np.empty_like(responses)
    for train, test in folds:
        centre, spread = features[train].mean(axis=0), features[train].std(axis=0)
        standard = (features - centre) / np.where(spread > 0, spread, 1)
        inner = grouped_splits(groups[train].tolist(), 5)
        fitted = fit_ridge(standard[train], responses[train], alphas=ALPHAS, splits=inner)
        predicted[test] = fitted.predict(standard[test])
    return predicted


def _published_scores(features: NDArray, responses: NDArray, fold: Split) -> tuple[float, float]:
    """2V2 and Pearson of one fold as the authors' program computes them."""
    train, test = fold
    inner = contiguous_splits(len(train), min(FOLDS, len(train)))
    fitted = fit_ridge(features[train], responses[train], alphas=ALPHAS, splits=inner, score="r2", intercept=False)
    answer = fitted.predict(features[test])
    return two_v_two(responses[test], answer), float(pearson_over_voxels(responses[test], answer).mean())


def _scores(
    space: str, width: int, published: list[tuple[float, float]], responses: NDArray, predicted: NDArray, folds: Sequence[Split]
) -> SpaceScores:
    means = np.mean(published, axis=0)
    return SpaceScores(
        space=space,
        features=width,
        published_two_v_two=float(means[0]),
        published_pattern_correlation=float(means[1]),
        two_v_two=float(np.mean([two_v_two(responses[test], predicted[test]) for _, test in folds])),
        pattern_correlation=float(pearson_over_voxels(responses, predicted).mean()),
        correlation=float(pearson(responses, predicted).mean()),
        r2=float(r2(responses, predicted).mean()),
    )


def _partition(vectors: dict[str, NDArray], responses: NDArray, folds: Sequence[Split], study: Study) -> dict[str, float]:
    """Spaces -> mean over units of the variance that exactly they share, on held-out pictures."""

    def score(chosen: tuple[str, ...]) -> NDArray[np.float64]:
        together = np.concatenate([vectors[space] for space in chosen], axis=1)
        return r2(responses, predict_folds(together, responses, folds, groups=study.trials))

    parts = variance_partition(model_variances(list(vectors), score))
    return {" and ".join(sorted(spaces)): float(values.mean()) for spaces, values in parts.items()}


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


_CAPTION = (
    "published: ten successive folds of presentations, in which {leaked:,} of {samples:,} show a picture that was also fitted. "
    "The others: each picture in one fold. pattern correlation is across units, the paper's Pearson; correlation is across pictures."
)


def _print(rows: list[SpaceScores], shares: dict[str, float], leaked: int, samples: int) -> None:
    table = Table(title="published folds, and (safe) each picture in one fold", title_justify="left")
    for column in ("space", "features", "2V2", "pattern r", "safe 2V2", "safe pattern r", "safe r", "safe R2"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(row.space, str(row.features), *(f"{value:.3f}" for value in list(asdict(row).values())[2:]))
    Console(width=max(Console().width, 110)).print(table)
    print(f"in the published folds {leaked:,} of {samples:,} presentations show a picture that was also fitted")
    for spaces, share in shares.items():
        print(f"held-out R2 of {spaces} alone: {share:.4f}")


def _table(rows: list[SpaceScores]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()
