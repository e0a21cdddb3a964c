# SPDX-License-Identifier: Apache-2.0
"""Runs the convolutions of our encoders in int8, where a processor multiplies it fast and bf16 not.

Each stage takes float32 and computes with 8 bits: weights with a scale for each channel, what layers compute with one
for each layer (Jacob et al., CVPR 2018). The first convolution stays in float32, since 8 bits are less than what its
images have. All together moves keypoints by 0.03 px, 0.01 of these for the other layers of the first stage.

The ranges of layers are measured on made-up images. Those of real ones are up to 1.7 times as wide, and values beyond a
range are clipped; yet with ranges of real images, or wider ones, descriptors and keypoints are no nearer to those of
float32.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.compact import Residual
from aceg_ros.encoders.compact3 import Compact3Net
from aceg_ros.utils.device import computes_in_bf16, has_byte_products

PEAKS = ("refine_peaks", "peaks")                                               # computed one after the other
STAGES = ("fine.1", "quarter", "eighth", "sixteenth", "thirtysecond", "fuse_sixteenth", "fuse_eighth",
          *PEAKS)
MADE_UP_IMAGES, HEIGHT, WIDTH = 3, 480, 640
CELLS = {160: 1.0, 80: 0.7, 32: 0.7, 16: 0.5, 8: 0.4, 4: 0.3, 2: 0.25}         # px: weight, of the made-up images
LEVELS = 255


def is_possible() -> bool:
    """Return whether this processor has dot products of bytes, and this torch has quantised tensors, which it will drop
    some day."""
    return has_byte_products() and hasattr(torch, "quantize_per_tensor")


def in_int8(encoder: Encoder) -> Encoder:
    """Return the encoder with its convolutions in int8 if that is possible and the fastest here, else as it is."""
    pays = encoder.device.type == "cpu" and is_possible() and not computes_in_bf16()
    return replace(encoder, net=_quantized(encoder.net)) if pays and isinstance(encoder.net, Compact3Net) else encoder


@lru_cache(maxsize=2)
def _quantized(net: Compact3Net) -> Compact3Net:
    """Return a network in int8; the second time the same one."""
    return quantized(net)


def quantized(net: Compact3Net) -> Compact3Net:
    """Return a copy of a network, whose batch norms are in its convolutions, that computes its stages in int8."""
    ranges = _measure_ranges(net)
    copied = copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantize_per_tensor.*deprecated")
        for name in STAGES:
            stage = _blocks(net.get_submodule(name), name, ranges)
            first = [] if name == PEAKS[1] else [_Quantise(ranges[f"{name} input"])]
            last = [] if name == PEAKS[0] else [_Dequantise()]
            parent, _, child = name.rpartition(".")
            setattr(copied.get_submodule(parent), child, nn.Sequential(*first, *stage, *last))
    return copied


class _Convolution(nn.Module):
    """A convolution of quantised tensors, and a ReLU if its results are to lie above zero."""

    def __init__(self, conv: nn.Module, bounds: tuple[float, float]) -> None:
        super().__init__()
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        weight = conv.weight.detach().contiguous(memory_format=torch.channels_last)
        steps = (weight.abs().amax((1, 2, 3)) / 127).clamp(min=1e-9).double()
        zeros = torch.zeros(len(steps), dtype=torch.long)
        eight_bits = torch.quantize_per_channel(weight, steps, zeros, 0, torch.qint8)
        self._packed = torch.ops.quantized.conv2d_prepack(eight_bits, conv.bias.detach(), conv.stride, conv.padding,
                                                          [1, 1], 1)
        self._step, self._zero = _steps(bounds)
        self._run = torch.ops.quantized.conv2d if bounds[0] < 0 else torch.ops.quantized.conv2d_relu

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self._run(x, self._packed, self._step, self._zero)
        return found


class _Residual(nn.Module):
    def __init__(self, block: Residual, name: str, ranges: dict[str, tuple[float, float]]) -> None:
        super().__init__()
        self._first = _Convolution(block.first[0], ranges[f"{name}.first"])
        self._second = _Convolution(block.second[0], ranges[f"{name}.second"])
        self._step, self._zero = _steps(ranges[name])

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.quantized.add_relu(x, self._second(self._first(x)), self._step, self._zero)
        return found


class _Quantise(nn.Module):
    def __init__(self, bounds: tuple[float, float]) -> None:
        super().__init__()
        self._step, self._zero = _steps(bounds)

    def forward(self, x: Tensor) -> Tensor:
        return torch.quantize_per_tensor(x, self._step, self._zero, torch.quint8)


class _Dequantise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.dequantize()


def _blocks(stage: nn.Module, name: str, ranges: dict[str, tuple[float, float]]) -> list[nn.Module]:
    """Return the blocks of a stage, for quantised tensors."""
    if isinstance(stage, nn.Conv2d):
        return [_Convolution(stage, ranges[name])]
    if isinstance(stage, Residual):
        return [_Residual(stage, name, ranges)]
    named = [(f"{name}.{index}", block) for index, block in enumerate(stage.children())]
    return [_Residual(block, place, ranges) if isinstance(block, Residual)
            else _Convolution(next(block.children()), ranges[place]) for place, block in named]


def _steps(bounds: tuple[float, float]) -> tuple[float, int]:
    """Return the step of a range and the level of zero."""
    step = max(bounds[1] - bounds[0], 1e-6) / LEVELS
    return step, round(-bounds[0] / step)


@torch.inference_mode()
def _measure_ranges(net: Compact3Net) -> dict[str, tuple[float, float]]:
    """Measure between which values, 0 among them, the inputs of stages and the outputs of their blocks and layers
    are."""
    ranges: dict[str, tuple[float, float]] = {}

    def note(name: str, x: Tensor) -> None:
        low, high = ranges.get(name, (0.0, 0.0))
        ranges[name] = min(low, float(x.min())), max(high, float(x.max()))

    hooks = []
    for stage in STAGES:
        hooks.append(net.get_submodule(stage).register_forward_pre_hook(
            lambda _, inputs, stage=stage: note(f"{stage} input", inputs[0])))
        for name, module in net.get_submodule(stage).named_modules(prefix=stage):
            if isinstance(module, (nn.Sequential, Residual)) or name == PEAKS[1]:
                hooks.append(module.register_forward_hook(lambda _, __, output, name=name: note(name, output)))
    for seed in range(MADE_UP_IMAGES):
        net(made_up_image(seed).contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    return ranges


def made_up_image(seed: int) -> Tensor:
    """Return an image (1, 3, H, W) in [0, 1] of random patches and gradients of many sizes."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, HEIGHT, WIDTH)
    for cell, weight in CELLS.items():
        size = (HEIGHT // cell + 1, WIDTH // cell + 1)
        for mode in ("nearest", "bilinear"):
            grid = torch.rand(1, 1, *size, generator=generator) + 0.3 * torch.rand(1, 3, *size, generator=generator)
            image += weight * functional.interpolate(grid, (HEIGHT, WIDTH), mode=mode)
    return ((image - image.mean()) / image.std() * 0.2 + 0.45).clamp(0, 1)
