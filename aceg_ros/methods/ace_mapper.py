"""Mapping by ACE (Brachmann et al., CVPR 2023): a head is trained for the scene by reprojection.

Unlike there, depths are triangulated between the mapping pictures first (unless `AceOptions.reprojection_only`).
Training starts from them and, where there are enough, learns those patches alone: the others are the sky, and what no
two pictures agree on.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from aceg_ros.camera import Frame
from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.cloud import explained_points
from aceg_ros.mapping.frames import Collection
from aceg_ros.mapping.losses import points_in_map
from aceg_ros.mapping.patch_buffer import PatchBuffer, fill_buffer
from aceg_ros.mapping.train_head import TrainingOptions, TrainingResult, enough, train_head
from aceg_ros.mapping.triangulation import TriangulationOptions, triangulate
from aceg_ros.maps.header import MappingStatistics, NetworkReference
from aceg_ros.maps.scene_map import MAX_CLOUD_POINTS, SceneMap, sections_to_show
from aceg_ros.methods.ace import AceMapSettings, AceOptions
from aceg_ros.methods.base import MappingOptions
from aceg_ros.networks.ace_head import SceneHead
from aceg_ros.networks.contraction import fitting_radius
from aceg_ros.utils.device import pick_device

TRIANGULATION_SHARE = 0.2            # of the time for mapping, at most
MIN_TRIANGULATED = 50.0              # patches of a picture, on average, from which on a map is learned from them alone
RADIUS_PATCHES = 4000


@dataclass(frozen=True)
class AceSettings:
    """What a device can afford. buffer: patches; fill_share: part of the budget for encoding images."""

    width: int
    extra_blocks: int
    buffer: int
    patches_per_picture: int
    training: TrainingOptions
    fill_share: float
    triangulation: TriangulationOptions = field(default_factory=TriangulationOptions)


# ACE's published sizes on a GPU. On a CPU the head is half as wide and the batch a little smaller: 2 cores that compute
# in bf16 make 2900 to 3800 steps of it in the default budget.
SETTINGS = {
    "cuda": AceSettings(512, 1, 8_000_000, 1024, TrainingOptions(), 0.3),
    "cpu": AceSettings(256, 1, 1_500_000, 1024, TrainingOptions(batch=4096), 0.25),
}
BUFFER_BYTES = {"cpu": 0.5e9, "cuda": 10e9}


class AceMapper:
    """Collects posed frames, then trains a head for them within the budget."""

    def __init__(self, options: MappingOptions, own: AceOptions | None = None, settings: AceSettings | None = None):
        self._options, self._own = options, own or AceOptions()
        self._device = pick_device(options.device)
        self._settings = settings or SETTINGS[self._device]
        self._encoder = load_encoder(options.encoder, self._device)
        self._collection = Collection(self._encoder, options.use_depth)

    def add(self, frame: Frame) -> None:
        """Take one posed frame. Raises UserError without a usable pose or picture."""
        self._collection.add(frame)

    def build(self, budget: MappingBudget) -> SceneMap:
        """Train a head within the budget. When it says stop, the head so far becomes the map, marked incomplete."""
        self._collection.check()
        settings, options = self._settings, self._options
        budget = budget.reserve(0.02 * budget.total_s + 2.0)          # for the cloud and the file
        deadline, stop = budget.deadline, budget.should_stop
        rng = np.random.default_rng(options.seed)
        torch.manual_seed(options.seed)
        only_known = False
        if not self._own.reprojection_only:
            only_known = self._guess_depths(budget) >= MIN_TRIANGULATED
        pictures = self._collection.pictures
        capacity = min(settings.buffer, int(BUFFER_BYTES[self._device] / (2 * self._encoder.dim + 15)))
        buffer = PatchBuffer(capacity, self._encoder.dim, self._encoder.stride, self._device,
                             any(picture.depth_m is not None for picture in pictures))
        filling = budget.phase("encoding images", at_most_s=settings.fill_share * budget.total_s)
        latest = time.monotonic() + 0.6 * (deadline - time.monotonic())
        encoded = fill_buffer(
            buffer, self._encoder, pictures, settings.patches_per_picture, filling.deadline, latest, rng,
            filling.report, stop, only_known)
        if stop():
            raise UserError("Mapping was stopped before training began: there is nothing to keep yet, nothing was"
                            " written.")
        if buffer.size == 0:
            raise UserError(f"The budget of {budget.total_s:.0f} s was over before the first picture was encoded:"
                            " give more time with --budget.")
        centre = torch.tensor(self._collection.poses[:, :3, 3].mean(0)).float().to(self._device)
        head = SceneHead(self._encoder.dim, settings.width, settings.extra_blocks, mean=centre,
                         radius=_radius(buffer, centre, options.seed)).to(self._device)
        # Measured depths that triangulation has not picked are not where recognisable patches are.
        guided_share = 0.0 if options.use_depth and not only_known else settings.training.guided_share
        training = replace(settings.training, seed=options.seed, fading_depth=not options.use_depth,
                           guided_share=guided_share)
        report = budget.phase("training").report
        result = train_head(head, buffer, training, deadline,
                            lambda done, left, error: report(done, error, left), stop)
        if result.iterations == 0:
            raise UserError(f"The budget of {budget.total_s:.0f} s left no time to train: give more with --budget.")
        scene_map = self._finish(head, buffer, result, encoded, budget)
        budget.phase("done").report(1.0, result.reprojection_px, 0.0)
        return scene_map

    def _guess_depths(self, budget: MappingBudget) -> float:
        """Give the pictures triangulated depths, within TRIANGULATION_SHARE of the time left, or measured ones where
        there are some: measured depths of other patches, which no two pictures agree on, made heads half as good.
        Returns how many a picture that was tried has on average; measured depths stay as they are where those are too
        few (a camera that stands still)."""
        budget = budget.phase("triangulating", share=TRIANGULATION_SHARE)
        depths = triangulate(
            self._collection.pictures, self._encoder, self._device, self._settings.triangulation, self._options.seed,
            budget.deadline, budget.should_stop, budget.report, self._options.use_depth)
        known = sum(int(np.isfinite(depth).sum()) for depth in depths.values()) / max(len(depths), 1)
        if self._options.use_depth and known < MIN_TRIANGULATED:
            return 0.0
        self._collection.take_depths(depths)
        return known

    @torch.inference_mode()
    def _finish(self, head: SceneHead, buffer: PatchBuffer, result: TrainingResult, encoded: int,
                budget: MappingBudget) -> SceneMap:
        state = {key: value.half() if value.ndim == 2 else value for key, value in head.state_dict().items()}
        xyz, rgb = explained_points(head, buffer, MAX_CLOUD_POINTS, self._options.seed)
        statistics = MappingStatistics(
            frames=len(self._collection.pictures), encoded=encoded, mapping_s=budget.elapsed_s(),
            budget_s=budget.total_s, iterations=result.iterations, patches=buffer.size,
            reprojection_px=result.reprojection_px, seed=self._options.seed, device=self._device,
            complete=result.finished)
        return SceneMap(method="ace", networks={"encoder": NetworkReference.to(self._encoder)},
                        settings=asdict(AceMapSettings()), statistics=statistics, cameras=self._collection.cameras,
                        sections={"head": state, **sections_to_show(xyz, rgb, self._collection.poses)})


def _radius(buffer: PatchBuffer, centre: Tensor, seed: int) -> Tensor | None:
    """Of the head's contraction, by the patches of known depth; None where there are too few."""
    known = buffer.known_depths()
    if not enough(known, buffer):
        return None
    some = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:RADIUS_PATCHES]]
    patches = buffer.patches(some.to(buffer.device))
    assert patches.depth_m is not None
    return fitting_radius(points_in_map(patches.view, patches.depth_m), centre)
