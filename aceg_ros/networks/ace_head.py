# SPDX-License-Identifier: Apache-2.0
"""The scene coordinate head of ACE (CVPR 2023): a small MLP that maps a patch feature to a point of the map."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from aceg_ros.networks.contraction import Contraction

MIN_SCALE, MAX_SCALE = 0.01, 4.0


class SceneHead(nn.Module):
    """Features (..., dim) -> map-frame coordinates (..., 3).

    Layers and state-dict keys are those of the release, with linear layers instead of 1x1 convolutions
    (`head_from_state` converts). width: hidden size. extra_blocks: residual blocks after the first. homogeneous: four
    outputs instead of three, the fourth a scale. mean: mean camera centre of the mapping poses, added to every
    coordinate. radius: of a head whose outputs are contracted coordinates, see `Contraction`; None for published heads.
    """

    mean: Tensor
    radius: Tensor | None

    def __init__(self, dim: int, width: int = 512, extra_blocks: int = 1, homogeneous: bool = True,
                 mean: Tensor | None = None, radius: Tensor | None = None):
        super().__init__()
        self.homogeneous = homogeneous
        self.extra_blocks = extra_blocks
        self.head_skip = nn.Linear(dim, width) if dim != width else nn.Identity()
        self.res3_conv1 = nn.Linear(dim, width)
        self.res3_conv2 = nn.Linear(width, width)
        self.res3_conv3 = nn.Linear(width, width)
        for block in range(extra_blocks):
            for layer in range(3):
                self.add_module(f"{block}c{layer}", nn.Linear(width, width))
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.fc3 = nn.Linear(width, 4 if homogeneous else 3)
        self.register_buffer("mean", torch.zeros(3) if mean is None else mean.float())
        self.register_buffer("radius", None if radius is None else radius.float())

    @property
    def contraction(self) -> Contraction | None:
        return None if self.radius is None else Contraction(centre=self.mean, radius=self.radius)

    def forward(self, features: Tensor) -> Tensor:
        x = functional.relu(self.res3_conv1(features))
        x = functional.relu(self.res3_conv2(x))
        x = self.head_skip(features) + functional.relu(self.res3_conv3(x))
        for block in range(self.extra_blocks):
            y = x
            for layer in range(3):
                y = functional.relu(self.get_submodule(f"{block}c{layer}")(y))
            x = x + y
        x = functional.relu(self.fc2(functional.relu(self.fc1(x))))
        with torch.autocast(x.device.type, enabled=False):             # coordinates need more than the 8 bits of bf16
            x = self.fc3(x.float())
        if self.homogeneous:
            x = dehomogenize(x)
        contraction = self.contraction
        return x + self.mean if contraction is None else contraction.expand(x)


def dehomogenize(x: Tensor) -> Tensor:
    """Convert homogeneous outputs (..., 4), the last the raw scale, to coordinates (..., 3) (ACE, supplement)."""
    softness = math.log(2.0) / (1.0 - 1.0 / MAX_SCALE)              # so that an output of 0 means scale 1
    scale = (functional.softplus(x[..., 3:], beta=softness) + 1.0 / MAX_SCALE).clamp(max=1.0 / MIN_SCALE)
    return x[..., :3] / scale


RELEASE_BUFFERS = ("max_scale", "min_scale", "max_inv_scale", "min_inv_scale", "h_beta")


def check_scales(state: dict[str, Tensor]) -> None:
    """Raise ValueError if the scales of the homogeneous output in a release's state dict are not the published ones."""
    for name, published in (("max_scale", MAX_SCALE), ("min_scale", MIN_SCALE)):
        if name in state and abs(float(state[name].flatten()[0]) - published) > 1e-3 * published:
            raise ValueError(f"its {name} is {float(state[name].flatten()[0]):g}, not {published:g}")


def head_from_state(state: dict[str, Tensor]) -> SceneHead:
    """Build a head from a state dict in the release's layout (1x1 convolutions) or ours; sizes come from the shapes.

    Raises KeyError or RuntimeError if it is not a state dict of such a head, ValueError if its scales are not the
    published ones.
    """
    check_scales(state)
    ours = {key: value.float().flatten(1) if value.ndim == 4 and key.endswith("weight") else value.float()
            for key, value in state.items() if key not in RELEASE_BUFFERS}
    ours["mean"] = ours["mean"].reshape(3)
    blocks = sum(key.endswith("c0.weight") for key in ours)
    width, dim = ours["res3_conv1.weight"].shape
    head = SceneHead(dim, width, blocks, ours["fc3.weight"].shape[0] == 4, radius=ours.get("radius"))
    head.load_state_dict(ours)
    return head
