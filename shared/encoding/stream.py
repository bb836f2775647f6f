"""Ridge for a whole brain: voxels come from disk block by block, and each block's fit is written before the next is begun.

Memory holds what depends on the features, once, and a block of voxels; it does not grow with the number of voxels. A run that was killed
goes on where it stopped. The engine is this process, or the machines of a cluster (shared.scaling.blocks).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from shared.encoding.checks import check_features, check_pairs, unusable
from shared.encoding.choice import Choice, Score
from shared.encoding.responses import ResponseFile
from shared.encoding.ridge import DEFAULT_ALPHAS, RidgeFit, RidgeSolver
from shared.encoding.splits import Split
from shared.errors import UserError
from shared.files import atomic_path, write_json, write_text
from shared.metrics.encoding import pearson, r2

__all__ = ["Block", "BlockDone", "Engine", "Job", "StreamedRidge", "here", "stream_ridge"]

Block = tuple[int, int]
"""First voxel, and the first that is no longer in the block."""


@dataclass(frozen=True, kw_only=True)
class BlockDone:
    """A block whose fit is on disk."""

    block: Block
    failures: dict[int, str]
    """Voxel -> why it was not fitted."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a worker needs; can be sent to another machine that sees the same files."""

    features: NDArray
    responses: ResponseFile
    output: Path
    test_features: NDArray | None
    test_responses: ResponseFile | None
    alphas: tuple[float, ...]
    splits: int | Sequence[Split]
    score: Score
    choice: Choice
    intercept: bool
    device: str

    def prepare(self) -> RidgeSolver:
        """What depends on the features alone."""
        return RidgeSolver(
            self.features,
            alphas=self.alphas,
            splits=self.splits,
            score=self.score,
            choice=self.choice,
            intercept=self.intercept,
            device=self.device,
        )

    def read(self, block: Block) -> NDArray:
        """Responses [n, b] of a block."""
        return self.responses.read(*block)

    def fit(self, solver: RidgeSolver, block: Block, responses: NDArray) -> BlockDone:
        """Fits a block and writes it; voxels that cannot be fitted are NaN there, and named in the answer."""
        reasons = unusable(responses)
        usable = np.setdiff1d(np.arange(responses.shape[1]), list(reasons))
        tensors = {
            "coefficients": np.full((solver.width, responses.shape[1]), np.nan, dtype=np.float32),
            "intercept": np.full(responses.shape[1], np.nan, dtype=np.float32),
            "alphas": np.full(responses.shape[1], np.nan),
            "scores": np.full(responses.shape[1], np.nan),
        }
        if len(usable):
            whole = len(usable) == responses.shape[1]
            fit = solver.fit(responses if whole else responses[:, usable])
            tensors["coefficients"][:, usable], tensors["intercept"][usable] = fit.coefficients, fit.intercept
            tensors["alphas"][usable], tensors["scores"][usable] = fit.alphas, fit.scores
            if self.test_features is not None and self.test_responses is not None:
                truth, prediction = self.test_responses.read(*block)[:, usable], fit.predict(self.test_features)
                for name, score in (("test_pearson", pearson), ("test_r2", r2)):
                    tensors[name] = np.full(responses.shape[1], np.nan)
                    tensors[name][usable] = score(truth, prediction)
        failures = {block[0] + voxel: reason for voxel, reason in reasons.items()}
        with atomic_path(_file(self.output, block)) as path:
            save_file(tensors, path, metadata={"failures": json.dumps(failures)})
        return BlockDone(block=block, failures=failures)


Engine = Callable[[Job, Sequence[Block]], Iterator[BlockDone]]
"""Does the blocks of a job, in any order."""


def here(job: Job, blocks: Sequence[Block]) -> Iterator[BlockDone]:
    """The engine that is this process: computes on one block while it reads the next."""
    solver = job.prepare()
    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting = reader.submit(job.read, blocks[0])
        for index, block in enumerate(blocks):
            responses = waiting.result()
            if index + 1 < len(blocks):
                waiting = reader.submit(job.read, blocks[index + 1])
            yield job.fit(solver, block, responses)


