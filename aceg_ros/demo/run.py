# SPDX-License-Identifier: Apache-2.0
"""Runs the demo: a camera drives, a map is built from its recording, a node localizes another drive in the map.

Every image goes over real ROS 2 topics between processes. This file starts those processes and needs no ROS itself.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aceg_ros.datasets import open_scene
from aceg_ros.demo.processes import Processes
from aceg_ros.demo.report import write_demo_report
from aceg_ros.errors import UserError
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.build_map import build_map
from aceg_ros.methods.registry import default_method
from aceg_ros.utils.progress import MappingProgressBar

SIM_BUDGET_S, SCENE_BUDGET_S = 110.0, 300.0
MAPPING_RATE, QUERY_RATE = 10.0, 5.0
_NODES = "aceg_ros.ros"


@dataclass(frozen=True, kw_only=True)
class Player:
    """A node that plays one drive. name: of the node; it publishes the true poses on /NAME/ground_truth."""

    name: str
    parameters: dict[str, object]

    @property
    def ground_truth(self) -> str:
        return f"/{self.name}/ground_truth"


def run_demo(output: Path | str = "demo_output", scene: Path | str | None = None, budget_s: float | None = None,
             method: str | None = None, encoder: str | None = None, seed: int = 0, device: str = "auto",
             sim_frames: tuple[int, int] = (200, 60)) -> dict[str, object]:
    """Run the demo; no process is left behind, whatever happens.

    Args:
        output: Folder of the results. An existing one is replaced as a whole at the end.
        scene: Folder of a recorded scene with mapping/ and query/; None: the rendered room.
        budget_s: Seconds for the mapping; None: a default.
        method: Name of the method; None: the default one.
        encoder: Encoder of the map; None: the one that suits the method best.
        seed: Seed of mapping and pose solver.
        device: Device of mapping and localization.
        sim_frames: Numbers of images to map and to localize in the rendered room.

    Returns:
        The statistics, as in report.json.

    Raises:
        UserError: If anything fails.
    """
    output = Path(output)
    mapping, query = _sim_players(sim_frames) if scene is None else _scene_players(Path(scene))
    budget_s = budget_s or (SIM_BUDGET_S if scene is None else SCENE_BUDGET_S)
    options = MappingOptions(encoder=encoder, seed=seed, device=device)
    with _replaced_folder(output) as folder, Processes(folder / "logs") as processes:
        bag = processes.start(f"{_NODES}.bag_recorder", {"output": folder / "bag"})
        _announce("1/4 A camera drives through the scene; its images and poses are recorded.")
        _record(processes, mapping, folder / "recording")
        _announce(f"2/4 A map is built from the recording, within {budget_s:.0f} s.")
        scene_map = _build_map(folder / "recording", method, options, budget_s)
        scene_map.save(folder / "scene.map")
        _announce("3/4 The localizer node localizes another drive" + (" in evening light." if scene is None else "."))
        since_ns = _localize(processes, query, {"map_path": folder / "scene.map", "device": device, "seed": seed})
        processes.stop(bag)
        _announce("4/4 The estimated poses are compared with the true ones.")
        statistics = write_demo_report(folder, query.ground_truth, since_ns, scene_map, device=device, seed=seed)
    _announce(f"The results are in {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    return statistics


def _sim_players(frames: tuple[int, int]) -> tuple[Player, Player]:
    mapping = {"path": "mapping", "light": "day", "frames": frames[0], "rate": MAPPING_RATE}
    query = {"path": "query", "light": "evening", "frames": frames[1], "rate": QUERY_RATE, "prerender": True}
    return Player(name="sim_camera", parameters=mapping), Player(name="sim_camera", parameters=query)


def _scene_players(scene: Path) -> tuple[Player, Player]:
    missing = [part for part in ("mapping", "query") if not (scene / part).is_dir()]
    if missing:
        raise UserError(f"The demo needs a folder with the scenes mapping/ and query/: {scene} has no {missing[0]}/.")
    for part in ("mapping", "query"):
        open_scene(scene / part)            # raises UserError before any process is started

    def player(part: str, rate: float) -> Player:
        return Player(name="scene_player", parameters={"scene": (scene / part).resolve(), "rate": rate})

    return player("mapping", MAPPING_RATE), player("query", QUERY_RATE)


def _record(processes: Processes, player: Player, folder: Path) -> None:
    """Play a drive and record it as a scene."""
    recorder = processes.start(f"{_NODES}.scene_recorder", {"output": folder}, {"ground_truth": player.ground_truth})
    _play(processes, player)
    processes.stop(recorder)
    print(f"    {recorder.last_line()}", flush=True)


def _build_map(recording: Path, method: str | None, options: MappingOptions, budget_s: float) -> SceneMap:
    with MappingProgressBar() as bar:
        scene_map, skipped = build_map(method or default_method(options), options, open_scene(recording),
                                       MappingBudget.start(budget_s, progress=bar.show))
    for reason in skipped[:3]:
        print(f"    skipped: {reason}", flush=True)
    return scene_map


def _localize(processes: Processes, player: Player, parameters: dict[str, object]) -> int:
    """Play a drive to a localizer node with these parameters; returns the time (ns) before its first image."""
    localizer = processes.start(f"{_NODES}.localizer_node", parameters)
    processes.wait_for_line(localizer, "Localizing in")
    since_ns = time.time_ns()
    _play(processes, player)
    processes.stop(localizer)
    return since_ns


def _play(processes: Processes, player: Player) -> None:
    """Play a drive to its end. It starts when two nodes have subscribed to the images (one is the bag recorder)."""
    process = processes.start(f"{_NODES}.{player.name}",
                              player.parameters | {"wait_for_subscribers": 2, "start_delay": 2.0})
    processes.wait_for_end(process)


@contextmanager
def _replaced_folder(output: Path) -> Iterator[Path]:
    """Yield a new folder, which replaces `output` if the block succeeds and is deleted if it fails."""
    if output.exists() and not (output / "report.json").is_file() and any(output.iterdir()):
        raise UserError(f"{output} contains other files than results of a demo: choose another folder.")
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}_", dir=output.parent)).resolve()
    previous_handler = signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        yield folder
        folder.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        os.rename(folder, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, previous_handler)


def _exit_on_signal(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _announce(text: str) -> None:
    print(text, flush=True)
