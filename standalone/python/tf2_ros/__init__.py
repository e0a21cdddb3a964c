# SPDX-License-Identifier: Apache-2.0
"""Stand-in for tf2_ros with the calls that aceg_ros uses, for where ROS 2 is not installed."""

from tf2_ros.broadcaster import StaticTransformBroadcaster, TransformBroadcaster
from tf2_ros.buffer import Buffer
from tf2_ros.exceptions import (
    ConnectivityException,
    ExtrapolationException,
    InvalidArgumentException,
    LookupException,
    TimeoutException,
    TransformException,
)
from tf2_ros.listener import TransformListener

__all__ = ["Buffer", "ConnectivityException", "ExtrapolationException", "InvalidArgumentException", "LookupException",
           "StaticTransformBroadcaster", "TimeoutException", "TransformBroadcaster", "TransformException",
           "TransformListener"]
