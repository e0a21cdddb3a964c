"""The coloured points of a map that was trained: what the network says of the patches that it explains best."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from aceg_ros.mapping.losses import reproject
from aceg_ros.mapping.patch_buffer import PatchBuffer

MAX_ERROR_PX = 4.0


@torch.inference_mode()
def explained_points(coordinates_of: Callable[[Tensor], Tensor], buffer: PatchBuffer, most: int,
                     seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to `most` points (N, 3) float32 and colours (N, 3). coordinates_of: features (B, C) -> coordinates (B, 3)."""
    index = torch.randperm(buffer.size, generator=torch.Generator().manual_seed(seed))[:3 * most]
    points, colours = [], []
    for part in index.split(8192):
        patches = buffer.patches(part.to(buffer.device))
        coordinates = coordinates_of(patches.features)
        seen = reproject(coordinates, patches.view)
        good = seen.valid & (seen.error_px < MAX_ERROR_PX)
        points.append(coordinates[good].float().cpu().numpy())
        colours.append(patches.colours[good].cpu().numpy())
    return np.concatenate(points)[:most].astype(np.float32), np.concatenate(colours)[:most]
