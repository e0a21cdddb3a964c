# SPDX-License-Identifier: Apache-2.0
"""Relative poses from a network: the published one, which keeps the tokens of keyframes in the map, or on keypoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from aceg_ros.camera import Camera
from aceg_ros.encoders.keypoints import Keypoints
from aceg_ros.encoders.preprocess import image_to_tensor
from aceg_ros.errors import UserError
from aceg_ros.geometry import pixel_rays
from aceg_ros.maps.posed_keyframes import PosedKeyframes
from aceg_ros.methods.reloc3r_pairs import EstimatedPairs, QueryImage, pair_matches
from aceg_ros.networks.keypoint_relative_pose import KeypointPoseNet, match_keypoints, stack_matches
from aceg_ros.networks.relative_pose import ImageTokens, RelativePoseConfig, RelativePoseNet
from aceg_ros.pose.epipolar import EpipolarConfig, PairMatches
from aceg_ros.pose.motion_averaging import RelativePoses
from aceg_ros.utils.device import half_precision

MIN_WEIGHT = 0.1                     # of matches that count; 0.3 loses pairs (held-out scenes)
DIRECTION_SIGMA_RAD = 0.1            # of the published network on indoor pairs; it does not predict one


@dataclass(frozen=True, kw_only=True)
class KeyframeTokens:
    """Encoder tokens of F keyframes: tokens (N, C) fp16, ordered by keyframe, and rows and columns (F, 2) of each."""

    tokens: Tensor
    grids: Tensor

    def to_section(self) -> dict[str, Tensor]:
        """Return the tensors of the map section."""
        return {"tokens": self.tokens, "grids": self.grids}

    @classmethod
    def from_section(cls, section: Mapping[str, Tensor], count: int) -> KeyframeTokens:
        """Read a map section. Raises UserError unless it has the tokens of `count` keyframes."""
        try:
            found = cls(tokens=section["tokens"], grids=section["grids"])
        except KeyError as error:
            raise UserError(f"The map's tokens have no {error}: map the scene again.") from None
        if (found.grids.shape != (count, 2) or found.tokens.ndim != 2 or int(found.grids.min()) < 1
                or int(found.grids.prod(1).sum()) != len(found.tokens)):
            raise UserError("The map's tokens do not fit its keyframes: map the scene again.")
        return found

    def of(self, keyframe: int) -> ImageTokens:
        """Return the tokens (1, n, C) of a keyframe."""
        ends = self.grids.prod(1).cumsum(0).tolist()
        rows, columns = self.grids[keyframe].tolist()
        return ImageTokens(tokens=self.tokens[ends[keyframe] - rows * columns:ends[keyframe]][None],
                           grid=(rows, columns))


class KeypointNetworkPoses:
    """Relative poses from RANSAC on the matches that a network takes for right, the most confident first.

    The network's own pose, from its weights alone, is less accurate where images overlap little.
    """

    has_matches = True

    def __init__(self, net: KeypointPoseNet, keyframes: PosedKeyframes, *, config: EpipolarConfig | None = None,
                 seed: int = 0):
        self._net, self._keyframes, self._config, self._seed = net, keyframes, config or EpipolarConfig(), seed

    def estimate(self, query: QueryImage, keyframes: np.ndarray) -> EstimatedPairs:
        """Rate and estimate each pair; pairs whose matches agree with no essential matrix are left out."""
        return EstimatedPairs.estimated(self.match(query.keypoints, keyframes), self._config, self._seed)

    @torch.inference_mode()
    def match(self, query: Keypoints, keyframes: np.ndarray) -> list[PairMatches]:
        """Return the matches of each keyframe (K,) that the network takes for right, the most confident first."""
        device, config = query.descriptors.device, self._net.config
        best = query.best(config.keypoints)
        pairs, parts = [], []
        for keyframe in keyframes.tolist():
            stored = self._keyframes.unit_descriptors(keyframe, device)[:config.keypoints]
            found = match_keypoints(stored, best.descriptors.to(stored.dtype), config.matches)
            pair = pair_matches(self._keyframes, keyframe, best, rows=found.columns.cpu().numpy(),
                                columns=found.rows.cpu().numpy())
            rays = [torch.from_numpy(pixel_rays(pixels, k)[:, :2]).float().to(device)
                    for pixels, k in ((pair.key_pixels, pair.key_k), (pair.pixels, pair.camera_k))]
            descriptors = torch.stack([stored[found.rows].float(), best.descriptors[found.columns].float()], 1)
            pairs.append(pair)
            parts.append((rays[0], rays[1], descriptors, found.statistics))
        if not pairs:
            return []
        with half_precision(device.type):
            weights = self._net.weights(stack_matches(parts, config.matches)).cpu().numpy()
        return [pair.subset(most_confident(weight[:len(pair)])) for pair, weight in zip(pairs, weights, strict=True)]


def most_confident(weights: np.ndarray) -> np.ndarray:
    """Return the matches (M,) that weigh enough, the heaviest first."""
    order = np.argsort(-weights, kind="stable")
    return np.asarray(order[weights[order] > MIN_WEIGHT])


class NetworkPoses:
    """Relative poses from the published network: one pass of its encoder for an image, and K decoders."""

    has_matches = False

    def __init__(self, net: RelativePoseNet, keyframes: PosedKeyframes, tokens: KeyframeTokens):
        self._net, self._keyframes, self._tokens = net, keyframes, tokens

    @torch.inference_mode()
    def estimate(self, query: QueryImage, keyframes: np.ndarray) -> EstimatedPairs:
        """Estimate the relative poses to keyframes (K,), in batches of those with images of one size."""
        image = encode_image(self._net, query.image, query.camera)
        poses = np.tile(np.eye(4), (len(keyframes), 1, 1))
        stored = [self._tokens.of(int(keyframe)) for keyframe in keyframes]
        for grid in {tokens.grid for tokens in stored}:
            chosen = [index for index, tokens in enumerate(stored) if tokens.grid == grid]
            poses[chosen] = self._decode([stored[index].tokens for index in chosen], grid, image)
        relative = RelativePoses.from_poses(self._keyframes.pose_array[keyframes], poses, DIRECTION_SIGMA_RAD)
        return EstimatedPairs(keyframes=keyframes, relative=relative)

    def _decode(self, stored: Sequence[Tensor], grid: tuple[int, int], image: ImageTokens) -> np.ndarray:
        """Return keyframe_from_camera (n, 4, 4) of keyframes with tokens (1, N, C)."""
        first = ImageTokens(tokens=torch.cat(list(stored)).to(image.tokens.device, image.tokens.dtype), grid=grid)
        second = ImageTokens(tokens=image.tokens.expand(len(stored), -1, -1), grid=image.grid)
        _, keyframe_from_camera = self._net.decode(first, second)
        return keyframe_from_camera.double().cpu().numpy()


@torch.inference_mode()
def encode_image(net: RelativePoseNet, image: np.ndarray, camera: Camera) -> ImageTokens:
    """Encode a rectified image (H, W, 3) uint8: cropped around the principal point, in the size of the network."""
    weight = net.decoder_embed.weight
    cropped = crop_for_network(image, camera, net.config)
    return net.encode((image_to_tensor(cropped, weight.device) * 2.0 - 1.0).to(weight.dtype))


def crop_for_network(image: np.ndarray, camera: Camera, config: RelativePoseConfig) -> np.ndarray:
    """Crop an image so that the principal point is its centre, and resize it: 224 is square, others keep their shape.

    The longer side becomes config.img_size; both are multiples of the patch size.
    """
    height, width = image.shape[:2]
    half_width = max(min(camera.cx + 0.5, width - 0.5 - camera.cx), width / 4.0)
    half_height = max(min(camera.cy + 0.5, height - 0.5 - camera.cy), height / 4.0)
    if config.img_size < 256:
        half_width = half_height = min(half_width, half_height)
    left, right = max(round(camera.cx + 0.5 - half_width), 0), min(round(camera.cx + 0.5 + half_width), width)
    top, bottom = max(round(camera.cy + 0.5 - half_height), 0), min(round(camera.cy + 0.5 + half_height), height)
    scale = config.img_size / max(right - left, bottom - top)
    size = [max(round(side * scale / config.patch_size), 1) * config.patch_size
            for side in (right - left, bottom - top)]
    return cv2.resize(image[top:bottom, left:right], size, interpolation=cv2.INTER_AREA if scale < 1.0
                      else cv2.INTER_LINEAR)
