# SPDX-License-Identifier: Apache-2.0
"""The environment of a ROS 2 program that runs from this checkout's .venv, set at every start of its Python.

`make setup` leaves a .pth file in the .venv that imports this module, so that nothing has to be sourced. Only what is
missing is set: export a variable before the start to choose otherwise (say ROS_AUTOMATIC_DISCOVERY_RANGE=SUBNET to
talk to a robot). The search path of the shared libraries is set by the ROS 2 wheels in the same way.
"""

import os
import sys
from pathlib import Path

_PROFILE = Path(__file__).resolve().parents[2] / "config" / "fastdds_profile.xml"

_prefixes = [path for path in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if path]
if sys.prefix not in _prefixes:  # a colcon workspace may be there already
    os.environ["AMENT_PREFIX_PATH"] = os.pathsep.join([*_prefixes, sys.prefix])

os.environ.setdefault("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
os.environ.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(_PROFILE))
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
