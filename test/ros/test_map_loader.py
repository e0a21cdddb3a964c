# SPDX-License-Identifier: Apache-2.0
"""What the node loads localizes a stream of images."""

from dataclasses import replace

import numpy as np

from aceg_ros.datasets import open_scene
from aceg_ros.ros.localizer.map_loader import load_localizer


def test_one_other_view_of_each_rejected_image_is_tried(rendered_map, rendered_scene):
    localizer = load_localizer(str(rendered_map), "cpu", 0).localizer
    frame = next(iter(open_scene(rendered_scene / "query")))
    camera = frame.camera
    upside_down = replace(frame, image=np.ascontiguousarray(frame.image[::-1, ::-1]), map_from_camera=None,
                          camera=replace(camera, cx=camera.width - 1 - camera.cx, cy=camera.height - 1 - camera.cy))
    accepted = [localizer.localize(each).accepted for each in [upside_down, frame, *6 * [upside_down]]]
    assert accepted[:2] == [False, True] and accepted[-1]       # smaller, then turns are compared and tried
