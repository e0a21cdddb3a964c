"""Times as ROS has them, converted: a stamp (fields sec and nanosec), nanoseconds (int), seconds (float).

Nanoseconds since 1970 are beyond the digits of a double: compare and subtract stamps as whole numbers.
"""

from __future__ import annotations

from typing import Any

NS_PER_S = 1_000_000_000


def stamp_to_ns(stamp: Any) -> int:
    """Nanoseconds of a stamp, a builtin_interfaces/Time of whichever library."""
    return stamp.sec * NS_PER_S + stamp.nanosec


def stamp_to_s(stamp: Any) -> float:
    """Seconds of a stamp."""
    return ns_to_s(stamp_to_ns(stamp))


def ns_to_s(nanoseconds: int) -> float:
    return nanoseconds * 1e-9


def ns_to_ms(nanoseconds: int) -> float:
    return nanoseconds * 1e-6


def s_to_ns(seconds: float) -> int:
    """Nanoseconds, rounded to the microsecond: a double has no more digits for seconds since 1970."""
    return round(seconds * 1e6) * 1000
