"""Two processes that see half a batch each take the gradients that one process takes of the whole."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from apps.reversible_unet.model import ReversibleUNet

WORLD = 2


def network() -> ReversibleUNet:
    torch.manual_seed(0)
    return ReversibleUNet(channels=(4, 8), encoder_depth=2).double()


def loss(logits: Tensor) -> Tensor:
    return logits.square().mean()


def batch() -> Tensor:
    return torch.randn(WORLD, 4, 4, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    parallel = DistributedDataParallel(network())
    loss(parallel(batch()[rank : rank + 1])).backward()
    torch.save({name: weight.grad for name, weight in parallel.module.named_parameters()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_take_the_gradients_of_one(tmp_path: Path) -> None:
    # Importing torch takes longer than all the rest: one server does it, and is forked.
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(train, args=(str(tmp_path),), nprocs=WORLD, start_method="forkserver")
    alone = network()
    loss(alone(batch())).backward()
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, weight in alone.named_parameters():
            torch.testing.assert_close(found[name], weight.grad, rtol=1e-10, atol=1e-10)
