"""Describes a map in a few lines of text, from the header of its file alone."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

from aceg_ros.maps.header import open_map

DISPLAY_SECTIONS = ("cloud", "trajectory")          # sections that are not parameters of the method
MAX_CAMERAS = 5


def describe(path: Path | str) -> dict[str, str]:
    """Return names and values that describe a map and how it was made, without loading its tensors.

    Raises UserError if the file is missing, damaged, not a map or of a newer format.
    """
    file = open_map(path)
    header, sizes = file.header, _section_sizes(file.shapes())
    low, high = header.stored_bounds or ([], [])
    rows = {"format": str(file.version), "method": header.method}
    rows |= {role: f"{network.identity} (from {network.source})" for role, network in header.networks.items()}
    rows |= {"created": header.created, "file": f"{file.path.stat().st_size / 1e6:.2f} MB",
             "parameters": f"{sum(size for name, size in sizes.items() if name not in DISPLAY_SECTIONS):,}",
             "cloud": f"{sizes.get('cloud', 0) // 6:,} points", "bounds": f"{_corner(low)} to {_corner(high)} m"}
    rows |= {name.replace("_", " "): _text(value) for name, value in header.settings.items()}
    rows["covariance scale"] = f"{header.covariance_scale:.3g}"
    rows |= {f"camera {n}": f"{c.width}x{c.height}, f {c.fx:.1f} {c.fy:.1f}, centre {c.cx:.1f} {c.cy:.1f}, {c.model}"
             for n, c in enumerate(header.cameras[:MAX_CAMERAS])}
    return rows | {name.replace("_", " "): _text(value) for name, value in asdict(header.statistics).items()}


def _section_sizes(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the number of elements of each section. In format 1 all tensors of the method are one section."""
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        section = name.split(".")[0]
        sizes[section] = sizes.get(section, 0) + math.prod(shape)
    return sizes


def _text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return "none" if math.isnan(value) else f"{value:.4g}"


def _corner(corner: list[float]) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in corner) + ")"
