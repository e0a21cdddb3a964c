# SPDX-License-Identifier: Apache-2.0
"""The transforms of a recording over time, with lookups as in TF. Does not need ROS."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

import numpy as np

from aceg_ros.errors import UserError
from aceg_ros.geometry import interpolate_poses, invert
from aceg_ros.utils.stamps import NS_PER_S, ns_to_s

MAX_GAP_S = 1.0         # largest gap between two samples that is interpolated


class TransformTree:
    """A tree of transforms over time. Frame names have no leading slash; stamps are in nanoseconds."""

    def __init__(self) -> None:
        self._static: dict[str, tuple[str, np.ndarray]] = {}                      # by child: parent, parent_from_child
        self._moving: dict[str, dict[int, tuple[str, np.ndarray]]] = {}           # by child and stamp
        self._stamps: dict[str, list[int]] = {}                                   # sorted at the first lookup
        self._frames: set[str] = set()

    def add(self, parent: str, child: str, stamp_ns: int, parent_from_child: np.ndarray, static: bool = False) -> None:
        self._frames |= {parent, child}
        if static:
            self._static[child] = parent, parent_from_child
        else:
            self._moving.setdefault(child, {})[stamp_ns] = parent, parent_from_child
            self._stamps.pop(child, None)

    def lookup(self, target: str, source: str, stamp_ns: int) -> np.ndarray:
        """Return target_from_source (4, 4) at a stamp. Raises UserError with the reason if it is not known then."""
        for frame in (target, source):
            if target != source and frame not in self._frames:
                raise UserError(f"No transform names the frame '{frame}': the frames are {self._listed(self._frames)}.")
        up = self._chain(source, stamp_ns)
        down = self._chain(target, stamp_ns)
        common = next((frame for frame in up if frame in down), None)
        if common is None:
            raise UserError(f"The frames '{target}' and '{source}' are not connected at {ns_to_s(stamp_ns):.3f} s:"
                            f" {self._reason((target, down), (source, up), stamp_ns)}.")
        return invert(down[common]) @ up[common]

    def missing(self, child: str, stamp_ns: int) -> str:
        """Return, as a clause, why the moving transform of a frame is not known at a stamp."""
        stamps = self._sorted_stamps(child)
        if not stamps:
            return "there is none"
        if not stamps[-1]:
            return "all have a stamp of zero"
        after = bisect_left(stamps, stamp_ns)
        if after == 0:
            return f"the first is {ns_to_s(stamps[0] - stamp_ns):.3f} s later"
        if after == len(stamps):
            return f"the last is {ns_to_s(stamp_ns - stamps[-1]):.3f} s earlier"
        before_ns, after_ns = stamps[after - 1:after + 1]
        parents = {self._moving[child][neighbour][0] for neighbour in (before_ns, after_ns)}
        if len(parents) > 1:
            return f"it has two parents, {self._listed(parents)}, as if two robots shared a topic"
        return (f"there is a gap of {ns_to_s(after_ns - before_ns):.3f} s, from {ns_to_s(before_ns):.3f} to"
                f" {ns_to_s(after_ns):.3f} s, and no more than {MAX_GAP_S:g} s are interpolated")

    def _reason(self, target: tuple[str, dict[str, np.ndarray]], source: tuple[str, dict[str, np.ndarray]],
                stamp_ns: int) -> str:
        """Return, as a clause, why two frames (each with its chain) are not connected."""
        for _, chain in (source, target):
            last = list(chain)[-1]
            if self._moving.get(last) and last not in self._static:
                parent = next(iter(self._moving[last].values()))[0]
                return f"of the transforms of '{last}' in '{parent}', {self.missing(last, stamp_ns)}"
        return " and ".join(f"'{frame}' is connected to {self._listed([*chain][1:]) or 'no parent'}"
                            for frame, chain in (source, target))

    @staticmethod
    def _listed(frames: Iterable[str]) -> str:
        names = sorted(frames)
        return ", ".join(f"'{name}'" for name in names[:10]) + (", ..." if len(names) > 10 else "")

    def _sorted_stamps(self, child: str) -> list[int]:
        if child not in self._stamps:
            self._stamps[child] = sorted(self._moving.get(child, {}))
        return self._stamps[child]

    def _chain(self, frame: str, stamp_ns: int) -> dict[str, np.ndarray]:
        """Return ancestor_from_frame (4, 4) of each ancestor of a frame, itself included."""
        chain = {frame: np.eye(4)}
        pose = np.eye(4)
        while (step := self._parent(frame, stamp_ns)) is not None and step[0] not in chain:
            frame, parent_from_child = step
            pose = parent_from_child @ pose
            chain[frame] = pose
        return chain

    def _parent(self, child: str, stamp_ns: int) -> tuple[str, np.ndarray] | None:
        if child in self._static:
            return self._static[child]
        samples = self._moving.get(child, {})
        if stamp_ns in samples:
            return samples[stamp_ns]
        stamps = self._sorted_stamps(child)
        after = bisect_left(stamps, stamp_ns)
        if not 0 < after < len(stamps):
            return None
        neighbours = stamps[after - 1:after + 1]
        (parent, before), (parent_after, later) = samples[neighbours[0]], samples[neighbours[1]]
        if parent != parent_after or neighbours[1] - neighbours[0] > MAX_GAP_S * NS_PER_S:
            return None
        # Relative to the first stamp: a double cannot hold seconds since 1970 with nanosecond precision.
        seconds = 1e-9 * np.array([0, neighbours[1] - neighbours[0]])
        return parent, interpolate_poses(1e-9 * (stamp_ns - neighbours[0]), seconds, np.array([before, later]))
