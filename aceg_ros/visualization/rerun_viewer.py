# SPDX-License-Identifier: Apache-2.0
"""Shows a map and the localization of a recording in it in the Rerun viewer (pip install rerun-sdk)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from aceg_ros.camera import Frame
from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate
from aceg_ros.visualization.overlay import INLIER, OUTLIER

if TYPE_CHECKING:      # a node starts seconds sooner without torch
    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.methods.base import Localizer
    from aceg_ros.visualization.shortlist import ShortlistDrawing


class Viewer:
    """Logs to Rerun. file: .rrd file to write instead of opening a window. Raises UserError without Rerun."""

    def __init__(self, file: Path | None = None) -> None:
        self._rerun = _rerun()
        self._rerun.init("aceg_ros", spawn=file is None)
        if file is not None:
            self._rerun.save(str(file))

    def show_map(self, scene_map: SceneMap) -> None:
        """Log the point cloud and the trajectory of the mapping run."""
        rr = self._rerun
        rr.log("map", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        rr.log("map/cloud", rr.Points3D(scene_map.cloud_xyz, colors=scene_map.cloud_rgb), static=True)
        rr.log("map/mapping_trajectory", rr.LineStrips3D([scene_map.trajectory[:, :3, 3]]), static=True)

    def show_estimate(self, frame: Frame, estimate: PoseEstimate) -> None:
        """Log the image with its inliers, the pose, and the true pose if the frame has one."""
        rr = self._rerun
        rr.set_time("recording", timestamp=frame.stamp_s)
        rr.log("status", rr.TextLog(f"{frame.name}: {estimate.status.value}, {estimate.message}"))
        if frame.map_from_camera is not None:
            rr.log("map/truth", rr.Points3D([frame.map_from_camera[:3, 3]], colors=[(44, 160, 44)]))
        correspondences = estimate.correspondences
        if estimate.map_from_camera is None:
            rr.log("map/camera", rr.Clear(recursive=True))
        else:
            pose = estimate.map_from_camera
            rr.log("map/camera", rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
            camera = frame.camera.rectified()
            rr.log("map/camera/image", rr.Pinhole(image_from_camera=camera.K, width=camera.width,
                                                    height=camera.height))
        rr.log("map/camera/image", rr.Image(frame.camera.rectify(frame.image)[0]).compress())
        if correspondences is not None and estimate.inlier_indices is not None:
            colours = np.tile(np.array(OUTLIER, np.uint8), (len(correspondences.pixels), 1))
            colours[estimate.inlier_indices] = INLIER
            resampled = correspondences.camera
            scale = np.array([frame.camera.width / resampled.width, frame.camera.height / resampled.height])
            rr.log("map/camera/image/patches", rr.Points2D((correspondences.pixels + 0.5) * scale, colors=colours))

    def show_shortlist(self, image: np.ndarray) -> None:
        """Log the drawing of the frame that was shown last beside the keyframes that look most like it."""
        self._rerun.log("keyframes", self._rerun.Image(image).compress())


def _shortlist_drawing(scene_map: SceneMap) -> ShortlistDrawing | None:
    from aceg_ros.methods.scene_coordinates import encoder_of
    from aceg_ros.visualization.shortlist import ShortlistDrawing

    return ShortlistDrawing(scene_map, encoder_of(scene_map, "cpu")) if ShortlistDrawing.can_draw(scene_map) else None


def show(scene_map: SceneMap, localizer: Localizer | None, frames: Iterable[Frame], file: Path | None) -> int:
    """Show a map and each frame as it is localized, and return the number of frames."""
    from aceg_ros.encoders.preprocess import reject_image

    viewer = Viewer(file)
    viewer.show_map(scene_map)
    count = 0
    drawing = None if localizer is None else _shortlist_drawing(scene_map)
    for frame in frames:
        assert localizer is not None
        estimate = localizer.localize(frame)
        viewer.show_estimate(frame, estimate)
        if drawing is not None and reject_image(frame) is None:
            viewer.show_shortlist(drawing.draw(frame, estimate))
        count += 1
    return count


def _rerun() -> ModuleType:
    try:
        import rerun
    except ImportError:
        raise UserError("The viewer needs Rerun: pip install rerun-sdk.") from None
    return rerun
