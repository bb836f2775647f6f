"""Blocks of voxels over the machines of a Ray cluster, or over the processors of this one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from shared.encoding.stream import Block, BlockDone, Engine, Job
from shared.errors import UserError
from shared.scaling.cluster import cluster

try:
    import ray
    from ray.exceptions import RayActorError, RayTaskError
    from ray.util import ActorPool
except ModuleNotFoundError as error:
    raise UserError(f'--engine ray needs Ray ({error.name} is not installed): pip install "fovea[scale]"') from error

__all__ = ["ray_blocks"]


class _Worker:
    """A process of the cluster: decomposes the features once, then fits one block after another."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.solver = job.prepare()

    def fit(self, block: Block) -> BlockDone:
        return self.job.fit(self.solver, block, self.job.read(block))


def _anywhere(job: Job) -> Job:
    """With paths that a worker finds whatever folder it was started in."""
    responses = replace(job.responses, path=Path(job.responses.path).resolve())
    test = job.test_responses and replace(job.test_responses, path=Path(job.test_responses.path).resolve())
    return replace(job, responses=responses, test_responses=test)


def ray_blocks(workers: int) -> Engine:
    """Fits blocks in ``workers`` processes; the files of the job must be seen by all machines in the same place.

    Takes the cluster that RAY_ADDRESS names, or a Ray of its own on this machine.
    """

    def fit(job: Job, blocks: Sequence[Block]) -> Iterator[BlockDone]:
        with cluster():
            remote = ray.remote(num_cpus=1)(_Worker)
            shared = ray.put(_anywhere(job))
            pool = ActorPool([remote.remote(shared) for _ in range(max(1, min(workers, len(blocks))))])
            try:
                yield from pool.map_unordered(lambda worker, block: worker.fit.remote(block), list(blocks))  # type: ignore[arg-type]
            except RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise UserError(str(error.cause)) from error
                raise
            except RayActorError as error:
                raise UserError(
                    f"{job.output}: a worker died (out of memory?). What is finished stays; the same command goes on. Take fewer workers, "
                    "or smaller blocks."
                ) from error

    return fit