def stream_ridge(
    features: NDArray,
    responses: ResponseFile,
    output: Path | str,
    *,
    test: tuple[NDArray, ResponseFile] | None = None,
    alphas: Sequence[float] | NDArray = DEFAULT_ALPHAS,
    splits: int | Sequence[Split] = 5,
    score: Score = "negative_mse",
    choice: Choice = "each",
    intercept: bool = True,
    device: str = "cpu",
    voxels_at_once: int = 4096,
    engine: Engine = here,
) -> StreamedRidge:
    """``fit_ridge`` of more voxels than fit into memory, in float32, into a folder.

    Called again with the same arguments, it does what is missing.

    Args:
        features: [n, p].
        responses: the file of n stimuli and v voxels.
        output: the folder.
        test: features [m, p] and a file of responses to the same m stimuli, on which every voxel's correlation and R2 are measured.
        alphas, splits, score, intercept, device: as for ``RidgeSolver``.
        choice: each or conservative; a common penalty would need all voxels at once.
        voxels_at_once: in a block; memory for n * voxels_at_once numbers is needed a few times over.
        engine: ``here``, or that of ``shared.scaling.blocks``.

    Raises:
        UserError: if features and responses do not belong together, the folder holds another fit, or it cannot be written. Voxels that
            are constant or not finite are left out and listed in failures.csv.
    """
    output = Path(output).resolve()
    if choice == "common":
        raise UserError("a penalty common to all voxels cannot be chosen block by block. Use choice='each', or fit_ridge in memory.")
    _check(features, responses, test)
    job = Job(
        features=features,
        responses=responses,
        output=output,
        test_features=None if test is None else test[0],
        test_responses=None if test is None else test[1],
        alphas=tuple(float(alpha) for alpha in alphas),
        splits=splits,
        score=score,
        choice=choice,
        intercept=intercept,
        device=device,
    )
    voxels = responses.shape[1]
    blocks = [(start, min(start + voxels_at_once, voxels)) for start in range(0, voxels, voxels_at_once)]
    _claim(output, _maker(job, voxels_at_once))
    missing = [block for block in blocks if not _file(output, block).exists()]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("blocks"), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task("fitting", total=len(blocks), completed=len(blocks) - len(missing))
        if missing:
            for _ in engine(job, missing):
                progress.advance(task)
    fit = StreamedRidge(folder=output)
    lines = [f"{voxel},{reason}\n" for voxel, reason in fit.failures.items()]
    write_text(output / "failures.csv", "".join(["voxel,reason\n", *lines]))
    return fit


