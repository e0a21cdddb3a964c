"""Our own encoder: RGB -> 128-D unit features at stride 8 with a reliability each, made for robots without a GPU.

Much of the computation is spent at 1/16 and 1/32, where a patch learns its surroundings; two fusion steps bring them
back to 1/8. Pictures are standardised per channel first, which takes out exposure and colour temperature. Two sizes:
the small one, fast on a CPU, and the large one, which it learned from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.encoders.grid import Grid

STRIDE, DIM = 8, 128


def _conv(dim_in: int, dim_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU. Even kernels halve the grid with cell centres kept on pixel-block centres."""
    padding = (kernel - stride + 1) // 2
    return nn.Sequential(nn.Conv2d(dim_in, dim_out, kernel, stride, padding, bias=False), nn.BatchNorm2d(dim_out),
                         nn.ReLU(inplace=True))


class _Residual(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.first = _conv(dim, dim, 3)
        self.second = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(self.first(x)), inplace=True)


@dataclass(frozen=True)
class Size:
    """Channels at 1/4, 1/8, 1/16 and 1/32; residual blocks at 1/16 and 1/32; smooth: a finer way down to 1/4, and
    3x3 where 1/8 is fused."""

    quarter: int
    eighth: int
    sixteenth: int
    thirtysecond: int
    blocks: tuple[int, int]
    smooth: bool


SMALL = Size(32, 64, 96, 160, (1, 2), smooth=False)            # 1.3 GMAC for 640x480, 1.8 M parameters
LARGE = Size(32, 96, 128, 160, (2, 2), smooth=True)            # 2.9 GMAC, 2.2 M parameters


class CompactNet(nn.Module):
    """(B, 3, H, W) in [0, 1], H and W multiples of 8 -> `Grid` at stride 8; features are unit vectors times
    sqrt(128). rated: whether it gives a reliability."""

    dim = DIM

    def __init__(self, size: Size = SMALL, rated: bool = True) -> None:
        super().__init__()
        if size.smooth:
            self.quarter = nn.Sequential(_conv(3, 16, 4, 2), _conv(16, size.quarter, 4, 2), _Residual(size.quarter))
        else:
            self.quarter = nn.Sequential(_conv(3, size.quarter, 4, 4), _conv(size.quarter, size.quarter, 3))
        self.eighth = nn.Sequential(_conv(size.quarter, size.eighth, 2, 2), _conv(size.eighth, size.eighth, 3))
        self.sixteenth = nn.Sequential(_conv(size.eighth, size.sixteenth, 2, 2),
                                       *(_Residual(size.sixteenth) for _ in range(size.blocks[0])))
        self.thirtysecond = nn.Sequential(_conv(size.sixteenth, size.thirtysecond, 2, 2),
                                          *(_Residual(size.thirtysecond) for _ in range(size.blocks[1])))
        self.to_sixteenth = nn.Conv2d(size.thirtysecond, size.sixteenth, 1)
        self.fuse_sixteenth = _Residual(size.sixteenth)
        self.to_eighth = nn.Conv2d(size.sixteenth, size.eighth, 1)
        self.fuse_eighth = _conv(size.eighth, 128, 3 if size.smooth else 1)
        self.describe = nn.Conv2d(128, DIM, 1)
        self.rate = nn.Conv2d(128, 1, 1) if rated else None

    def forward(self, images: Tensor) -> Grid:
        features, logit = self.raw(images)
        return Grid(functional.normalize(features, dim=1) * DIM**0.5,
                    None if logit is None else torch.sigmoid(logit.float()))

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, 128, h, w) of any length, and the logit (B, h, w) of their reliability, if rated."""
        x = standardise(images)
        height, width = x.shape[2:]
        if height % 32 or width % 32:
            x = functional.pad(x, (0, -width % 32, 0, -height % 32), mode="replicate")
        eighth = self.eighth(self.quarter(x))
        sixteenth = self.sixteenth(eighth)
        context = self.to_sixteenth(self.thirtysecond(sixteenth))
        sixteenth = self.fuse_sixteenth(sixteenth + _upsample(context))
        fused = self.fuse_eighth(eighth + _upsample(self.to_eighth(sixteenth)))
        fused = fused[:, :, :height // STRIDE, :width // STRIDE]
        return self.describe(fused), None if self.rate is None else self.rate(fused)[:, 0]


def standardise(images: Tensor) -> Tensor:
    """Zero mean, unit deviation per picture and channel, as every fourth pixel of every fourth row measures them."""
    variance, mean = torch.var_mean(images[:, :, 2::4, 2::4], (2, 3), keepdim=True)
    return (images - mean) * (1.0 / variance.sqrt().clamp(min=0.02))


def _upsample(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def fuse_batch_norm(net: CompactNet) -> CompactNet:
    """Fold every batch norm into its convolution (in place): the same function, fewer passes over memory."""
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.Sequential):
            for index in range(len(module) - 1):
                conv, norm = module[index], module[index + 1]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[index] = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
                    module[index + 1] = nn.Identity()
    return net
