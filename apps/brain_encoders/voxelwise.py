"""Voxelwise ridge of a whole brain from tables on disk: block after block of voxels, written as it goes, here or over a Ray cluster."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.brain_encoders.config import VoxelwiseConfig
from shared.arrays import load_npy
from shared.devices import resolve_device
from shared.encoding.checks import check_features, check_pairs
from shared.encoding.responses import ResponseFile
from shared.encoding.runs import run_labels
from shared.encoding.splits import Split, check_leakage, grouped_splits, run_splits
from shared.encoding.stream import Engine, StreamedRidge, here, stream_ridge
from shared.errors import InputError, UserError
from shared.files import atomic_path, write_json
from shared.inference.run import SOME_FAILED

__all__ = ["fit_voxelwise"]

_SHOWN = 5


def fit_voxelwise(config: VoxelwiseConfig) -> int:
    """Leaves blocks/ (coefficients and more), voxels.csv, failures.csv and metrics.json; the exit code is 3 if voxels were left out."""
    features = _features(config.features)
    responses = _responses(config.responses, config)
    check_pairs(len(features), responses.shape[0], names=(str(config.features), str(config.responses)))
    stimuli = _stimuli(features, config.features)
    test = None
    if config.test_features is not None and config.test_responses is not None:
        test = (_features(config.test_features), _responses(config.test_responses, config))
        check_pairs(len(test[0]), test[1].shape[0], names=(str(config.test_features), str(config.test_responses)))
        known = {digest: name for name, digest in zip(stimuli, _digests(features), strict=True)}
        shown = [known.get(digest, digest) for digest in _digests(test[0])]
        check_leakage(stimuli, shown, allow_repeats=config.allow_repeats)
    elif (config.test_features is None) != (config.test_responses is None):
        raise UserError("test_features and test_responses belong together: give both, or neither.")
    fit = stream_ridge(
        features,
        responses,
        config.output,
        test=test,
        alphas=config.alphas,
        splits=_splits(stimuli, config),
        device=str(resolve_device(config.device)),
        voxels_at_once=config.voxels_at_once,
        engine=_engine(config),
    )
    names = ("alphas", "scores", *(("test_pearson", "test_r2") if test else ()))
    columns = {name: getattr(fit, name) for name in names}
    _write_table(config.output / "voxels.csv", columns)
    write_json(config.output / "metrics.json", _facts(fit, columns, len(features), features.shape[1]))
    print(
        f"{len(fit.alphas) - len(fit.failures)} of {len(fit.alphas)} voxels fitted. In {config.output}: voxels.csv, metrics.json, blocks/"
    )
    if test and len(fit.failures) < len(fit.alphas):
        print(f"correlation on the test stimuli: mean {np.nanmean(fit.test_pearson):.3f}, best {np.nanmax(fit.test_pearson):.3f}")
    if fit.failures:
        first = ", ".join(f"{voxel} ({reason})" for voxel, reason in list(fit.failures.items())[:_SHOWN])
        more = ", ..." if len(fit.failures) > _SHOWN else ""
        print(f"{len(fit.failures)} voxels could not be fitted: {first}{more}. All are in {config.output / 'failures.csv'}.")
    return SOME_FAILED if fit.failures else 0


def _features(path: Path) -> NDArray[np.float32]:
    """[n, p], in memory: everything else depends on it."""
    table = load_npy(path, what="a table of features", advice="Write it with numpy.save, [stimuli, features].")
    if table.dtype.kind not in "fiu":
        raise InputError(f"{path}: one table of numbers [stimuli, features] is needed. Write it with numpy.save.")
    check_features(table, name=str(path))
    return np.ascontiguousarray(table, dtype=np.float32)


def _responses(path: Path, config: VoxelwiseConfig) -> ResponseFile:
    return ResponseFile(path, key=config.key, voxels_first=config.voxels_first)


def _digests(features: NDArray[np.float32]) -> list[str]:
    return [hashlib.sha256(row.tobytes()).hexdigest() for row in features]


def _stimuli(features: NDArray[np.float32], path: Path) -> list[str]:
    """The stimulus of each row, named by the first row that shows it: equal features are one stimulus, shown again."""
    first: dict[str, str] = {}
    return [first.setdefault(digest, f"row {row} of {path.name}") for row, digest in enumerate(_digests(features))]


def _splits(stimuli: list[str], config: VoxelwiseConfig) -> int | list[Split]:
    """Each run left out; or each stimulus in one fold, with all its presentations."""
    if config.runs:
        if sum(config.runs) != len(stimuli):
            raise UserError(f"runs: {sum(config.runs)} rows in all, but {config.features}: {len(stimuli)}. Give the length of each run.")
        return run_splits(run_labels(config.runs))
    return config.folds if len(set(stimuli)) == len(stimuli) else grouped_splits(stimuli, config.folds, seed=config.seed)


def _engine(config: VoxelwiseConfig) -> Engine:
    if config.engine == "local":
        return here
    from shared.scaling.blocks import ray_blocks

    return ray_blocks(config.workers)


def _write_table(path: Path, columns: dict[str, NDArray]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(",".join(["voxel", *columns]) + "\n")
        for voxel, row in enumerate(zip(*columns.values(), strict=True)):
            file.write(",".join([str(voxel), *(f"{value:.6g}" for value in row)]) + "\n")


def _facts(fit: StreamedRidge, columns: dict[str, NDArray], stimuli: int, features: int) -> dict[str, object]:
    fitted = np.isfinite(columns["alphas"])
    facts: dict[str, object] = {"stimuli": stimuli, "features": features, "voxels": len(fitted), "voxels_left_out": len(fit.failures)}
    for name, values in columns.items():
        if name != "alphas" and fitted.any():
            facts[f"mean_{name}"] = float(values[fitted].mean())
    return facts
