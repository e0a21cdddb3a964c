# SPDX-License-Identifier: Apache-2.0
"""Draws where a map localizes, as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from aceg_ros.maps.coverage import CoverageGrid
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.utils.atomic_file import write_text

matplotlib.use("Agg")
from matplotlib import pyplot as plt

GOOD_CHANCE = 0.5               # from which localization is said to work
NEAR_CELLS = 1.5                # of a mapping image: cells this near are "along the mapped path"
ARROWS = 24                     # across the page, at most

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.5 sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}}img{{width:100%}}
h1{{font-size:1.4em}}</style><h1>{title}</h1>{paragraphs}{images}</html>
"""


def summary(grid: CoverageGrid, scene_map: SceneMap) -> dict[str, float]:
    """Return, for the cells along the mapped path, the mean predicted chance over all headings, that in the best
    heading, and the share of cells where every heading works; and the area in square metres where some heading does."""
    near = _near_path(grid, scene_map)
    chances = grid.chances
    cells = chances[near] if near.any() else chances.reshape(-1, chances.shape[2])
    return {"mean": float(cells.mean()), "best_heading": float(cells.max(1).mean()),
            "every_heading": float((cells.min(1) >= GOOD_CHANCE).mean()),
            "area_m2": float((chances.max(2) >= GOOD_CHANCE).sum() * grid.resolution_m**2)}


def describe_summary(found: dict[str, float], headings: int) -> str:
    """Return the summary as two sentences."""
    return (f"Along the mapped path, {found['mean']:.0%} of images in any direction are expected to be localized, and"
            f" {found['best_heading']:.0%} in the best one; in {found['every_heading']:.0%} of places all of"
            f" {headings} directions work. Somewhere to look at is known on {found['area_m2']:.1f} square metres.")


def write_coverage_page(path: Path, grid: CoverageGrid, scene_map: SceneMap, name: str) -> None:
    """Write the page. Raises UserError if the file cannot be written."""
    found = summary(grid, scene_map)
    paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in (
        describe_summary(found, len(grid.headings_rad)),
        "The colour is the predicted chance that an image taken there is localized, from how many landmarks it would"
        " see from where they were observed, at the height and tilt of the mapping images. White arrows: the best"
        " direction, where it works; black: mapping images."))
    images = _image(_overview(grid, scene_map)) + _image(_by_heading(grid, scene_map))
    write_text(path, PAGE.format(title=html.escape(f"Where {name} localizes"), paragraphs=paragraphs, images=images))


def _near_path(grid: CoverageGrid, scene_map: SceneMap) -> np.ndarray:
    """Return which cells (R, C) are near a mapping image."""
    rows, columns = grid.chances.shape[:2]
    x, y = np.meshgrid((np.arange(columns) + 0.5) * grid.resolution_m, (np.arange(rows) + 0.5) * grid.resolution_m)
    near = np.zeros((rows, columns), bool)
    for position in grid.to_grid(scene_map.trajectory[:, :3, 3].astype(float))[:, :2]:
        near |= np.hypot(x - position[0], y - position[1]) < NEAR_CELLS * grid.resolution_m
    return near


def _overview(grid: CoverageGrid, scene_map: SceneMap) -> Any:
    figure, axes = plt.subplots(figsize=(9, 7))
    shown = _draw(axes, grid, grid.chances.mean(2), scene_map)
    step = max(1, grid.chances.shape[1] // ARROWS)
    rows, columns = np.mgrid[step // 2:grid.chances.shape[0]:step, step // 2:grid.chances.shape[1]:step]
    best = grid.chances[rows, columns]
    works = best.max(2) >= GOOD_CHANCE
    angles = grid.headings_rad[best.argmax(2)]
    axes.quiver(((columns + 0.5) * grid.resolution_m)[works], ((rows + 0.5) * grid.resolution_m)[works],
                np.cos(angles[works]), np.sin(angles[works]), color="white", scale=40, width=0.002)
    figure.colorbar(shown, ax=axes, label="predicted chance, mean over directions")
    axes.set_title("Mean over all directions")
    return figure


def _by_heading(grid: CoverageGrid, scene_map: SceneMap) -> Any:
    count = len(grid.headings_rad)
    columns = min(4, count)
    figure, axes = plt.subplots(-(-count // columns), columns, figsize=(12, 3.2 * -(-count // columns)), squeeze=False,
                                layout="constrained")
    for number, axis in enumerate(axes.ravel()):
        if number >= count:
            axis.set_visible(False)
            continue
        _draw(axis, grid, grid.chances[:, :, number], scene_map)
        axis.set_title(f"looking {np.degrees(grid.headings_rad[number]):.0f} deg", fontsize=9)
    return figure


def _draw(axes: Any, grid: CoverageGrid, values: np.ndarray, scene_map: SceneMap) -> Any:
    width, height = grid.extent
    shown = axes.imshow(values, origin="lower", extent=(0, width, 0, height), vmin=0, vmax=1, cmap="viridis")
    path = grid.to_grid(scene_map.trajectory[:, :3, 3].astype(float))
    axes.plot(path[:, 0], path[:, 1], "k.", ms=2)
    axes.set_xlabel("m")
    axes.set_ylabel("m")
    return shown


def _image(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
