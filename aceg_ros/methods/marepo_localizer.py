# SPDX-License-Identifier: Apache-2.0
"""The localizer of marepo.

Its steps: find map points for keypoints or cells of the image, regress the pose from all that may be right, refine it
if the map says so, verify it on the most reliable ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from aceg_ros.camera import Frame
from aceg_ros.encoders.preprocess import reject_image
from aceg_ros.estimate import ImageCorrespondences, PoseEstimate, PriorPose, Status
from aceg_ros.maps.header import MIN_COVARIANCE_SCALE
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.marepo import DATABASE, SECTION, MarepoMapSettings, load_coordinates, load_transformer
from aceg_ros.methods.matched_coordinates import MatchedCoordinates
from aceg_ros.methods.scene_coordinates import (
    MAX_CELLS,
    MAX_RELIABLE_CELLS,
    SceneCoordinateConfig,
    SceneCoordinateLocalizer,
    SceneCoordinates,
    encoder_of,
)
from aceg_ros.networks import pose_regressor
from aceg_ros.networks.pose_regressor import Net
from aceg_ros.networks.pose_transformer import PoseTransformer
from aceg_ros.networks.weighing_transformer import WeighingTransformer
from aceg_ros.pose.correspondences import CameraFromMap, Correspondences
from aceg_ros.pose.refinement import refine
from aceg_ros.pose.verify import verify_pose, verify_unrefined_pose
from aceg_ros.utils.device import pick_device
from aceg_ros.utils.stopwatch import Stopwatch

MIN_CELLS = 12                         # that are trusted; fewer say nothing about a pose
ALL_CELLS = 1_000_000
NEAR_SCALES_PX, NEAR_THRESHOLD_PX = (12.0, 8.0, 4.0), 10.0        # for poses that our network has found
MAX_TOKENS = 600                       # of our network, which bounds its time


@dataclass(frozen=True, kw_only=True)
class MarepoConfig:
    """Settings of the localizer.

    reliable_cells: number of the most reliable cells that verify a pose; None: all. refine: whether poses are refined.
    scales_px, refine_steps: scales of the robust loss of the refinement, decreasing from about the error of a regressed
    pose, and number of Gauss-Newton steps at each. regressed_threshold_px: reprojection error below which a
    correspondence agrees with a pose that is not refined (its covariance comes from the refined one); refined ones have
    the threshold of the solver. The defaults of both are for networks that regress poses.
    covariance_scale: of the map, see `mapping.calibration`. seed: of the gates.
    """

    reliable_cells: int | None = None
    refine: bool = False
    scales_px: tuple[float, ...] = (60.0, 30.0, 15.0, 8.0, 4.0)
    refine_steps: int = 3
    regressed_threshold_px: float = 30.0
    covariance_scale: float = MIN_COVARIANCE_SCALE
    seed: int = 0


class MarepoLocalizer:
    """A `Localizer` that regresses the pose from scene coordinates. config: as given."""

    def __init__(self, *, coordinates: SceneCoordinateLocalizer | MatchedCoordinates, net: Net, centre: torch.Tensor,
                 config: MarepoConfig):
        self._coordinates, self._net, self._centre, self.config = coordinates, net, centre, config

    @classmethod
    def from_map(cls, scene_map: SceneMap, *, device: str, seed: int) -> MarepoLocalizer:
        """Make the localizer of a map, with the networks that it was made with, on a device."""
        device = pick_device(device)
        settings = scene_map.settings_as(MarepoMapSettings)
        net = load_transformer(scene_map, device).net
        config = MarepoConfig(reliable_cells=MAX_RELIABLE_CELLS[device], refine=settings.refine, seed=seed,
                              covariance_scale=scene_map.covariance_scale)
        if isinstance(net, WeighingTransformer):
            config = replace(config, scales_px=NEAR_SCALES_PX, regressed_threshold_px=NEAR_THRESHOLD_PX)
        centre = scene_map.sections[SECTION]["centre"].float().to(device)
        coordinates = coordinates_of(scene_map, settings, device, net)
        return cls(coordinates=coordinates, net=net, centre=centre, config=config)

    def localize(self, frame: Frame, prior: PriorPose | None = None) -> PoseEstimate:
        """Regress the pose of the camera in the map, or reject the image; `prior` is not used."""
        rejection = reject_image(frame)
        if rejection is not None:
            return rejection
        found = self.scene_coordinates(frame)
        stopwatch = Stopwatch()
        pose = self.regress_pose(found)
        stopwatch.lap("regress")
        if pose is None:
            return PoseEstimate(status=Status.TOO_FEW_CORRESPONDENCES, stage_ms=found.stage_ms, message=(
                f"fewer than {MIN_CELLS} of {len(found.points)} cells have a map point that is trusted"))
        config, correspondences = self.config, self.most_reliable(found)
        refined = refine_pose(pose, correspondences, config)
        stopwatch.lap("refine")
        estimate = verify_pose(refined, correspondences, seed=config.seed) if config.refine else \
            verify_unrefined_pose(pose, refined, correspondences, threshold_px=config.regressed_threshold_px,
                                  seed=config.seed)
        stage_ms = found.stage_ms | stopwatch.laps_ms | estimate.stage_ms
        shown = ImageCorrespondences(pixels=correspondences.pixels, points=correspondences.points, camera=found.camera)
        return replace(estimate.with_covariance_times(config.covariance_scale), stage_ms=stage_ms,
                       correspondences=shown)

    def scene_coordinates(self, frame: Frame) -> SceneCoordinates:
        """Predict the map points of the cells of a frame, which must have passed `reject_image`."""
        return self._coordinates.scene_coordinates(frame)

    @torch.inference_mode()
    def regress_pose(self, found: SceneCoordinates) -> np.ndarray | None:
        """Regress map_from_camera (4, 4) from the trusted cells of an image; None if there are too few or the network
        gives no finite pose."""
        tokens = tokens_of(found, self._coordinates.stride, self._net)
        if tokens.mask.sum() < MIN_CELLS:
            return None
        tensors = {name: torch.from_numpy(value)[None].to(self._centre.device)
                   for name, value in tokens._asdict().items()}
        pose = pose_regressor.regress_pose(self._net, **tensors, centre=self._centre)
        result = np.eye(4)
        result[:3, :3], result[:3, 3] = pose.rotation[0].double().cpu(), pose.translation[0].double().cpu()
        if not np.isfinite(result).all():
            return None
        u, _, vt = np.linalg.svd(result[:3, :3])               # in double precision: a rotation for `verify_pose`
        result[:3, :3] = u @ vt
        return result

    def most_reliable(self, found: SceneCoordinates) -> Correspondences:
        """Return the correspondences that verify a pose: those that RANSAC would take."""
        count, order = self.config.reliable_cells, np.arange(len(found.points))
        if count is not None and found.reliability is not None and len(order) > count:
            order = np.sort(np.argpartition(-found.reliability, count)[:count])
        return Correspondences(pixels=found.pixels[order], points=found.points[order], camera=found.camera,
                               mask=None if found.mask is None else found.mask[order])


def coordinates_of(scene_map: SceneMap, settings: MarepoMapSettings, device: str, net: Net
                   ) -> SceneCoordinateLocalizer | MatchedCoordinates:
    """Return what predicts the scene coordinates that a network reads, in a map of this method or of that which the
    coordinates come from."""
    if settings.coordinates == DATABASE:
        return MatchedCoordinates.from_map(scene_map, device)
    max_cells = ALL_CELLS if isinstance(net, PoseTransformer) else MAX_CELLS[device]
    return SceneCoordinateLocalizer(
        encoder=encoder_of(scene_map, device), device=device, regressor=load_coordinates(scene_map, device),
        config=SceneCoordinateConfig(max_cells=max_cells, patch_offset_px=settings.patch_offset_px))


class Tokens(NamedTuple):
    """The tokens of an image: points (N, 3), rays (N, 2), mask (N,), confidence (N,), NaN if unknown."""

    points: np.ndarray
    rays: np.ndarray
    mask: np.ndarray
    confidence: np.ndarray

    def subset(self, chosen: np.ndarray) -> Tokens:
        """Return the chosen tokens, by indices or a mask."""
        return Tokens(*(each[chosen] for each in self))


def tokens_of(found: SceneCoordinates, stride: int, net: Net) -> Tokens:
    """Return the scene coordinates of an image as a network takes them: the published one all cells, the more reliable
    half of them in its mask; ours the most confident of these."""
    camera = found.camera
    at_corner = isinstance(net, PoseTransformer) and net.config.at_corner
    shift = (stride - 1) / 2 if at_corner else 0.0
    rays = (found.pixels - shift - (camera.cx, camera.cy)) / (camera.fx, camera.fy)
    finite = np.isfinite(found.points).all(1)
    mask = trusted_cells(finite if found.mask is None else finite & found.mask, found.reliability)
    confidence = found.reliability if found.confidence is None else found.confidence
    if confidence is None:
        confidence = np.full(len(rays), np.nan)
    tokens = Tokens(np.where(finite[:, None], found.points, 0.0).astype(np.float32), rays.astype(np.float32), mask,
                    confidence.astype(np.float32))
    if isinstance(net, PoseTransformer):
        return tokens
    tokens = tokens.subset(mask)
    return tokens.subset(np.sort(np.argsort(-tokens.confidence, kind="stable")[:MAX_TOKENS]))


def trusted_cells(mask: np.ndarray, reliability: np.ndarray | None) -> np.ndarray:
    """Return which cells (N,) a network reads: the more reliable half of an image, where they are usable.

    Of the less reliable half, few points are right: the sky, bare walls, blurred edges.
    """
    if reliability is None:
        return mask
    return mask & (reliability >= np.median(reliability))


def refine_pose(pose: np.ndarray, correspondences: Correspondences, config: MarepoConfig) -> np.ndarray:
    """Refine map_from_camera (4, 4) on its correspondences, without a search; the pose itself if there are too few."""
    data = correspondences.usable
    if data.count < MIN_CELLS:
        return pose
    return refine(data, CameraFromMap.from_pose(pose), config.scales_px, config.refine_steps).map_from_camera
