"""Our own encoder: RGB -> 128-D unit features at stride 8, small enough for a robot without a GPU.

A pyramid down to 1/32 gives each patch its surroundings; two fusion steps bring them back to 1/8. Pictures are
standardised per channel first, which takes out exposure and colour temperature.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

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


class CompactNet(nn.Module):
    """(B, 3, H, W) in [0, 1], H and W multiples of 8 -> (B, 128, H / 8, W / 8), unit vectors times sqrt(128)."""

    dim = DIM

    def __init__(self) -> None:
        super().__init__()
        self.quarter = nn.Sequential(_conv(3, 16, 4, 2), _conv(16, 32, 4, 2), _Residual(32))
        self.eighth = nn.Sequential(_conv(32, 96, 2, 2), _conv(96, 96, 3))
        self.sixteenth = nn.Sequential(_conv(96, 128, 2, 2), _Residual(128), _Residual(128))
        self.thirtysecond = nn.Sequential(_conv(128, 160, 2, 2), _Residual(160), _Residual(160))
        self.to_sixteenth = nn.Conv2d(160, 128, 1)
        self.fuse_sixteenth = _Residual(128)
        self.to_eighth = nn.Conv2d(128, 96, 1)
        self.fuse_eighth = _conv(96, 128, 3)
        self.describe = nn.Conv2d(128, DIM, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = standardise(images)
        height, width = x.shape[2:]
        if height % 32 or width % 32:
            x = functional.pad(x, (0, -width % 32, 0, -height % 32), mode="replicate")
        eighth = self.eighth(self.quarter(x))
        sixteenth = self.sixteenth(eighth)
        context = self.to_sixteenth(self.thirtysecond(sixteenth))
        sixteenth = self.fuse_sixteenth(sixteenth + _upsample(context))
        eighth = self.describe(self.fuse_eighth(eighth + _upsample(self.to_eighth(sixteenth))))
        eighth = eighth[:, :, :height // STRIDE, :width // STRIDE]
        return functional.normalize(eighth, dim=1) * DIM**0.5


def standardise(images: Tensor) -> Tensor:
    """Zero mean, unit deviation per picture and channel."""
    variance, mean = torch.var_mean(images, (2, 3), keepdim=True)
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
