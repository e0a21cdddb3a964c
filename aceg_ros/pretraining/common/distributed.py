"""Several processes that train one network together, as torchrun starts them: each on scenes of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """This process is number `rank` of `world_size`."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def device(self, device: str) -> str:
        """The process's own GPU if the device is "cuda" and there are several processes."""
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" and self.world_size > 1 else device

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.world_size > 1:
            distributed.barrier()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all must call it."""
        if self.world_size == 1:
            return flag
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        count = torch.tensor(float(flag), device=device)
        distributed.all_reduce(count)
        return bool(count > 0)

    def average_gradients(self, net: nn.Module) -> None:
        """Give every process the mean of all processes' gradients."""
        if self.world_size == 1:
            return
        for parameter in net.parameters():
            if parameter.grad is None:                     # all processes must take part in a collective call
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)
            parameter.grad /= self.world_size


def join_process_group(device: str) -> ProcessGroup:
    """Meet the other processes that torchrun started; a group of one if it did not start this process."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ProcessGroup()
    if not distributed.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        # While the main process prepares data or evaluates, the others wait: for as long as it takes.
        distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(days=2))
    return ProcessGroup(rank=distributed.get_rank(), world_size=distributed.get_world_size())
