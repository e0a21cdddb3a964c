# SPDX-License-Identifier: Apache-2.0
"""Conversions between ROS stamps (fields sec and nanosec), nanoseconds (int) and seconds (float).

A double cannot hold nanoseconds since 1970 exactly: compare and subtract stamps as integers.
"""

from __future__ import annotations

from typing import Any

NS_PER_S = 1_000_000_000


def stamp_to_ns(stamp: Any) -> int:
    """Convert a stamp (builtin_interfaces/Time of rclpy or rosbags) to nanoseconds."""
    return stamp.sec * NS_PER_S + stamp.nanosec


def stamp_to_s(stamp: Any) -> float:
    """Convert a stamp to seconds."""
    return ns_to_s(stamp_to_ns(stamp))


def ns_to_s(nanoseconds: int) -> float:
    return nanoseconds * 1e-9


def ns_to_ms(nanoseconds: int) -> float:
    return nanoseconds * 1e-6


def s_to_ns(seconds: float) -> int:
    """Convert seconds to nanoseconds, rounded to microseconds: the precision of a double for seconds since 1970."""
    return round(seconds * 1e6) * 1000
