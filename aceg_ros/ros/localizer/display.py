# SPDX-License-Identifier: Apache-2.0
"""Display of map and results: point cloud, debug image, Rerun viewer."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nav_msgs.msg import OccupancyGrid
from rclpy.node import Node
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header

from aceg_ros.errors import UserError
from aceg_ros.ros.common.messages import cloud_message, coverage_message, image_message
from aceg_ros.ros.localizer.map_loader import MapState
from aceg_ros.ros.localizer.parameters import LocalizerParameters
from aceg_ros.ros.localizer.results import LocalizationResult
from aceg_ros.ros.localizer.status_publisher import LATCHED
from aceg_ros.visualization.overlay import draw_estimate, draw_rig_estimate

if TYPE_CHECKING:
    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.visualization.rerun_viewer import Viewer


class Display:
    """Shows map and results."""

    def __init__(self, node: Node, parameters: LocalizerParameters) -> None:
        self._node, self._coverage_resolution_m = node, parameters.coverage_resolution
        self._clouds = node.create_publisher(PointCloud2, "~/map_cloud", LATCHED)
        self._debug_images = node.create_publisher(Image, "~/debug_image", 2)
        self._coverage = node.create_publisher(OccupancyGrid, "~/coverage", LATCHED)
        self._viewer = _open_viewer(parameters.rerun)

    def show_result(self, result: LocalizationResult) -> None:
        """Publish the debug image with the correspondences, if it has subscribers, and log to the viewer."""
        if result.rig is not None and self._debug_images.get_subscription_count():
            self._debug_images.publish(image_message(draw_rig_estimate(*result.rig), result.header))
        if result.frame is None or result.estimate is None:
            return
        if self._viewer is not None:
            self._viewer.show_estimate(result.frame, result.estimate)
        if self._debug_images.get_subscription_count():
            self._debug_images.publish(image_message(draw_estimate(result.frame, result.estimate), result.header))

    def show_map(self, state: MapState, map_frame: str) -> None:
        """Publish the cloud of the map; an empty one if there is no map."""
        scene_map = None if state.loaded is None else state.loaded.scene_map
        xyz, rgb = (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)) if scene_map is None else \
            (scene_map.cloud_xyz, scene_map.cloud_rgb)
        header = Header(stamp=self._node.get_clock().now().to_msg(), frame_id=map_frame)
        self._clouds.publish(cloud_message(xyz, rgb, header))
        if self._viewer is not None and scene_map is not None:
            self._viewer.show_map(scene_map)
        if self._coverage_resolution_m and scene_map is not None:
            # It takes seconds, in which poses are published already.
            threading.Thread(target=self._publish_coverage, args=(scene_map, header), daemon=True,
                             name="coverage").start()

    def _publish_coverage(self, scene_map: SceneMap, header: Header) -> None:
        from aceg_ros.maps.coverage import coverage_of_map
        try:
            grid = coverage_of_map(scene_map, resolution_m=self._coverage_resolution_m)
            self._coverage.publish(coverage_message(grid, header))
        except UserError as error:
            self._node.get_logger().warning(f"No coverage: {error}")
        except Exception:               # the node is ending
            if self._node.context.ok():
                raise


def _open_viewer(target: str) -> Viewer | None:
    if not target:
        return None
    from aceg_ros.visualization.rerun_viewer import Viewer
    return Viewer(None if target == "window" else Path(target).expanduser())
