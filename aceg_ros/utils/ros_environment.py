# SPDX-License-Identifier: Apache-2.0
"""Environment variables that the ROS 2 nodes of this package need."""

from __future__ import annotations

import os
from pathlib import Path

_CHOICES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")      # the second is the old name
# Fast DDS reads these in the current folder by itself.
_LOCAL_PROFILES = ("DEFAULT_FASTDDS_PROFILES.xml", "DEFAULT_FASTRTPS_PROFILES.xml")


def ros_environment() -> dict[str, str]:
    """Return what a node needs and the environment lacks: a transport for large images (config/fastdds_profile.xml).

    Without it, Fast DDS loses nearly every image. Empty if the user has chosen a profile of Fast DDS.
    """
    if any(name in os.environ for name in _CHOICES) or any(Path(name).is_file() for name in _LOCAL_PROFILES):
        return {}
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    folders = (Path(__file__).resolve().parents[2] / "config",          # a checkout
               *(Path(prefix) / "share" / "aceg_ros" / "config" for prefix in prefixes if prefix))
    profiles = (folder / "fastdds_profile.xml" for folder in folders)
    found = next((str(profile) for profile in profiles if profile.is_file()), None)
    return {} if found is None else {_CHOICES[0]: found}
