# SPDX-License-Identifier: Apache-2.0
"""Describes a map in a few sentences, from the header of its file alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from aceg_ros.camera import Camera
from aceg_ros.maps.header import MIN_COVARIANCE_SCALE, MapFile, MapHeader, MappingStatistics, open_map

DATABASE = "database"               # as `keyframe_database.SECTION`, whose module would load torch
DISPLAY_SECTIONS = ("cloud", "trajectory")
MAX_CAMERAS = 3
FEW_LANDMARKS = 100                                 # a keyframe: with fewer, images from elsewhere are often rejected


def describe(path: Path | str) -> dict[str, str]:
    """Return what a map is, holds, was made of and is good for, each as a sentence without a full stop, without loading
    its tensors.

    Raises UserError if the file is missing, damaged, not a map or of a newer format.
    """
    file = open_map(path)
    header, shapes = file.header, file.shapes()
    rows = {"map": _file(file), "covers": _extent(header), "holds": _contents(shapes),
            "made from": _origin(header), "good for": _use(shapes), "covariances": _covariances(header)}
    rows |= {role: f"{network.source}, as {network.identity}" for role, network in header.networks.items()}
    settings = [f"{name.replace('_', ' ')} {_text(value)}" for name, value in header.settings.items()]
    if settings:
        rows["settings"] = ", ".join(settings)
    return rows


def _file(file: MapFile) -> str:
    created = file.header.created
    try:
        moment = datetime.fromisoformat(created)
        created = f"{moment.day} {moment:%B %Y, %H:%M} {moment.tzname() or ''}".rstrip()
    except ValueError:
        pass
    megabytes = file.path.stat().st_size / 1e6
    return (f"{file.path.name}, {megabytes:.1f} MB, method: {file.header.method}, format: {file.version}"
            + (f", made on {created}" if created else ""))


def _extent(header: MapHeader) -> str:
    if header.stored_bounds is None:
        return "not known"
    low, high = header.stored_bounds
    size = " x ".join(_length(b - a) for a, b in zip(low, high, strict=True))
    corners = " to ".join("(" + ", ".join(f"{value:.1f}" for value in corner) + ")" for corner in (low, high))
    return f"{size} m, from {corners} in the map frame"


def _length(metres: float) -> str:
    return f"{metres:.0f}" if metres >= 20 else f"{metres:.1f}"


def _contents(shapes: Mapping[str, tuple[int, ...]]) -> str:
    found = []
    keyframes, landmarks = _count(shapes, f"{DATABASE}.poses"), _count(shapes, f"{DATABASE}.points")
    if keyframes:
        found.append(f"{keyframes:,} keyframes with {landmarks:,} landmarks, seen"
                     f" {_count(shapes, f'{DATABASE}.landmarks'):,} times")
    sizes = _section_sizes(shapes)
    found += [f"{name.replace('_', ' ')} ({size:,} numbers)" for name, size in sizes.items()
              if name not in (*DISPLAY_SECTIONS, DATABASE)]
    if sizes.get("cloud"):
        found.append(f"{sizes['cloud'] // 6:,} points for display")
    return "; ".join(found) or "nothing"


def _origin(header: MapHeader) -> str:
    done = header.statistics
    sentence = f"{_counted(done.frames, 'image')} of {_cameras(header.cameras)}"
    if done.mapping_s:
        sentence += f", in {_duration(done.mapping_s)} on {'a GPU' if done.device.startswith('cuda') else 'the CPU'}"
    if done.iterations:
        sentence += f" with {done.iterations:,} iterations"
        if not math.isnan(done.reprojection_px):
            sentence += f" to a reprojection error of {done.reprojection_px:.1f} px"
    return sentence + _left_out(done)


def _left_out(done: MappingStatistics) -> str:
    parts = []
    if done.skipped:
        parts.append(f"{_counted(done.skipped, 'image')} could not be used")
    if done.iterations == 0 and 0 < done.encoded < done.frames:
        parts.append(f"there was time for {done.encoded} only")
    if not done.complete:
        parts.append("it was stopped early: map again for a complete one")
    return f"; {'; '.join(parts)}" if parts else ""


def _cameras(cameras: Sequence[Camera]) -> str:
    if not cameras:
        return "an unknown camera"
    told = [f"{camera.width}x{camera.height}, f {camera.fx:.1f} {camera.fy:.1f},"
            f" {math.degrees(2 * math.atan(camera.width / 2 / camera.fx)):.0f} degrees wide"
            + ("" if camera.model == "pinhole" else f", {camera.model}") for camera in cameras[:MAX_CAMERAS]]
    more = f" and {len(cameras) - MAX_CAMERAS} more" if len(cameras) > MAX_CAMERAS else ""
    return f"{_counted(len(cameras), 'camera')} ({'; '.join(told)}{more})"


def _use(shapes: Mapping[str, tuple[int, ...]]) -> str:
    keyframes, landmarks = _count(shapes, f"{DATABASE}.poses"), _count(shapes, f"{DATABASE}.landmarks")
    if not keyframes:
        return "single images of any calibrated camera that see what was mapped, from near where it was"
    use = ("single images, and rigs of several cameras, that see what was mapped, from near where it was;"
           " 'aceg coverage' shows where")
    if landmarks / keyframes < FEW_LANDMARKS:
        use += f". With {landmarks / keyframes:.0f} landmarks an image, many will be rejected: map more images"
    return use


def _covariances(header: MapHeader) -> str:
    factor, held_out = header.covariance_scale, header.statistics.held_out
    if held_out:
        return f"the solver's times {factor:.2g}, calibrated on {_counted(held_out, 'image')} that were not mapped"
    if factor == MIN_COVARIANCE_SCALE:
        return f"the solver's times {factor:.3g}; there were too few images to calibrate them"
    return f"the solver's times {factor:.3g}"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def _count(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    return shapes[name][0] if name in shapes else 0


def _section_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the number of elements of each section. In format 1 all tensors of the method are one section."""
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        section = name.split(".")[0]
        sizes[section] = sizes.get(section, 0) + math.prod(shape)
    return sizes


def _text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return "unknown" if math.isnan(value) else f"{value:.4g}"
