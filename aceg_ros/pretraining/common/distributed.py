"""Several processes that train one network together, as torchrun starts them: each on places of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes files."""
        return self.rank == 0

    def device(self, device: str) -> str:
        """Its own GPU, where the device is one."""
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" and self.count > 1 else device

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            distributed.barrier()

    def average_gradients(self, net: nn.Module) -> None:
        """Give every process the mean of all processes' gradients."""
        if self.count == 1:
            return
        for parameter in net.parameters():
            if parameter.grad is None:                     # a collective call must be everyone's
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)
            parameter.grad /= self.count


def join(device: str) -> Ranks:
    """Meet the other processes; alone where torchrun did not start this one."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Ranks()
    if not distributed.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        # While the first prepares data or evaluates, the others wait: for as long as it takes.
        distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(days=2))
    return Ranks(distributed.get_rank(), distributed.get_world_size())
