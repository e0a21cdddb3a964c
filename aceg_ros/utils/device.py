# SPDX-License-Identifier: Apache-2.0
"""The device that torch computes on, and the precision it uses there."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import nn

from aceg_ros.errors import UserError


def half_precision(device: str) -> torch.autocast:
    """Autocast to the fast 16-bit type of a device: fp16 on a GPU, bf16 on a CPU with bf16 units, else none."""
    if device == "cuda":
        return torch.autocast("cuda", torch.float16)
    return torch.autocast("cpu", torch.bfloat16, enabled=computes_in_bf16())


def training_precision(device: str) -> torch.autocast:
    """Autocast for training without loss scaling: bf16 on a GPU, else as `half_precision`."""
    return torch.autocast("cuda", torch.bfloat16) if device == "cuda" else half_precision(device)


@lru_cache
def computes_in_bf16() -> bool:
    """Return whether this processor has instructions for bf16 arithmetic (AMX or AVX512)."""
    return any(_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))


@lru_cache
def has_byte_products() -> bool:
    """Return whether this processor has instructions for dot products of bytes (VNNI)."""
    return any(_capabilities().get(name) for name in ("avx512_vnni", "avx_vnni"))


@lru_cache
def multiplies_int8(device: torch.device) -> bool:
    """Return whether a device is best given descriptors as 8-bit integers (`utils.int8_products`): a processor that
    multiplies these fast, and bf16 not."""
    if device.type != "cpu" or computes_in_bf16() or not has_byte_products():
        return False
    ones, product = torch.ones((32, 128), dtype=torch.int8), torch.empty((32, 32), dtype=torch.int32)
    try:
        torch._int_mm(ones, ones.T, out=product)        # not a public function
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool((product == 128).all())


def _capabilities() -> Mapping[str, Any]:
    """The processor's, as far as torch knows."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def product_type(device: torch.device) -> torch.dtype:
    """Return the type in which a device multiplies descriptors the fastest: bf16 where it computes in it."""
    return torch.bfloat16 if device.type == "cuda" or computes_in_bf16() else torch.float32


def pick_device(device: str) -> str:
    """Resolve "auto" to the GPU if there is one, else to the CPU. Raises UserError if the device is not available."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UserError(f"Unknown device '{device}': use auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("Device 'cuda' was requested, but PyTorch finds no GPU: choose cpu or auto (--device of a"
                        " command, the parameter device of a node).")
    return device


Net = TypeVar("Net", bound=nn.Module)


def to_device(net: Net, device: str) -> Net:
    """Move a network to a device, in the memory layout in which convolutions are fastest."""
    return net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
