# SPDX-License-Identifier: Apache-2.0
"""The Python API: `build_map` builds a map from a recording, `Localizer` localizes images in it.

The command line and the node call the same functions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import BagOptions, load_image, open_scenes
from aceg_ros.estimate import PoseEstimate, PriorPose
from aceg_ros.mapping.budget import MappingBudget, default_budget_s
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods import registry
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.build_map import build_map as map_frames
from aceg_ros.utils.device import pick_device
from aceg_ros.utils.malloc import configure_malloc
from aceg_ros.utils.progress import Progress

_LOG = logging.getLogger("aceg_ros")
Recording = str | Path | Sequence[str | Path] | Iterable[Frame]


def build_map(recording: Recording, *, method: str | None = None, encoder: str | None = None,
              budget_s: float | None = None, seed: int = 0, device: str = "auto", use_depth: bool = False,
              every: int = 1, bag_options: BagOptions | None = None, trust_poses: bool = False,
              progress: Callable[[Progress], None] | None = None, **method_options: Any) -> SceneMap:
    """Build a map from posed images.

    Args:
        recording: a folder or bag that `open_scene` can read, several of these with poses in one map frame, or posed
            frames.
        method: name of a method (`aceg_ros.methods.registry`); None chooses the default for the encoder.
        encoder: a shipped one, such as "compact4", or a file written by `aceg import`; None: the one that suits
            the method best.
        budget_s: seconds that reading and mapping may take; None: 300 on a CPU, 120 on a GPU.
        seed: seed of all random choices.
        device: "cpu", "cuda", or "auto" for the GPU if there is one.
        use_depth: use the depth images of the recording as well.
        every: use every n-th frame of the recording only.
        bag_options: topics, frames and times to read from a ROS bag; None takes the only topics that fit.
        trust_poses: do not check on a few pairs of images whether the poses agree with them.
        progress: called with each progress report.
        method_options: options of the method, such as codes=2048; `aceg map --help` lists them.

    Returns:
        The map, in memory; `SceneMap.save` writes it to a file. Frames that could not be read or used are counted
        in the map's statistics and named in the log "aceg_ros".

    Raises:
        UserError: the recording cannot be read, or no map can be built from its usable frames.
    """
    configure_malloc()
    device = pick_device(device)
    frames = _frames_of(recording, every, bag_options)
    options = MappingOptions(encoder=encoder, seed=seed, device=device, use_depth=use_depth,
                             trust_poses=trust_poses)
    budget = MappingBudget.start(default_budget_s(device) if budget_s is None else budget_s,
                                 progress=progress or (lambda _: None))
    method = method or registry.default_method(options, method_options)
    scene_map, skipped = map_frames(method, options, frames, budget,
                                    method_options=registry.make_method_options(method, method_options))
    for reason in skipped:
        _LOG.warning("skipped: %s", reason)
    return scene_map


def _frames_of(recording: Recording, every: int, bag_options: BagOptions | None) -> Iterable[Frame]:
    """Open paths; frames stay as they are."""
    if isinstance(recording, (str, Path)):
        return open_scenes([recording], every, bag_options)
    if isinstance(recording, Sequence) and recording and isinstance(recording[0], (str, Path)):
        return open_scenes(cast(Sequence[str | Path], recording), every, bag_options)
    return cast(Iterable[Frame], recording)


class Localizer:
    """Localizes images in a map.

    Not thread-safe: use one localizer per thread. The first image takes longer than later ones.
    """

    def __init__(self, scene_map: SceneMap, *, device: str = "auto", seed: int = 0):
        """Localize in a map in memory. Raises UserError if its encoder or regressor has changed since mapping."""
        configure_malloc()
        self._scene_map = scene_map
        self._localizer = registry.make_localizer(scene_map, device, seed)

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", seed: int = 0) -> Localizer:
        """Load a map file. Raises UserError if it is missing, damaged or was made with other weights."""
        return cls(SceneMap.load(path), device=device, seed=seed)

    def localize(self, image: str | Path | np.ndarray | Frame, camera: Camera | None = None, *,
                 prior: PriorPose | None = None) -> PoseEstimate:
        """Estimate the camera pose of an image.

        Args:
            image: an image file, an array (H, W, 3) uint8 RGB, or a `Frame`.
            camera: the intrinsics; None takes the mapping camera of the same image size, if there is only one.
            prior: where the camera probably is, from odometry or the last pose. Maps with a keyframe database look
                there first, which takes less time; others ignore it.

        Returns:
            An estimate with `map_from_camera` (4, 4) and `covariance` (6, 6), or a rejection without a pose, whose
            `status` and `message` give the reason. An unusable image is rejected; it does not raise.

        Raises:
            UserError: the image file cannot be read, or no camera is known for its size.
        """
        return self._localizer.localize(image if isinstance(image, Frame) else self._frame(image, camera), prior)

    def _frame(self, image: str | Path | np.ndarray, camera: Camera | None) -> Frame:
        name = "" if isinstance(image, np.ndarray) else str(image)
        pixels = image if isinstance(image, np.ndarray) else load_image(Path(image))
        if camera is None:
            height, width = pixels.shape[:2]
            camera = self._scene_map.camera_of_size(width, height)
        return Frame(image=pixels, camera=camera, name=name)
