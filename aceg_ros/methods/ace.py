"""ACE (Brachmann et al., CVPR 2023): a frozen encoder, and a small head per place trained by reprojection.

Unlike there, training starts from depths triangulated between the mapping pictures (`MappingOptions.triangulate`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from aceg_ros.camera import Camera, Frame
from aceg_ros.encoders.base import Encoder, load_encoder, pick_device
from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.geometry import is_pose
from aceg_ros.mapping.augmentation import Picture, prepare, prepared_picture, whole_cells
from aceg_ros.mapping.buffer import PatchBuffer, fill_buffer, patch_centres
from aceg_ros.mapping.head import SceneHead, head_from_state
from aceg_ros.mapping.losses import reproject
from aceg_ros.mapping.training import TrainingOptions, TrainingResult, train_head
from aceg_ros.mapping.triangulation import TriangulationOptions, triangulate
from aceg_ros.methods.base import MappingOptions, Progress
from aceg_ros.pose_solver import solve_pose
from aceg_ros.scene_map import MAX_CLOUD_POINTS, MappingFigures, SceneMap

MIN_FRAMES = 5
MIN_SIDE_PX = 64
CLOUD_ERROR_PX = 4.0
TRIANGULATION_SHARE = 0.2            # of the time for mapping, at most
MAX_PATCHES = {"cpu": 2400, "cuda": 1_000_000}       # that a picture is localized by: beyond, one of each 2x2


@dataclass(frozen=True)
class AceSettings:
    """What a device can afford. buffer: patches; fill_share: part of the budget for encoding pictures."""

    width: int
    extra_blocks: int
    buffer: int
    patches_per_picture: int
    training: TrainingOptions
    fill_share: float
    triangulation: TriangulationOptions = field(default_factory=TriangulationOptions)


# ACE's published settings on a GPU. On a CPU the head is half as wide and the batch a little smaller: 2 cores make
# about 1600 steps of it in the default budget, where the published head would make 500.
SETTINGS = {
    "cuda": AceSettings(512, 1, 8_000_000, 1024, TrainingOptions(), 0.3),
    "cpu": AceSettings(256, 1, 1_500_000, 1024, TrainingOptions(batch=4096), 0.25),
}
BUFFER_BYTES = {"cpu": 0.5e9, "cuda": 10e9}


def make_mapper(options: MappingOptions) -> AceMapper:
    return AceMapper(options)


def make_localizer(scene_map: SceneMap, device: str = "auto", seed: int = 0) -> AceLocalizer:
    return AceLocalizer(scene_map, device, seed)


class AceMapper:
    """Collects posed frames, then trains a head for them within the budget."""

    def __init__(self, options: MappingOptions, settings: AceSettings | None = None):
        self._options = options
        self._device = pick_device(options.device)
        self._settings = settings or SETTINGS[self._device]
        self._encoder = load_encoder(options.encoder, self._device)
        self._pictures: list[Picture] = []
        self._cameras: dict[Camera, None] = {}             # a set in the order of their coming

    def add(self, frame: Frame) -> None:
        """Take one posed frame. Raises UserError without a usable pose or picture."""
        if frame.map_from_camera is None or not is_pose(frame.map_from_camera):
            raise UserError(f"Frame {frame.name} has no usable pose (finite, rigid 4x4): mapping needs one for"
                            " each picture.")
        refusal = _refuse_picture(frame)
        if refusal is not None:
            raise UserError(f"Frame {frame.name}: {refusal.message}")
        picture = prepared_picture(frame, self._encoder.short_side_px, self._encoder.stride)
        depth = None
        if self._options.use_depth and picture.depth_m is not None:
            depth = picture.depth_m.astype(np.float16)         # half the memory, and finer than any depth camera
        self._pictures.append(replace(picture, depth_m=depth))
        self._cameras[frame.camera] = None

    def build(self, progress: Callable[[Progress], None] | None = None,
              should_stop: Callable[[], bool] | None = None, elapsed_s: float = 0.0) -> SceneMap:
        """Train within budget_s less elapsed_s (what the caller already spent of it). When should_stop turns true, the
        head as it is then becomes the map, marked incomplete."""
        started = time.monotonic() - elapsed_s
        report = progress or (lambda _: None)
        stop = should_stop or (lambda: False)
        self._check_frames()
        settings, options = self._settings, self._options
        deadline = started + options.budget_s * 0.98 - 2.0            # the rest is for the cloud and the file
        rng = np.random.default_rng(options.seed)
        torch.manual_seed(options.seed)
        if options.triangulate and not options.use_depth:
            self._guess_depths(deadline, report, stop)
        capacity = min(settings.buffer, int(BUFFER_BYTES[self._device] / (2 * self._encoder.dim + 15)))
        buffer = PatchBuffer(capacity, self._encoder.dim, self._encoder.stride, self._device,
                             any(picture.depth_m is not None for picture in self._pictures))
        filled_by = min(time.monotonic() + settings.fill_share * options.budget_s, deadline)
        latest = time.monotonic() + 0.6 * (deadline - time.monotonic())
        encoded = fill_buffer(
            buffer, self._encoder, self._pictures, settings.patches_per_picture, filled_by, latest, rng,
            lambda done: report(Progress("encoding pictures", done, deadline - time.monotonic())), stop)
        if stop():
            raise UserError("Mapping was stopped before training began: there is nothing to keep yet, nothing was"
                            " written.")
        if buffer.size == 0:
            raise UserError(f"The budget of {options.budget_s:.0f} s was over before the first picture was encoded:"
                            " give more time with --budget.")
        centres = np.stack([picture.map_from_camera[:3, 3] for picture in self._pictures])
        head = SceneHead(self._encoder.dim, settings.width, settings.extra_blocks,
                         mean=torch.tensor(centres.mean(0))).to(self._device)
        # Measured depths are not where recognisable patches are: nothing speaks for preferring those.
        guided_share = 0.0 if options.use_depth else settings.training.guided_share
        training = replace(settings.training, seed=options.seed, fading_depth=not options.use_depth,
                           guided_share=guided_share)
        result = train_head(head, buffer, training, deadline,
                            lambda done, left, error: report(Progress("training", done, left, error)), stop)
        if result.iterations == 0:
            raise UserError(f"The budget of {options.budget_s:.0f} s left no time to train: give more with --budget.")
        scene_map = self._finish(head, buffer, result, encoded, started)
        report(Progress("done", 1.0, 0.0, result.reprojection_px))
        return scene_map

    def _guess_depths(self, deadline: float, report: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
        """Give the pictures triangulated depths, within TRIANGULATION_SHARE of the time left."""
        started = time.monotonic()
        until = started + TRIANGULATION_SHARE * (deadline - started)
        depths = triangulate(
            self._pictures, self._encoder, self._device, self._settings.triangulation, self._options.seed, until, stop,
            lambda done: report(Progress("triangulating", done, deadline - time.monotonic())))
        for index, depth in depths.items():
            self._pictures[index] = replace(self._pictures[index], depth_m=depth.astype(np.float16))

    def _check_frames(self) -> None:
        count = len(self._pictures)
        if count < MIN_FRAMES:
            raise UserError(f"A map needs at least {MIN_FRAMES} usable posed pictures, here are {count}: drive on and"
                            " record more, or check the skipped frames.")
        with_depth = any(picture.depth_m is not None for picture in self._pictures)
        if self._options.use_depth and not with_depth:
            raise UserError("--use-depth was asked for, but no frame of the scene has a depth picture: map without it.")
        centres = np.stack([picture.map_from_camera[:3, 3] for picture in self._pictures])
        if not with_depth and np.ptp(centres, axis=0).max() < 1e-6:
            raise UserError("All pictures were taken from one spot: reprojection gives no depth without parallax."
                            " Move the camera while recording, or give depth images and --use-depth.")

    @torch.inference_mode()
    def _finish(self, head: SceneHead, buffer: PatchBuffer, result: TrainingResult, encoded: int,
                started: float) -> SceneMap:
        state = {f"head.{key}": value.half() if key != "mean" else value for key, value in head.state_dict().items()}
        xyz, rgb = _cloud(head, buffer, self._options.seed)
        figures = MappingFigures(len(self._pictures), 0, encoded, time.monotonic() - started, self._options.budget_s,
                                 result.iterations, buffer.size, result.reprojection_px, self._options.seed,
                                 self._device, result.finished)
        return SceneMap("ace", self._encoder.identity, self._encoder.source, state, {}, figures,
                        tuple(self._cameras), xyz, rgb,
                        np.stack([picture.map_from_camera for picture in self._pictures]).astype(np.float32))


def _cloud(head: SceneHead, buffer: PatchBuffer, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Coloured points of the patches that the head explains best."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(buffer.size, generator=generator)[:3 * MAX_CLOUD_POINTS]
    points, colours = [], []
    for part in index.split(8192):
        patches = buffer.patches(part.to(buffer.device))
        coordinates = head(patches.features)
        seen = reproject(coordinates, patches.view)
        good = seen.valid & (seen.error_px < CLOUD_ERROR_PX)
        points.append(coordinates[good].float().cpu().numpy())
        colours.append(patches.colours[good].cpu().numpy())
    xyz, rgb = np.concatenate(points)[:MAX_CLOUD_POINTS], np.concatenate(colours)[:MAX_CLOUD_POINTS]
    return xyz.astype(np.float32), rgb


@dataclass(frozen=True)
class SceneCoordinates:
    """What the network says of one picture: pixels (N, 2) and map points (N, 3) of the rectified, resampled camera.

    mask (N,): patches inside the undistorted picture, None for all. stage_ms: how long each step took.
    """

    pixels: np.ndarray
    points: np.ndarray
    camera: Camera
    mask: np.ndarray | None
    stage_ms: dict[str, float]


class AceLocalizer:
    """Scene coordinates by encoder and head, pose by the solver."""

    def __init__(self, scene_map: SceneMap, device: str = "auto", seed: int = 0):
        self._device = pick_device(device)
        self._seed = seed
        self._encoder = _encoder_of(scene_map, self._device)
        self._patch_offset_px = float(scene_map.settings.get("patch_offset_px", 0.0))     # imported maps have one
        try:
            state = {key.removeprefix("head."): value for key, value in scene_map.tensors.items()}
            self._head = head_from_state(state).eval().requires_grad_(False).to(self._device)
        except (KeyError, RuntimeError) as error:
            raise UserError(f"The map's head cannot be used ({error}): map the place again.") from None

    def localize(self, frame: Frame) -> PoseEstimate:
        """Pose of the camera in the map, or a refusal. Never raises on bad pictures or cameras."""
        refusal = _refuse_picture(frame)
        if refusal is not None:
            return refusal
        seen = self.scene_coordinates(frame)
        started = time.perf_counter()
        estimate = solve_pose(seen.pixels, seen.points, seen.camera, mask=seen.mask, seed=self._seed)
        seen.stage_ms["solve"] = 1e3 * (time.perf_counter() - started)
        estimate.stage_ms.update(seen.stage_ms)
        return estimate

    @torch.inference_mode()
    def scene_coordinates(self, frame: Frame) -> SceneCoordinates:
        clock = time.perf_counter
        started = clock()
        stride = self._encoder.stride
        image, camera, mask = prepare(frame, self._encoder.short_side_px, stride)
        prepared = clock()
        tensor = torch.from_numpy(np.ascontiguousarray(image)).to(self._device).permute(2, 0, 1)[None].float().div(255)
        grid = self._encoder.grid(tensor)
        features, reliability = grid.features[0], None if grid.reliability is None else grid.reliability[0]
        if features.is_cuda:
            torch.cuda.synchronize()
        encoded = clock()
        height, width = features.shape[1:]
        whole = whole_cells(mask, height, width, stride)
        if reliability is not None and mask is not None:
            reliability = torch.where(torch.from_numpy(whole).to(reliability.device), reliability, -1.0)
        rows, columns = _chosen_cells(height, width, MAX_PATCHES[self._device], reliability)
        points = self._head(features[:, rows, columns].T.contiguous()).cpu().numpy()
        pixels = patch_centres(columns, rows, stride).numpy() + self._patch_offset_px
        cells = None if mask is None else whole[rows, columns]
        regressed = clock()
        stage_ms = {"prepare": 1e3 * (prepared - started), "encode": 1e3 * (encoded - prepared),
                    "head": 1e3 * (regressed - encoded)}
        return SceneCoordinates(pixels, points, camera, cells, stage_ms)


def _chosen_cells(height: int, width: int, most: int, reliability: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows and columns of the cells to localize by: all, or where that is too many the most reliable of each 2x2.

    Without reliabilities, every n-th along each row, shifted from row to row.
    """
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    if height * width <= most:
        return rows.flatten(), columns.flatten()
    if reliability is None:
        step = -(-height * width // most)
        chosen = (columns + rows) % step == 0
        return rows[chosen], columns[chosen]
    _, index = torch.nn.functional.max_pool2d(reliability[None].cpu(), 2, ceil_mode=True, return_indices=True)
    return index.flatten() // width, index.flatten() % width


def _encoder_of(scene_map: SceneMap, device: str) -> Encoder:
    encoder = load_encoder(scene_map.encoder_source, device)
    if encoder.identity != scene_map.encoder:
        raise UserError(f"The map was made with encoder {scene_map.encoder}, but '{scene_map.encoder_source}' is now"
                        f" {encoder.identity}: map the place again, or restore that encoder.")
    return encoder


def _refuse_picture(frame: Frame) -> PoseEstimate | None:
    """A refusal for a picture that cannot be localized in, or None."""
    image, camera = frame.image, frame.camera
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        return PoseEstimate(Status.BAD_IMAGE, "The picture is not (height, width, 3) uint8 RGB.")
    if image.shape[:2] != (camera.height, camera.width):
        return PoseEstimate(Status.BAD_CAMERA, f"The picture is {image.shape[1]}x{image.shape[0]}, but its camera says"
                            f" {camera.width}x{camera.height}: give the intrinsics of this picture size.")
    if min(image.shape[:2]) < MIN_SIDE_PX:
        return PoseEstimate(Status.BAD_IMAGE, f"The picture is {image.shape[1]}x{image.shape[0]}: at least"
                            f" {MIN_SIDE_PX} pixels a side are needed.")
    if image[::4, ::4].std() < 2.0:
        return PoseEstimate(Status.BAD_IMAGE, "The picture is of one colour: is the lens covered or the light off?")
    return None
