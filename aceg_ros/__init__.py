# SPDX-License-Identifier: Apache-2.0
"""Visual localization: posed images -> map -> pose of a new image with its covariance, or a rejection with a reason.

    import aceg_ros as ag

    ag.build_map("recording/").save("lab.map")
    estimate = ag.Localizer.load("lab.map").localize("image.jpg")

The names below are imported when they are first used (PEP 562): `import aceg_ros` alone loads neither torch nor OpenCV.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from aceg_ros.api import Localizer, build_map
    from aceg_ros.camera import Camera, Frame
    from aceg_ros.datasets import BagOptions, open_scene
    from aceg_ros.errors import UserError
    from aceg_ros.estimate import PoseEstimate, Status
    from aceg_ros.maps.scene_map import SceneMap

__all__ = ["BagOptions", "Camera", "Frame", "Localizer", "PoseEstimate", "SceneMap", "Status", "UserError", "build_map",
           "open_scene"]

_MODULES = {"build_map": "aceg_ros.api", "Localizer": "aceg_ros.api", "Camera": "aceg_ros.camera",
            "Frame": "aceg_ros.camera", "BagOptions": "aceg_ros.datasets", "open_scene": "aceg_ros.datasets",
            "UserError": "aceg_ros.errors", "PoseEstimate": "aceg_ros.estimate", "Status": "aceg_ros.estimate",
            "SceneMap": "aceg_ros.maps.scene_map"}

# Torch's OpenMP threads spin while they wait for each other. On a robot, which shares its cores with other nodes, a
# spinning thread occupies the core that another thread needs (measured on 2 cores beside one busy process: five times
# slower). A short spin avoids this, and still saves 10 % when the cores are free. This has to be set before torch is
# loaded; settings of the user take precedence.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'aceg_ros' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
