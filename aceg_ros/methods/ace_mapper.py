# SPDX-License-Identifier: Apache-2.0
"""Mapping by ACE (Brachmann et al., CVPR 2023): trains a head for the scene by reprojection.

Unlike in the publication, depths are triangulated between the mapping images first (unless
`AceOptions.reprojection_only`). Training starts from these depths and, if there are enough, uses only patches that have
one; the others show the sky, or could not be matched between images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from aceg_ros.camera import Frame
from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.frames import MappingFrames
from aceg_ros.mapping.losses import points_in_map
from aceg_ros.mapping.patch_buffer import FillOptions, PatchBuffer, fill_buffer
from aceg_ros.mapping.point_cloud import predict_point_cloud
from aceg_ros.mapping.train_head import HeadTrainingOptions, train_head
from aceg_ros.mapping.training_loop import TrainingResult
from aceg_ros.mapping.triangulation import TriangulationOptions, triangulate
from aceg_ros.maps.header import MappingStatistics, NetworkReference
from aceg_ros.maps.scene_map import MAX_CLOUD_POINTS, SceneMap, display_sections
from aceg_ros.methods.ace import AceMapSettings, AceOptions
from aceg_ros.methods.base import MappingOptions
from aceg_ros.networks.ace_head import SceneHead
from aceg_ros.networks.contraction import contraction_radius
from aceg_ros.utils.device import pick_device

TRIANGULATION_SHARE = 0.2            # largest share of the time for mapping
FIRST_PASS_SHARE = 0.6               # largest share of the remaining time for encoding each image once
FINISH_SHARE, FINISH_S = 0.02, 2.0   # of the budget, for the cloud and the file
MIN_TRIANGULATED = 50.0              # mean number of triangulated patches per image for training on these alone
RADIUS_PATCHES = 4000


@dataclass(frozen=True, kw_only=True)
class AceSettings:
    """Sizes for a device. buffer: capacity in patches. fill_share: share of the budget for encoding images."""

    width: int
    extra_blocks: int = 1
    buffer: int
    patches_per_image: int = 1024
    training: HeadTrainingOptions = field(default_factory=HeadTrainingOptions)
    fill_share: float
    triangulation: TriangulationOptions = field(default_factory=TriangulationOptions)


# ACE's published sizes on a GPU. On a CPU the head is half as wide and the batch a little smaller: 2 cores that compute
# in bf16 make 2900 to 3800 steps of it in the default budget.
SETTINGS = {
    "cuda": AceSettings(width=512, buffer=8_000_000, fill_share=0.3),
    "cpu": AceSettings(width=256, buffer=1_500_000, fill_share=0.25, training=HeadTrainingOptions(batch=4096)),
}
BUFFER_BYTES = {"cpu": 0.5e9, "cuda": 10e9}


class AceMapper:
    """Collects posed frames, then trains a head for them within the budget."""

    def __init__(self, options: MappingOptions, method_options: AceOptions | None = None, *,
                 settings: AceSettings | None = None):
        self._options, self._method_options = options, method_options or AceOptions()
        self._device = pick_device(options.device)
        self._settings = settings or SETTINGS[self._device]
        self._encoder = load_encoder(options.encoder, self._device)
        self._frames = MappingFrames(self._encoder, options.use_depth, trust_poses=options.trust_poses)

    def add(self, frame: Frame) -> None:
        """Add one posed frame. Raises UserError if its pose or image is unusable."""
        self._frames.add(frame)

    def build(self, budget: MappingBudget) -> SceneMap:
        """Triangulate depths, fill the patch buffer and train a head, all within the budget.

        If the user stops the training, the map has the head so far and is marked incomplete.
        """
        self._frames.check()
        budget = budget.reserve(FINISH_SHARE * budget.total_s + FINISH_S)
        torch.manual_seed(self._options.seed)
        known_depth_only = False
        if not self._method_options.reprojection_only:
            known_depth_only = self._triangulate(budget) >= MIN_TRIANGULATED
        buffer, encoded = self._fill_buffer(known_depth_only, budget)
        head = self._new_head(buffer)
        result = self._train(head, buffer, known_depth_only, budget)
        scene_map = self._finish(head, buffer, MappingStatistics(
            frames=len(self._frames), encoded=encoded, mapping_s=budget.elapsed_s(), budget_s=budget.total_s,
            iterations=result.iterations, patches=buffer.size, reprojection_px=result.reprojection_px,
            seed=self._options.seed, device=self._device, complete=result.finished))
        budget.phase("done").report(1.0, result.reprojection_px, 0.0)
        return scene_map

    def _triangulate(self, budget: MappingBudget) -> float:
        """Replace the depths of the frames by triangulated ones, or by measured ones of the triangulated patches.

        Measured depths of other patches are dropped: heads trained on them were only half as good. But if too few
        patches can be triangulated (a camera that does not move), all measured depths are kept.

        Returns the mean number of known depths per processed image, 0 if the measured depths are kept.
        """
        options = replace(self._settings.triangulation, seed=self._options.seed)
        budget = budget.phase("triangulating", share=TRIANGULATION_SHARE)
        depths = triangulate(self._frames.prepared, self._encoder, options, budget,
                             use_measured=self._options.use_depth)
        known = sum(int(np.isfinite(depth).sum()) for depth in depths.values()) / max(len(depths), 1)
        if self._options.use_depth and known < MIN_TRIANGULATED:
            return 0.0
        self._frames.set_depths(depths)
        return known

    def _fill_buffer(self, known_depth_only: bool, budget: MappingBudget) -> tuple[PatchBuffer, int]:
        """Return the patches to train on, and the number of images that were encoded for them."""
        settings, encoder = self._settings, self._encoder
        capacity = min(settings.buffer, int(BUFFER_BYTES[self._device] / (2 * encoder.dim + 15)))
        buffer = PatchBuffer(capacity, dim=encoder.dim, stride=encoder.stride, device=self._device,
                             with_depth=self._frames.have_depth)
        encoded = fill_buffer(
            buffer, encoder, self._frames.prepared,
            options=FillOptions(patches_per_image=settings.patches_per_image, known_depth_only=known_depth_only),
            budget=budget.phase("encoding images", at_most_s=settings.fill_share * budget.total_s),
            first_pass=budget.phase("encoding images", share=FIRST_PASS_SHARE),
            rng=np.random.default_rng(self._options.seed))
        if budget.should_stop():
            raise UserError("Mapping was stopped before training began: there is nothing to keep yet, nothing was"
                            " written.")
        if buffer.size == 0:
            raise UserError(f"The budget of {budget.total_s:.0f} s was over before the first image was encoded:"
                            " give more time with --budget.")
        return buffer, encoded

    def _new_head(self, buffer: PatchBuffer) -> SceneHead:
        """Return an untrained head, centred at the mean camera position."""
        centre = torch.tensor(self._frames.poses[:, :3, 3].mean(0)).float().to(self._device)
        radius = _contraction_radius(buffer, centre, self._options.seed)
        return SceneHead(self._encoder.dim, self._settings.width, self._settings.extra_blocks, mean=centre,
                         radius=radius).to(self._device)

    def _train(self, head: SceneHead, buffer: PatchBuffer, known_depth_only: bool,
               budget: MappingBudget) -> TrainingResult:
        options = replace(self._settings.training, seed=self._options.seed,
                          anneal_depth_loss=not self._options.use_depth)
        if self._options.use_depth and not known_depth_only:
            # Most patches with measured depth were not matched between images: they deserve no larger share.
            options = replace(options, known_depth_share=0.0)
        result = train_head(head, buffer, options, budget.phase("training"))
        if result.iterations == 0:
            raise UserError(f"The budget of {budget.total_s:.0f} s left no time to train: give more with --budget.")
        return result

    @torch.inference_mode()
    def _finish(self, head: SceneHead, buffer: PatchBuffer, statistics: MappingStatistics) -> SceneMap:
        state = {key: value.half() if value.ndim == 2 else value for key, value in head.state_dict().items()}
        xyz, rgb = predict_point_cloud(head, buffer, MAX_CLOUD_POINTS, self._options.seed)
        return SceneMap(method="ace", networks={"encoder": NetworkReference.from_network(self._encoder)},
                        settings=asdict(AceMapSettings()), statistics=statistics, cameras=self._frames.cameras,
                        sections={"head": state, **display_sections(xyz, rgb, self._frames.poses)})


def _contraction_radius(buffer: PatchBuffer, centre: Tensor, seed: int) -> Tensor | None:
    """Return the radius of the head's contraction from the patches of known depth; None if there are too few."""
    known = buffer.known_depths()
    if not buffer.has_enough_known_depths(known):
        return None
    some = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:RADIUS_PATCHES]]
    patches = buffer.patches(some.to(buffer.device))
    assert patches.depth_m is not None
    return contraction_radius(points_in_map(patches.view, patches.depth_m), centre)
