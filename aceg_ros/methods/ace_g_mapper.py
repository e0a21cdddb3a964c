# SPDX-License-Identifier: Apache-2.0
"""Mapping by ACE-G (Bruns et al., ICCV 2025): builds the code of a scene for the frozen regressor.

By default the code is a keyframe database, built in seconds. For a regressor that reads landmarks these are clustered,
and for the published one (`aceg import ace-g`) a code is optimised by reprojection, as in the paper.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from aceg_ros.camera import Frame
from aceg_ros.encoders.base import Encoder, load_encoder
from aceg_ros.errors import UserError
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.build_database import DatabaseOptions, build_database
from aceg_ros.mapping.frames import MappingFrames
from aceg_ros.mapping.landmarks import Landmarks, cluster_landmarks, find_landmarks, subsample
from aceg_ros.mapping.optimize_map_code import MapCodeOptions, optimize_map_code
from aceg_ros.mapping.patch_buffer import FillOptions, PatchBuffer, fill_buffer
from aceg_ros.mapping.point_cloud import predict_point_cloud
from aceg_ros.mapping.triangulation import TriangulationOptions
from aceg_ros.maps.header import MappingStatistics, NetworkReference
from aceg_ros.maps.keyframe_database import SECTION
from aceg_ros.maps.scene_map import SceneMap, display_sections
from aceg_ros.methods.ace_g import (
    DATABASE_ENCODER,
    SHIPPED_REGRESSOR,
    SHIPPED_REGRESSOR_ENCODER,
    AceGMapSettings,
    AceGOptions,
)
from aceg_ros.methods.base import MappingOptions
from aceg_ros.networks.landmark_regressor import LandmarkRegressor
from aceg_ros.networks.map_code_transformer import MapCode, TransformerHead
from aceg_ros.networks.regressor import Regressor, load_regressor
from aceg_ros.utils.device import pick_device

_LOG = logging.getLogger("aceg_ros")
MIN_LANDMARKS = 200
MIN_LANDMARK_SHARE = 0.05            # of an image's patches: pure noise gives 0.02 by chance, scenes 0.2 to 0.5
DATABASE_SHARE = 0.1                 # of the budget, kept for tracks and the vocabulary
CLUSTERING_SHARE = 0.12              # of the budget, kept for clustering the landmarks
FINISH_SHARE, FINISH_S = 0.02, 1.0   # of the budget, for the cloud and the file
COMPACT_OBSERVATIONS = 95_000        # of compact maps, which then stay below 5 MB
CLOUD_POINTS = 15_000                # fewer than a map may have, so that the cloud is not the larger part of the file
KEY_SCALE = 127                      # keys are unit vectors as int8


@dataclass(frozen=True, kw_only=True)
class AceGSettings:
    """Sizes for a device. database: of the keyframe database. landmarks: largest number after clustering, for
    regressors that read landmarks.

    For the published regressor: buffer, capacity in patches; patches_per_image; fill_share, share of the budget for
    encoding images; training.
    """

    database: DatabaseOptions = field(default_factory=DatabaseOptions)
    landmarks: int = 8192
    triangulation: TriangulationOptions = field(default_factory=TriangulationOptions)
    buffer: int = 4_000_000
    patches_per_image: int = 1024
    fill_share: float = 0.3
    training: MapCodeOptions = field(default_factory=MapCodeOptions)


# Buffer, batch and code are as published on a GPU, and much smaller on a CPU.
SETTINGS = {"cuda": AceGSettings(),
            "cpu": AceGSettings(buffer=500_000, training=MapCodeOptions(codes=1024, batch=2048))}


class AceGMapper:
    """Collects posed frames, then builds the scene's code from them within the budget."""

    def __init__(self, options: MappingOptions, method_options: AceGOptions | None = None, *,
                 settings: AceGSettings | None = None):
        self._options, self._method_options = options, method_options or AceGOptions()
        self._device = pick_device(options.device)
        self._settings = settings or SETTINGS[self._device]
        with_regressor = self._method_options.regressor is not None or self._method_options.codes is not None
        suitable = SHIPPED_REGRESSOR_ENCODER if with_regressor else DATABASE_ENCODER
        self._encoder = load_encoder(options.encoder or suitable, self._device)
        self._regressor: Regressor | None = None
        if with_regressor:
            source = self._method_options.regressor or SHIPPED_REGRESSOR
            self._regressor = _load_matching_regressor(source, self._encoder, self._device)
        self._frames = MappingFrames(self._encoder, options.use_depth, trust_poses=options.trust_poses)

    def add(self, frame: Frame) -> None:
        """Add one posed frame. Raises UserError if its pose or image is unusable."""
        self._frames.add(frame)

    def build(self, budget: MappingBudget) -> SceneMap:
        """Build the code of the scene, from landmarks or by optimisation, within the budget.

        If the user stops it, the map has the code so far and is marked incomplete.
        """
        self._frames.check()
        budget = budget.reserve(FINISH_SHARE * budget.total_s + FINISH_S)
        torch.manual_seed(self._options.seed)
        if self._regressor is None:
            scene_map = self._build_database(budget)
        elif isinstance(self._regressor.net, LandmarkRegressor):
            scene_map = self._build_from_landmarks(budget)
        else:
            scene_map = self._build_by_optimization(budget)
        budget.phase("done").report(1.0, scene_map.statistics.reprojection_px, 0.0)
        return scene_map

    def _build_database(self, budget: MappingBudget) -> SceneMap:
        """Build a keyframe database, and a map with it."""
        compact = self._method_options.compact
        options = replace(self._settings.database, seed=self._options.seed,
                          refine_poses=not self._method_options.keep_poses)
        if compact:
            options = replace(options, observations=COMPACT_OBSERVATIONS)
        reserved = budget.reserve(DATABASE_SHARE * budget.total_s)
        built = build_database(self._frames.prepared, self._encoder, options, reserved,
                               use_depth=self._options.use_depth)
        count = 0 if built is None else len(built.database.descriptors)
        if built is None or count < MIN_LANDMARKS or built.tracked_share < MIN_LANDMARK_SHARE:
            raise UserError(f"Only {count} keypoints of {len(self._frames)} images were matched and triangulated: take"
                            " more images that overlap and see the same from different positions, or give more time.")
        _LOG.info(f"{len(built.database)} keyframes, {len(built.database.points)} landmarks, {count} observations,"
                  f" median error {built.error_px:.2f} px, at most {built.tolerance_px:.1f} px")
        shown = np.random.default_rng(self._options.seed).permutation(len(built.colours))[:CLOUD_POINTS]
        statistics = replace(self._statistics(budget), encoded=built.encoded, patches=count,
                             complete=not budget.should_stop())
        section = built.database.to_section(compact, self._options.seed)
        return self._finish({SECTION: section}, built.database.points.numpy()[shown], built.colours[shown], statistics)

    def _build_from_landmarks(self, budget: MappingBudget) -> SceneMap:
        """Find landmarks, cluster them, and build a map from the clusters."""
        seed = self._options.seed
        landmarks, encoded = self._find_landmarks(budget)
        features, points = cluster_landmarks(landmarks, self._method_options.codes or self._settings.landmarks, seed)
        cloud = subsample(landmarks, CLOUD_POINTS, seed + 1)
        code = {"keys": (features * KEY_SCALE).round().to(torch.int8), "points": points}
        statistics = replace(self._statistics(budget), encoded=encoded, patches=len(landmarks),
                             complete=not budget.should_stop())
        return self._finish({"landmarks": code}, cloud.points.cpu().numpy(), cloud.colours.numpy(), statistics)

    def _find_landmarks(self, budget: MappingBudget) -> tuple[Landmarks, int]:
        """Return landmarks of the scene, and the number of images that were encoded for them."""
        options = replace(self._settings.triangulation, seed=self._options.seed)
        budget = budget.phase("finding landmarks").reserve(CLUSTERING_SHARE * budget.total_s)
        landmarks = find_landmarks(self._frames.prepared, self._encoder, options, budget,
                                   use_depth=self._options.use_depth)
        sources = len(landmarks.source.unique())
        needed = max(MIN_LANDMARKS, round(MIN_LANDMARK_SHARE * sources * options.patches))
        if len(landmarks) < needed:
            raise UserError(f"Only {len(landmarks)} landmarks were found, at least {needed} are needed: take more"
                            " images that overlap and see the same from different positions, or give more time.")
        in_time = budget.remaining_s() > 0.0             # then all images that triangulation uses were encoded
        return landmarks, min(len(self._frames), options.images) if in_time else sources

    def _build_by_optimization(self, budget: MappingBudget) -> SceneMap:
        """Fill the patch buffer, optimise a code on it, and build a map with the code."""
        assert self._regressor is not None and isinstance(self._regressor.net, TransformerHead)
        net = self._regressor.net
        buffer, encoded = self._fill_buffer(budget)
        code = self._new_code(net)
        result = optimize_map_code(code, net, buffer, options=self._settings.training, budget=budget.phase("training"))
        if result.iterations == 0:
            raise UserError(f"The budget of {budget.total_s:.0f} s left no time to train: give more with --budget.")
        xyz, rgb = predict_point_cloud(lambda features: net(features, code).coordinates, buffer, CLOUD_POINTS,
                                       self._options.seed)
        statistics = replace(self._statistics(budget), encoded=encoded, patches=buffer.size,
                             iterations=result.iterations, reprojection_px=result.reprojection_px,
                             complete=result.finished)
        return self._finish({"code": {"embeddings": code.embeddings.detach().half(), "mean": code.mean}}, xyz, rgb,
                            statistics)

    def _fill_buffer(self, budget: MappingBudget) -> tuple[PatchBuffer, int]:
        """Return the patches to train on, and the number of images that were encoded for them."""
        settings, encoder = self._settings, self._encoder
        buffer = PatchBuffer(settings.buffer, dim=encoder.dim, stride=encoder.stride, device=self._device,
                             with_depth=False)
        encoded = fill_buffer(
            buffer, encoder, self._frames.prepared, options=FillOptions(patches_per_image=settings.patches_per_image),
            budget=budget.phase("encoding images", at_most_s=settings.fill_share * budget.total_s), first_pass=budget,
            rng=np.random.default_rng(self._options.seed))
        if budget.should_stop() or buffer.size == 0:
            raise UserError("Mapping ended before training began: there is nothing to keep. Give more time with"
                            " --budget.")
        return buffer, encoded

    def _new_code(self, net: TransformerHead) -> MapCode:
        """Return an initial code of noise, centred at the mean camera position."""
        mean = torch.tensor(self._frames.poses[:, :3, 3].mean(0)).float()
        known = 0 if self._regressor is None else self._regressor.codes
        codes = self._method_options.codes or known or self._settings.training.codes
        generator = torch.Generator().manual_seed(self._options.seed)
        return MapCode.noise(codes, net.config.dim_emb, mean, generator).to(self._device)

    def _statistics(self, budget: MappingBudget) -> MappingStatistics:
        return MappingStatistics(frames=len(self._frames), mapping_s=budget.elapsed_s(), budget_s=budget.total_s,
                                 seed=self._options.seed, device=self._device)

    def _finish(self, code: dict[str, dict[str, Tensor]], cloud_xyz: np.ndarray, cloud_rgb: np.ndarray,
                statistics: MappingStatistics) -> SceneMap:
        networks = {"encoder": NetworkReference.from_network(self._encoder)}
        if self._regressor is not None:
            networks["regressor"] = NetworkReference.from_network(self._regressor)
        return SceneMap(method="ace_g", networks=networks, settings=asdict(AceGMapSettings()), statistics=statistics,
                        cameras=self._frames.cameras,
                        sections={**code, **display_sections(cloud_xyz, cloud_rgb, self._frames.poses)})


def _load_matching_regressor(source: str, encoder: Encoder, device: str) -> Regressor:
    """Load the regressor. Raises UserError if it was not trained for this encoder."""
    regressor = load_regressor(source, device)
    if regressor.encoder not in ("", encoder.identity) or regressor.dim_in != encoder.dim:
        raise UserError(f"Regressor '{source}' was trained for encoder {regressor.encoder or 'of other width'}"
                        f" ({regressor.dim_in}-D), not for {encoder.identity} ({encoder.dim}-D): use that encoder, or a"
                        " regressor made for this one (--regressor).")
    return regressor