@dataclass(frozen=True, kw_only=True)
class StreamedRidge:
    """What ``stream_ridge`` left in a folder, read block by block.

    Raises:
        UserError: if the folder is not such a one, or a block is missing.
    """

    folder: Path
    _ranges: list[Block] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = sorted(path.stem for path in (Path(self.folder) / "blocks").glob("*.safetensors"))
        ranges = [(int(first), int(last)) for first, _, last in (name.partition("-") for name in names)]
        try:
            voxels = json.loads((Path(self.folder) / "maker.json").read_text())["voxels"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{self.folder}: does not hold a streamed ridge. Name the output folder of one.") from error
        if [start for start, _ in ranges] != [0, *[stop for _, stop in ranges[:-1]]] or not ranges or ranges[-1][1] != voxels:
            raise UserError(f"{self.folder}: some blocks of voxels are missing. Run the same command again; it goes on.")
        object.__setattr__(self, "_ranges", ranges)

    @cached_property
    def alphas(self) -> NDArray:
        """[v]; NaN where a voxel could not be fitted, here and in the others."""
        return self._vector("alphas")

    @cached_property
    def scores(self) -> NDArray:
        """[v], cross-validated."""
        return self._vector("scores")

    @cached_property
    def test_pearson(self) -> NDArray:
        """[v], if there was a test set."""
        return self._vector("test_pearson")

    @cached_property
    def test_r2(self) -> NDArray:
        """[v], if there was a test set."""
        return self._vector("test_r2")

    @cached_property
    def failures(self) -> dict[int, str]:
        """Voxel -> why it was not fitted."""
        found: dict[int, str] = {}
        for block in self._ranges:
            with safe_open(_file(self.folder, block), framework="np") as file:
                found |= {int(voxel): reason for voxel, reason in json.loads(file.metadata()["failures"]).items()}
        return found

    def blocks(self) -> Iterator[tuple[Block, RidgeFit]]:
        """Every block's fit, in order; one at a time in memory."""
        for block in self._ranges:
            with safe_open(_file(self.folder, block), framework="np") as file:
                names = ("coefficients", "intercept", "alphas", "scores")
                tensors = {name: file.get_tensor(name) for name in names}
            yield block, RidgeFit(**tensors)

    def predict(self, features: NDArray) -> NDArray:
        """Responses [m, v] to features [m, p]; NaN for voxels that were not fitted."""
        return np.concatenate([fit.predict(features) for _, fit in self.blocks()], axis=1)

    def _vector(self, name: str) -> NDArray:
        parts = []
        for block in self._ranges:
            with safe_open(_file(self.folder, block), framework="np") as file:
                try:
                    parts.append(file.get_tensor(name))
                except SafetensorError as error:
                    raise UserError(f"{self.folder}: was fitted without a test set, so it has no {name}.") from error
        return np.concatenate(parts)


def _check(features: NDArray, responses: ResponseFile, test: tuple[NDArray, ResponseFile] | None) -> None:
    check_features(features)
    check_pairs(len(features), responses.shape[0], names=("features", str(responses.path)))
    if test is None:
        return
    check_features(test[0], name="test features")
    check_pairs(len(test[0]), test[1].shape[0], names=("test features", str(test[1].path)))
    if test[1].shape[1] != responses.shape[1]:
        raise UserError(f"{test[1].path}: {test[1].shape[1]} voxels, but {responses.path}: {responses.shape[1]}. Both must have the same.")
    if test[0].shape[1] != features.shape[1]:
        raise UserError(
            f"test features: {test[0].shape[1]} columns, but features: {features.shape[1]}. Both must come from the same model."
        )


def _maker(job: Job, voxels_at_once: int) -> dict[str, object]:
    """What decides the result, so that a folder is never filled from two different jobs."""
    splits = job.splits if isinstance(job.splits, int) else _digest(*(np.asarray(part) for split in job.splits for part in split))
    files = [file for file in (job.responses, job.test_responses) if file is not None]
    return {
        "features": _digest(job.features, *([] if job.test_features is None else [job.test_features])),
        "responses": [
            {"path": str(Path(file.path).resolve()), "key": file.key, "size": Path(file.path).stat().st_size, "shape": list(file.shape)}
            for file in files
        ],
        "voxels": job.responses.shape[1],
        "voxels_at_once": voxels_at_once,
        "alphas": list(job.alphas),
        "splits": splits,
        "score": job.score,
        "choice": job.choice,
        "intercept": job.intercept,
    }


def _claim(output: Path, maker: dict[str, object]) -> None:
    path = output / "maker.json"
    if path.exists():
        try:
            earlier = json.loads(path.read_text())
        except ValueError:
            earlier = None
        if earlier != maker:
            raise UserError(f"{output}: holds a fit of other features, responses or settings. Name another folder.")
    else:
        write_json(path, maker)
    (output / "blocks").mkdir(parents=True, exist_ok=True)


def _digest(*arrays: NDArray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _file(folder: Path, block: Block) -> Path:
    return Path(folder) / "blocks" / f"{block[0]:09d}-{block[1]:09d}.safetensors"
