"""Inference over the machines of a Ray cluster, or over the processors of this one, by Ray Data."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.files import write_text
from shared.imaging import InputFile
from shared.inference.config import InferConfig
from shared.inference.protocols import Predictor
from shared.inference.run import Done, Engine, Result, predict_file
from shared.scaling.cluster import cluster

try:
    import ray
    import ray.data
except ModuleNotFoundError as error:
    raise UserError(f'--engine ray needs Ray ({error.name} is not installed): pip install "fovea[scale]"') from error

__all__ = ["ray_engine"]

_ATTEMPTS = 2
"""How often an input is begun whose worker dies under it: out of memory, a machine that was taken away, a crash in a decoder."""


def ray_engine(predictor_class: type[Predictor[Any]], config: InferConfig, options: Mapping[str, Any]) -> Engine:
    """Predicts in ``config.workers`` processes (at least one), each with a model, and a GPU if there is one, of its own.

    Takes the cluster that RAY_ADDRESS names, or a Ray of its own on this machine. Every worker writes the results of the input files that
    it is given; what became of them comes back here one by one, as each is finished. An input under which its worker dies is tried again,
    and then listed; the worker is replaced.

    Args:
        predictor_class: can be imported on every machine.
        config: model, output, batch size and workers; its paths mean the same files on every machine.
        options: what ``predictor_class.load`` takes besides the model, such as device and precision.
    """

    def predict(inputs: Iterable[InputFile], done: Done) -> Iterator[Result]:
        _forget_attempts(config.output)
        try:
            with cluster():
                for answer in _answers(list(inputs), predictor_class, config, options, done):
                    if answer["stopped_by"]:
                        raise UserError(answer["stopped_by"])
                    yield from (Result(**result) for result in json.loads(answer["results"]))
        finally:
            _forget_attempts(config.output)

    return predict


class _Worker:
    """A process of the cluster: loads the predictor once, then answers for one input file after another.

    Args:
        folder: the working folder of the person's command, in which relative paths, those of the results too, have their meaning.
    """

    def __init__(
        self, predictor_class: type[Predictor[Any]], config: InferConfig, options: Mapping[str, Any], done: Done, folder: str
    ) -> None:
        self.config, self.done = config, done
        self.stopped_by = ""
        try:
            os.chdir(folder)
            self.predictor = predictor_class.load(config.model, **options)
        except OSError as error:
            found = f"{folder}: cannot be read on the machine {platform.node()} ({error.strerror or error})."
            self.stopped_by = f"{found} All machines of the cluster must see the same files, in the same place."
        except UserError as error:
            self.stopped_by = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """row: path and stem of an InputFile. Errors come back as text: an exception would end Ray's whole job, and be logged by it."""
        results: list[Result] = []
        if not self.stopped_by:
            try:
                results = self._results(InputFile(path=Path(row["path"]), stem=row["stem"]))
            except UserError as error:
                self.stopped_by = str(error)
        return {"results": json.dumps([asdict(result) for result in results]), "stopped_by": self.stopped_by}

    def _results(self, file: InputFile) -> list[Result]:
        # Ray tries without end, and cannot tell which input a process died of; so each beginning leaves a mark that outlives the process.
        mark = _attempts(self.config.output) / hashlib.sha256(str(file.path).encode()).hexdigest()
        earlier = len(mark.read_text()) if mark.exists() else 0
        if earlier >= _ATTEMPTS:
            reason = (
                f"{file.path}: the process that read it died, {earlier} times. Is it too large for the memory? Try it with --engine local."
            )
            return [Result(source=str(file.path), reason=reason)]
        write_text(mark, "x" * (earlier + 1))
        results = predict_file(self.predictor, file, output=self.config.output, batch_size=self.config.batch_size, done=self.done)
        mark.unlink(missing_ok=True)
        return results


def _attempts(output: Path) -> Path:
    return output / ".attempts"


def _forget_attempts(output: Path) -> None:
    shutil.rmtree(_attempts(output), ignore_errors=True)


def _answers(
    files: list[InputFile], predictor_class: type[Predictor[Any]], config: InferConfig, options: Mapping[str, Any], done: Done
) -> Iterator[dict[str, Any]]:
    """What ``_Worker`` returned for each of the files, as it comes."""
    gpus = 0 if options.get("device") == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    workers = max(1, min(config.workers, gpus) if gpus else config.workers)
    rows = [{"path": str(file.path), "stem": file.stem} for file in files]
    # A block, what comes back at once and is tried again, is one input. One is in flight: a process that dies takes no other along.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Worker,  # type: ignore[arg-type]  # a class makes one worker in each process
        fn_constructor_kwargs={
            "predictor_class": predictor_class,
            "config": config,
            "options": dict(options),
            "done": done,
            "folder": str(Path.cwd()),
        },
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    dataset.context.enable_progress_bars = False
    yield from dataset.iter_rows()
