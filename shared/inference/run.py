"""A Predictor over many inputs: reading ahead, batches, atomic results, resume; a bad input is listed and the others go on."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shared.errors import InputError, UserError
from shared.imaging import InputFile, find_inputs
from shared.inference.config import InferConfig
from shared.inference.ledger import Ledger
from shared.inference.protocols import Prediction, Predictor, Sample

__all__ = ["SOME_FAILED", "Outcome", "Result", "predict_file", "run"]

SOME_FAILED = 3
"""Exit code of a run in which some inputs could not be used."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one sample, or of a whole input that could not be used (then ``reason`` says why)."""

    source: str
    sample: str = ""
    files: Mapping[str, str] | None = None
    """Kind -> path relative to the output folder."""
    summary: Mapping[str, Any] | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run leaves."""

    folder: Path
    rows: list[dict[str, Any]]
    """The lines of predictions.jsonl, those of an earlier run in the same folder included."""
    failures: dict[str, str]
    """Reason by input."""

    @property
    def exit_code(self) -> int:
        """0 if every input could be used, else 3."""
        return SOME_FAILED if self.failures else 0


Done = frozenset[tuple[str, str]]
"""(input, sample) of each that an earlier run finished."""

Engine = Callable[[Iterable[InputFile], Done], Iterator[Result]]
"""Predicts for input files, skipping the samples in the second argument."""


def run(
    config: InferConfig,
    *,
    suffixes: frozenset[str],
    engine: Engine,
    maker: Mapping[str, Any],
    find: Callable[[Sequence[Path]], list[InputFile]] | None = None,
) -> Outcome:
    """Predicts for every input of ``config`` and keeps the record.

    Args:
        config: inputs and output.
        suffixes: endings of the files that the predictor reads.
        engine: see ``local_engine``, and ``shared.scaling.infer`` for Ray.
        maker: what decides the results: see Ledger.
        find: instead of ``find_inputs`` with ``suffixes``, where an input may have many files.

    Raises:
        UserError: if an input does not exist, or the output cannot be written; what was finished stays and is not made again.
    """
    inputs = find(config.input) if find is not None else find_inputs(config.input, suffixes=suffixes)
    ledger = Ledger(config.output, maker)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("inputs"), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(file=sys.stderr)) as progress:
            task = progress.add_task("predicting", total=len(inputs))
            seen: dict[str, None] = {}
            for result in engine(inputs, frozenset(ledger.rows)):
                if result.reason is not None:
                    ledger.fail(result.source, result.reason)
                else:
                    ledger.add(result.source, result.sample, result.files or {}, result.summary or {})
                seen[result.source] = None
                progress.update(task, completed=len(seen))
            progress.update(task, completed=len(inputs))
    finally:
        ledger.close()
    return Outcome(folder=config.output, rows=list(ledger.rows.values()), failures=ledger.failures)


def local_engine(predictor: Predictor[Any], *, output: Path, batch_size: int, workers: int) -> Engine:
    """Predicts in this process. ``workers`` threads read ahead and write behind; 0 does both in turn."""

    def predict(inputs: Iterable[InputFile], done: Done) -> Iterator[Result]:
        with ThreadPoolExecutor(max(1, workers)) as pool:
            items = _ahead(pool, _samples(predictor, inputs, done), depth=batch_size * 2 if workers else 1)
            writing: deque[Future[Result]] = deque()
            for batch in _batches(items, batch_size):
                yield from (failure for failure in batch if isinstance(failure, Result))
                good = [item for item in batch if not isinstance(item, Result)]
                for item, prediction in zip(good, _predict(predictor, [item.data for item in good]), strict=True):
                    if isinstance(prediction, Exception):
                        yield Result(source=item.source, sample=item.sample, reason=_located(item.sample, prediction))
                    else:
                        writing.append(pool.submit(_write, item, prediction, output))
                while len(writing) > 2 * batch_size or (writing and writing[0].done()):
                    yield writing.popleft().result()
            for future in writing:
                yield future.result()

    return predict


def predict_file(predictor: Predictor[Any], file: InputFile, *, output: Path, batch_size: int, done: Done) -> list[Result]:
    """Every result of one input file; what a worker of a cluster does."""
    return list(local_engine(predictor, output=output, batch_size=batch_size, workers=0)([file], done))


Found = tuple[InputFile, Sample]


@dataclass(frozen=True)
class _Item:
    source: str
    sample: str
    stem: str
    data: Any


def _samples(predictor: Predictor[Any], inputs: Iterable[InputFile], done: Done) -> Iterator[Found | Result]:
    for file in inputs:
        try:
            for sample in predictor.samples(file.path, name=str(file.path)):
                if (str(file.path), sample.id) not in done:
                    yield file, sample
        except InputError as error:
            yield Result(source=str(file.path), reason=str(error))


def _ahead(pool: ThreadPoolExecutor, samples: Iterator[Found | Result], *, depth: int) -> Iterator[_Item | Result]:
    """Reads up to ``depth`` samples before they are asked for, in order."""
    waiting: deque[Future[_Item | Result]] = deque()
    for sample in samples:
        waiting.append(pool.submit(_read, sample))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(sample: Found | Result) -> _Item | Result:
    if isinstance(sample, Result):
        return sample
    file, one = sample
    try:
        stem = f"{file.stem}/{one.id}" if one.id else file.stem
        return _Item(str(file.path), one.id, stem, one.read())
    except InputError as error:
        return Result(source=str(file.path), sample=one.id, reason=_located(one.id, error))


def _batches(items: Iterable[_Item | Result], size: int) -> Iterator[list[_Item | Result]]:
    batch: list[_Item | Result] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _predict(predictor: Predictor[Any], data: list[Any]) -> list[Prediction | Exception]:
    """The predictions of a batch; if it fails as a whole, of each sample alone, so that one of them does not take the others down."""
    if not data:
        return []
    try:
        return list(predictor.predict_batch(data))
    except UserError as error:
        if len(data) == 1:
            return [error]
    except RuntimeError as error:  # out of memory, mostly
        if len(data) == 1:
            return [error]
    return [result for one in data for result in _predict(predictor, [one])]


def _write(item: _Item, prediction: Prediction, output: Path) -> Result:
    folder = (output / item.stem).parent
    names = prediction.save(folder, Path(item.stem).name)
    files = {kind: str((folder / name).relative_to(output)) for kind, name in names.items()}
    return Result(source=item.source, sample=item.sample, files=files, summary=prediction.summary())


def _located(sample: str, error: Exception) -> str:
    return f"{sample}: {error}" if sample and sample not in str(error) else str(error)
