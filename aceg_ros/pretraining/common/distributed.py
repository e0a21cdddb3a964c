# SPDX-License-Identifier: Apache-2.0
"""Distributed training with torchrun: several processes train one network, each on its own scenes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """The group of training processes: this one has number `rank` of `world_size`."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def device(self, device: str) -> str:
        """Return the device of this process: its own GPU if the device is "cuda" and there are several processes."""
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" and self.world_size > 1 else device

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self.world_size > 1:
            distributed.barrier()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process; all processes must call this."""
        if self.world_size == 1:
            return flag
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        count = torch.tensor(float(flag), device=device)
        distributed.all_reduce(count)
        return bool(count > 0)

    def average_gradients(self, net: nn.Module) -> None:
        """Average the gradients over all processes."""
        if self.world_size == 1:
            return
        for parameter in net.parameters():
            if parameter.grad is None:                     # all processes must take part in a collective call
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)
            parameter.grad /= self.world_size


def join_process_group(device: str) -> ProcessGroup:
    """Join the processes started by torchrun; without torchrun, the group is this process alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ProcessGroup()
    if not distributed.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        # The other processes wait while the main one prepares data or evaluates, which may take long.
        distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(days=2))
    return ProcessGroup(rank=distributed.get_rank(), world_size=distributed.get_world_size())
