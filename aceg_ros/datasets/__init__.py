# SPDX-License-Identifier: Apache-2.0
"""Readers, one file per format, all yielding `Frame`s: `open_scene(path)` finds the right one."""

from aceg_ros.datasets.ace import write_ace_scene
from aceg_ros.datasets.bag.options import BagOptions
from aceg_ros.datasets.camera_file import load_camera_file
from aceg_ros.datasets.detect import open_scene, open_scenes
from aceg_ros.datasets.files import load_image
from aceg_ros.datasets.scene import Scene, SceneGroup, SkippedFrame

__all__ = ["BagOptions", "Scene", "SceneGroup", "SkippedFrame", "load_camera_file", "load_image", "open_scene",
           "open_scenes", "write_ace_scene"]
