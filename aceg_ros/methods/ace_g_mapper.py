"""Mapping by ACE-G (Bruns et al., ICCV 2025): a code is made for the scene that the frozen regressor reads.

With the shipped regressor the code is made of landmarks, found by triangulation in seconds. With the published one
(`aceg import ace-g`) it is optimised by reprojection, as in the paper.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from aceg_ros.camera import Frame
from aceg_ros.encoders.base import Encoder, load_encoder
from aceg_ros.errors import UserError
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.cloud import explained_points
from aceg_ros.mapping.frames import Collection
from aceg_ros.mapping.landmarks import find_landmarks, merge, thin
from aceg_ros.mapping.optimize_map_code import CodeTraining, train_code
from aceg_ros.mapping.patch_buffer import PatchBuffer, fill_buffer
from aceg_ros.mapping.train_head import TrainingResult
from aceg_ros.mapping.triangulation import TriangulationOptions
from aceg_ros.maps.header import MappingStatistics, NetworkReference
from aceg_ros.maps.scene_map import SceneMap, sections_to_show
from aceg_ros.methods.ace_g import AceGMapSettings, AceGOptions
from aceg_ros.methods.base import MappingOptions
from aceg_ros.networks.landmark_regressor import LandmarkRegressor
from aceg_ros.networks.map_code_transformer import MapCode, TransformerHead
from aceg_ros.networks.regressor import Regressor, load_regressor
from aceg_ros.utils.device import pick_device

MIN_LANDMARKS = 200
MIN_SHARE = 0.05                     # of a picture's patches: chance makes 0.02 of pure noise, places 0.2 to 0.5
MERGE_SHARE = 0.12                   # of the time for mapping, kept for choosing the codes
CLOUD_POINTS = 15_000                # of 50,000 a map may have: the landmarks are the larger part of a small file


@dataclass(frozen=True)
class AceGSettings:
    """codes: at most so many landmarks; the rest is for the published regressor: patches in the buffer, of a picture,
    share of the budget for encoding, training."""

    codes: int = 8192
    triangulation: TriangulationOptions = field(default_factory=TriangulationOptions)
    buffer: int = 4_000_000
    patches_per_picture: int = 1024
    fill_share: float = 0.3
    training: CodeTraining = field(default_factory=CodeTraining)


# On a CPU a fraction of the published buffer, batch and code.
SETTINGS = {"cuda": AceGSettings(), "cpu": AceGSettings(buffer=500_000, training=CodeTraining(codes=1024, batch=2048))}


class AceGMapper:
    """Collects posed frames, then makes a code of them within the budget."""

    def __init__(self, options: MappingOptions, own: AceGOptions | None = None, settings: AceGSettings | None = None):
        self._options, self._own = options, own or AceGOptions()
        self._device = pick_device(options.device)
        self._settings = settings or SETTINGS[self._device]
        self._encoder = load_encoder(options.encoder, self._device)
        self._regressor = _fitting_regressor(self._own.regressor, self._encoder, self._device)
        self._collection = Collection(self._encoder, options.use_depth)

    def add(self, frame: Frame) -> None:
        """Take one posed frame. Raises UserError without a usable pose or picture."""
        self._collection.add(frame)

    def build(self, budget: MappingBudget) -> SceneMap:
        """Map within the budget. If it says stop, what there is becomes the map, marked incomplete."""
        budget = budget.reserve(0.02 * budget.total_s + 1.0)          # for the cloud and the file
        self._collection.check()
        torch.manual_seed(self._options.seed)
        make = self._by_landmarks if isinstance(self._regressor.net, LandmarkRegressor) else self._by_training
        scene_map = make(budget)
        budget.phase("done").report(1.0, scene_map.statistics.reprojection_px, 0.0)
        return scene_map

    def _by_landmarks(self, budget: MappingBudget) -> SceneMap:
        settings, seed = self._settings, self._options.seed
        finding = budget.phase("finding landmarks").reserve(MERGE_SHARE * budget.total_s)
        landmarks = find_landmarks(
            self._collection.pictures, self._encoder, self._device, settings.triangulation, seed, finding.deadline,
            finding.should_stop, finding.report, self._options.use_depth)
        sources = len(landmarks.source.unique())
        needed = max(MIN_LANDMARKS, round(MIN_SHARE * sources * settings.triangulation.patches))
        if len(landmarks) < needed:
            raise UserError(f"Only {len(landmarks)} landmarks were found, at least {needed} are needed: take"
                            " more pictures that overlap and see the same from different places, or give more time.")
        in_time = finding.remaining_s() > 0.0               # then all that may take part were looked at
        encoded = min(len(self._collection.pictures), settings.triangulation.pictures) if in_time else sources
        features, points = merge(landmarks, self._own.codes or settings.codes, seed)
        keys = (features * 127).round().to(torch.int8)
        cloud = thin(landmarks, CLOUD_POINTS, seed + 1)
        result = TrainingResult(0, budget.elapsed_s(), float("nan"), not budget.should_stop())
        return self._scene_map({"landmarks": {"keys": keys, "points": points}}, result, encoded, len(landmarks),
                               cloud.points.cpu().numpy(), cloud.colours.numpy(), budget)

    def _by_training(self, budget: MappingBudget) -> SceneMap:
        settings, options, net = self._settings, self._options, self._regressor.net
        assert isinstance(net, TransformerHead)
        rng = np.random.default_rng(options.seed)
        pictures = self._collection.pictures
        buffer = PatchBuffer(settings.buffer, self._encoder.dim, self._encoder.stride, self._device, False)
        filling = budget.phase("encoding images", at_most_s=settings.fill_share * budget.total_s)
        encoded = fill_buffer(
            buffer, self._encoder, pictures, settings.patches_per_picture, filling.deadline, budget.deadline, rng,
            filling.report, filling.should_stop)
        if budget.should_stop() or buffer.size == 0:
            raise UserError("Mapping ended before training began: there is nothing to keep. Give more time with"
                            " --budget.")
        mean = torch.tensor(self._collection.poses[:, :3, 3].mean(0)).float()
        generator = torch.Generator().manual_seed(options.seed)
        codes = self._own.codes or self._regressor.codes or settings.training.codes
        code = MapCode.noise(codes, net.config.dim_emb, mean, generator).to(self._device)
        report = budget.phase("training").report
        result = train_code(net, code, buffer, settings.training, budget.deadline,
                            lambda done, left, error: report(done, error, left), budget.should_stop)
        if result.iterations == 0:
            raise UserError(f"The budget of {budget.total_s:.0f} s left no time to train: give more with --budget.")
        xyz, rgb = explained_points(lambda features: net(features, code).coordinates, buffer, CLOUD_POINTS,
                                    options.seed)
        section = {"embeddings": code.embeddings.detach().half(), "mean": code.mean}
        return self._scene_map({"code": section}, result, encoded, buffer.size, xyz, rgb, budget)

    def _scene_map(self, sections: dict[str, dict[str, Tensor]], result: TrainingResult, encoded: int, patches: int,
                   xyz: np.ndarray, rgb: np.ndarray, budget: MappingBudget) -> SceneMap:
        options = self._options
        statistics = MappingStatistics(
            frames=len(self._collection.pictures), encoded=encoded, mapping_s=budget.elapsed_s(),
            budget_s=budget.total_s, iterations=result.iterations, patches=patches,
            reprojection_px=result.reprojection_px, seed=options.seed, device=self._device, complete=result.finished)
        networks = {"encoder": NetworkReference.to(self._encoder), "regressor": NetworkReference.to(self._regressor)}
        return SceneMap(method="ace_g", networks=networks, settings=asdict(AceGMapSettings()), statistics=statistics,
                        cameras=self._collection.cameras,
                        sections={**sections, **sections_to_show(xyz, rgb, self._collection.poses)})


def _fitting_regressor(source: str, encoder: Encoder, device: str) -> Regressor:
    regressor = load_regressor(source, device)
    if regressor.encoder not in ("", encoder.identity) or regressor.dim_in != encoder.dim:
        raise UserError(f"Regressor '{source}' was trained for encoder {regressor.encoder or 'of other width'}"
                        f" ({regressor.dim_in}-D), not for {encoder.identity} ({encoder.dim}-D): use that encoder, or a"
                        " regressor made for this one (--regressor).")
    return regressor
