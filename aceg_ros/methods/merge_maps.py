# SPDX-License-Identifier: Apache-2.0
"""Merges two maps with keyframe databases into one, in the frame of the first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from aceg_ros.encoders.keypoints import Keypoints
from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate
from aceg_ros.geometry import invert, nearest_pose, pose_error
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.merge_databases import merge_databases
from aceg_ros.mapping.observation_table import ObservationTable
from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase, camera_of
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.database_extender import OBSERVATIONS, table_of, with_display, with_table
from aceg_ros.methods.keyframe_localizer import KeyframeLocalizer
from aceg_ros.methods.registry import after_growth, check_growth
from aceg_ros.methods.scene_coordinates import encoder_of

_LOG = logging.getLogger("aceg_ros")
MIN_COMMON = 3                      # keyframes that must agree on a transform
ENOUGH_COMMON = 24                  # of which more tell nothing new
SAME_PLACE_DEPTHS, SAME_DIRECTION_DEG = 0.1, 3.0        # of the poses by which two keyframes agree

POSE_NOISE_M, POSE_NOISE_RAD = 0.02, 0.005              # of a keyframe that was localized; only their ratio counts


@dataclass(frozen=True, kw_only=True)
class FoundTransform:
    """a_from_b (4, 4), and the number of keyframes that agree with it."""

    a_from_b: np.ndarray
    agreeing: int


def merge_maps(first: SceneMap, second: SceneMap, a_from_b: np.ndarray | None, *, budget: MappingBudget,
               seed: int = 0) -> tuple[SceneMap, FoundTransform]:
    """Merge two maps, in the frame of the first.

    Args:
        first: with a keyframe database.
        second: made with the same encoder and method.
        a_from_b: (4, 4) maps points of the second map into the first; None: it is found, by localizing keyframes.
        budget: time limit and progress.
        seed: of random choices.

    Returns:
        The merged map, and the transform with the number of keyframes that agree with it (0 if it was given).

    Raises:
        UserError: the maps do not fit together, or fewer than MIN_COMMON keyframes agree on a transform.
    """
    for scene_map in (first, second):
        check_growth(scene_map)
        if SECTION not in scene_map.sections:
            raise UserError("Only maps with a keyframe database can be merged.")
    if first.method != second.method or first.network("encoder").identity != second.network("encoder").identity:
        raise UserError(f"The maps were made by {first.method} with {first.network('encoder').identity} and by"
                        f" {second.method} with {second.network('encoder').identity}: only maps of the same method and"
                        " encoder can be merged.")
    table, other = table_of(first), table_of(second)
    stride = encoder_of(first, "cpu").stride
    found = FoundTransform(a_from_b=a_from_b, agreeing=0) if a_from_b is not None else \
        find_transform(first, other, stride=stride, budget=budget, seed=seed)
    merged = merge_databases(table, other.moved(found.a_from_b), count=OBSERVATIONS, stride=stride, seed=seed,
                             budget=budget)
    common = len(table.points) + len(other.points) - len(merged.points)
    _LOG.info(f"{len(merged.poses)} keyframes; {common} landmarks were in both maps or in no keyframe that was kept")
    return after_growth(_with_display(with_table(first, merged, seed), second, found.a_from_b), "cpu", seed), found


def find_transform(first: SceneMap, other: ObservationTable, *, stride: int, budget: MappingBudget, seed: int = 0
                   ) -> FoundTransform:
    """Find the transform between two maps by localizing the keyframes of the second in the first.

    Raises UserError unless MIN_COMMON of them agree.
    """
    database = KeyframeDatabase.from_section(first.sections[SECTION])
    localizer = KeyframeLocalizer.from_map(first, device="cpu", seed=seed)
    found = _localized(localizer.localize_keypoints, other, stride, budget.phase("finding common keyframes"))
    limit = SAME_PLACE_DEPTHS * float(np.median(database.depths_m))
    agreeing = _largest_consensus(found, other.poses, limit)
    if len(agreeing) < MIN_COMMON:
        raise UserError(f"The maps have too little in common: {len(found)} of {len(other.poses)} keyframes of the"
                        f" second were found in the first, and {len(agreeing)} of them agree on where it is"
                        f" ({MIN_COMMON} are needed). Extend one map by a recording that joins both, or give"
                        " --transform.")
    return FoundTransform(a_from_b=_average(found, other.poses, agreeing), agreeing=len(agreeing))


def _localized(localize: Callable[[Keypoints], PoseEstimate], other: ObservationTable, stride: int,
               budget: MappingBudget) -> dict[int, np.ndarray]:
    """Return the poses in the first map of keyframes that were found in it; at most about ENOUGH_COMMON."""
    found: dict[int, np.ndarray] = {}
    order = np.random.default_rng(0).permutation(len(other.poses))
    for done, keyframe in enumerate(order.tolist()):
        if budget.is_over() or len(found) >= ENOUGH_COMMON:
            break
        estimate = localize(_keypoints(other, keyframe, stride))
        if estimate.map_from_camera is not None:
            found[keyframe] = estimate.map_from_camera
        budget.report(done / len(order))
    return found


def _keypoints(table: ObservationTable, keyframe: int, stride: int) -> Keypoints:
    """Return the observations of a keyframe as the keypoints of an image, of which each cell has one."""
    part = slice(int(table.starts[keyframe]), int(table.starts[keyframe + 1]))
    width, height = table.sizes[keyframe].tolist()
    size = height // stride, width // stride
    column, row = (np.clip(((axis + 0.5) / stride).astype(np.int64), 0, limit - 1)
                   for axis, limit in zip(table.pixels[part].T, size[::-1], strict=True))
    cells, first = np.unique(row * size[1] + column, return_index=True)
    first = np.sort(first)
    cells = (row * size[1] + column)[first]
    descriptors = functional.normalize(table.descriptors[part][torch.from_numpy(first)].float(), dim=1)
    return Keypoints(pixels=table.pixels[part][first].astype(np.float32), descriptors=descriptors, cells=cells,
                     map_size=size, stride=stride, camera=camera_of(table.intrinsics[keyframe], table.sizes[keyframe]))


def _largest_consensus(found: dict[int, np.ndarray], poses: np.ndarray, limit: float) -> list[int]:
    """Return the keyframes that agree with the transform of one of them, the most there are."""
    best: list[int] = []
    for keyframe, pose in found.items():
        a_from_b = pose @ invert(poses[keyframe])
        agreeing = []
        for other, other_pose in found.items():
            distance, angle_deg = pose_error(a_from_b @ poses[other], other_pose)
            if distance < limit and angle_deg < SAME_DIRECTION_DEG:
                agreeing.append(other)
        best = max(best, agreeing, key=len)
    return best


def _average(found: dict[int, np.ndarray], poses: np.ndarray, agreeing: list[int]) -> np.ndarray:
    """Return the transform that brings the agreeing keyframes, in the least-squares sense, to where they were found."""
    own, wanted = poses[agreeing], np.stack([found[keyframe] for keyframe in agreeing])
    middle, wanted_middle = own[:, :3, 3].mean(0), wanted[:, :3, 3].mean(0)
    spread = np.einsum("fi,fj->ij", wanted[:, :3, 3] - wanted_middle, own[:, :3, 3] - middle)
    turns = np.einsum("fij,fkj->ik", wanted[:, :3, :3], own[:, :3, :3])
    result = np.eye(4)
    result[:3, :3] = turns + 2.0 * (POSE_NOISE_RAD / POSE_NOISE_M)**2 * spread
    result = nearest_pose(result)
    result[:3, 3] = wanted_middle - result[:3, :3] @ middle
    return result


def _with_display(merged: SceneMap, second: SceneMap, a_from_b: np.ndarray) -> SceneMap:
    """Add what is shown of the second map, and add up the statistics."""
    shown = with_display(merged, second.cloud_xyz @ a_from_b[:3, :3].T + a_from_b[:3, 3], second.cloud_rgb,
                         poses=a_from_b @ second.trajectory, cameras=second.cameras, seed=0)
    a, b = merged.statistics, second.statistics
    statistics = replace(a, frames=a.frames + b.frames, skipped=a.skipped + b.skipped, encoded=a.encoded + b.encoded,
                         held_out=a.held_out + b.held_out, mapping_s=a.mapping_s + b.mapping_s,
                         patches=len(merged.sections[SECTION]["descriptors"]), complete=a.complete and b.complete)
    return replace(shown, statistics=statistics,
                   covariance_scale=max(merged.covariance_scale, second.covariance_scale))
