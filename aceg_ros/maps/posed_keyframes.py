# SPDX-License-Identifier: Apache-2.0
"""The posed keyframes of a map that has no landmarks: what each shows, as keypoints with descriptors and words.

A handful of images far from each other have few points in common, so nothing is triangulated; what is known of the
scene is in the poses of the keyframes. Depths of keypoints are kept where a depth camera measured them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.errors import UserError
from aceg_ros.maps.keyframe_database import PIXEL_SCALE
from aceg_ros.utils.device import product_type

SECTION = "keyframes"


@dataclass(frozen=True, kw_only=True)
class PosedKeyframes:
    """F keyframes and their N keypoints, ordered by keyframe.

    Attributes:
        poses: (F, 4, 4) map_from_camera.
        intrinsics: (F, 4) fx, fy, cx, cy of the rectified image in the size of the encoder.
        sizes: (F, 2) width and height of that image.
        first: (F + 1,) int64; the keypoints of keyframe f are first[f] to first[f + 1].
        pixels: (N, 2) int16, in sixteenths of a pixel.
        descriptors: (N, C) int8.
        depths_m: (N,) float16 measured z-depths, NaN where unknown.
        words: (N,) int16, index of the visual word of each descriptor.
        vocabulary: (W, C) int8, the visual words.
    """

    poses: Tensor
    intrinsics: Tensor
    sizes: Tensor
    first: Tensor
    pixels: Tensor
    descriptors: Tensor
    depths_m: Tensor
    words: Tensor
    vocabulary: Tensor

    def __len__(self) -> int:
        return len(self.poses)

    def to_section(self) -> dict[str, Tensor]:
        """Return the tensors of the map section."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_section(cls, section: Mapping[str, Tensor]) -> PosedKeyframes:
        """Read a map section. Raises UserError if tensors are missing or do not fit together."""
        try:
            keyframes = cls(**{field.name: section[field.name] for field in fields(cls)})
        except KeyError as error:
            raise UserError(f"The map's keyframes have no {error}: map the scene again.") from None
        keyframes.check()
        return keyframes

    def check(self) -> None:
        """Raise UserError unless all shapes and indices fit together."""
        count, frames = len(self.descriptors), len(self.poses)
        fits = (self.poses.shape == (frames, 4, 4) and self.intrinsics.shape == (frames, 4)
                and self.sizes.shape == (frames, 2) and self.first.shape == (frames + 1,)
                and self.pixels.shape == (count, 2) and self.words.shape == (count,)
                and self.depths_m.shape == (count,) and self.descriptors.ndim == 2 and self.vocabulary.ndim == 2
                and self.vocabulary.shape[1:] == self.descriptors.shape[1:] and frames > 0 and count > 0)
        fits = fits and bool((self.first[1:] >= self.first[:-1]).all()) and int(self.first[0]) == 0
        fits = fits and int(self.first[-1]) == count and int(self.words.min()) >= 0
        if not fits or int(self.words.max()) >= len(self.vocabulary):
            raise UserError("The map's keyframes do not fit together: map the scene again.")

    def keypoints_of(self, keyframe: int) -> slice:
        """Return which keypoints a keyframe has."""
        return slice(int(self.starts[keyframe]), int(self.starts[keyframe + 1]))

    def unit_descriptors(self, keyframe: int, device: torch.device) -> Tensor:
        """Return a keyframe's descriptors (n, C) of unit length, as 16-bit floats where these multiply faster."""
        key = (keyframe, device)
        if key not in self._unit_descriptors:
            stored = self.descriptors[self.keypoints_of(keyframe)].to(device).float()
            self._unit_descriptors[key] = functional.normalize(stored, dim=1).to(product_type(device))
        return self._unit_descriptors[key]

    @cached_property
    def _unit_descriptors(self) -> dict[tuple[int, torch.device], Tensor]:
        return {}

    @cached_property
    def pose_array(self) -> np.ndarray:
        """The poses (F, 4, 4) as float64."""
        return self.poses.numpy().astype(np.float64)

    @cached_property
    def pixel_array(self) -> np.ndarray:
        """The pixels (N, 2) as float64."""
        return self.pixels.numpy().astype(np.float64) / PIXEL_SCALE

    @cached_property
    def depth_array(self) -> np.ndarray:
        """The depths (N,) as float64, NaN where unknown."""
        return self.depths_m.numpy().astype(np.float64)

    @cached_property
    def starts(self) -> np.ndarray:
        """`first` (F + 1,) as an array."""
        return self.first.numpy()

    def matrix_k(self, keyframe: int) -> np.ndarray:
        """The intrinsics (3, 3) of a keyframe."""
        fx, fy, cx, cy = self.intrinsics[keyframe].double().tolist()
        return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
