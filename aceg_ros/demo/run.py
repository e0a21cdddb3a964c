"""The whole story, once: a camera drives, a map is built from what it saw, a node localizes another drive in it.

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
from aceg_ros.utils.progress import MappingBar

SIM_BUDGET_S, SCENE_BUDGET_S = 110.0, 300.0
MAPPING_RATE, QUERY_RATE = 10.0, 5.0
_NODES = "aceg_ros.ros"


@dataclass(frozen=True)
class Drive:
    """A node that plays one drive. topics: its name, under which it publishes the truth."""

    module: str
    topics: str
    parameters: dict[str, object]


def run_demo(output: Path | str = "demo_output", scene: Path | str | None = None, budget_s: float | None = None,
             method: str | None = None, encoder: str = "compact", seed: int = 0, device: str = "auto",
             sim_frames: tuple[int, int] = (200, 60)) -> dict[str, object]:
    """Run the demo in the rendered room, or on the folders mapping/ and query/ of a real scene; returns the figures.

    `output` is replaced as a whole, once everything is done. Raises UserError where anything fails; no process is left.
    """
    output = Path(output)
    mapping, query = _sim_drives(sim_frames) if scene is None else _scene_drives(Path(scene))
    budget_s = budget_s or (SIM_BUDGET_S if scene is None else SCENE_BUDGET_S)
    with _fresh_folder(output) as folder, Processes(folder / "logs") as processes:
        bag = processes.start(f"{_NODES}.bag_recorder", {"output": folder / "bag"})
        _say("1/4 The camera drives; what it sees is recorded.")
        _record(processes, mapping, folder / "recording")
        _say(f"2/4 A map is built from the recording, within {budget_s:.0f} s.")
        scene_map = _build_map(folder / "recording", method,
                               MappingOptions(encoder=encoder, seed=seed, device=device), budget_s)
        scene_map.save(folder / "scene.map")
        _say("3/4 The localizer node localizes another drive" + (" under evening light." if scene is None else "."))
        since_ns = _localize(processes, query, folder / "scene.map", device, seed)
        processes.stop(bag)
        _say("4/4 Report.")
        figures = write_demo_report(folder, f"/{query.topics}/ground_truth", since_ns, scene_map, device, seed)
    _say(f"Everything is in {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    return figures


def _sim_drives(frames: tuple[int, int]) -> tuple[Drive, Drive]:
    mapping = {"path": "mapping", "light": "day", "frames": frames[0], "rate": MAPPING_RATE}
    query = {"path": "query", "light": "evening", "frames": frames[1], "rate": QUERY_RATE, "prerender": True}
    return Drive(f"{_NODES}.sim_camera", "sim_camera", mapping), Drive(f"{_NODES}.sim_camera", "sim_camera", query)


def _scene_drives(scene: Path) -> tuple[Drive, Drive]:
    missing = [part for part in ("mapping", "query") if not (scene / part).is_dir()]
    if missing:
        raise UserError(f"The demo needs a folder with the scenes mapping/ and query/: {scene} has no {missing[0]}/.")
    for part in ("mapping", "query"):
        open_scene(scene / part)

    def drive(part: str, rate: float) -> Drive:
        return Drive(f"{_NODES}.scene_player", "scene_player", {"scene": (scene / part).resolve(), "rate": rate})

    return drive("mapping", MAPPING_RATE), drive("query", QUERY_RATE)


def _record(processes: Processes, drive: Drive, folder: Path) -> None:
    recorder = processes.start(f"{_NODES}.scene_recorder", {"output": folder},
                               {"ground_truth": f"/{drive.topics}/ground_truth"})
    _play(processes, drive)
    processes.stop(recorder)
    print(f"    {recorder.last_line()}", flush=True)


def _play(processes: Processes, drive: Drive) -> None:
    """Play to its end; the bag and one more must listen to the images before it starts."""
    camera = processes.start(drive.module, drive.parameters | {"wait_for_subscribers": 2, "start_delay": 2.0})
    processes.wait_for_end(camera)


def _build_map(recording: Path, method: str | None, options: MappingOptions, budget_s: float) -> SceneMap:
    with MappingBar() as bar:
        scene_map, refused = build_map(method or default_method(options), options, open_scene(recording),
                                       MappingBudget.start(budget_s, progress=bar.show))
    for reason in refused[:3]:
        print(f"    skipped: {reason}", flush=True)
    return scene_map


def _localize(processes: Processes, drive: Drive, map_path: Path, device: str, seed: int) -> int:
    """Returns the time (ns) before the first image of this drive."""
    localizer = processes.start(f"{_NODES}.localizer_node", {"map_path": map_path, "device": device, "seed": seed})
    processes.wait_for_line(localizer, "Localizing in")
    since_ns = time.time_ns()
    _play(processes, drive)
    processes.stop(localizer)
    return since_ns


@contextmanager
def _fresh_folder(output: Path) -> Iterator[Path]:
    """A new folder that takes the place of `output` when the body succeeds, and vanishes when it does not."""
    if output.exists() and not (output / "report.json").is_file() and any(output.iterdir()):
        raise UserError(f"{output} holds something else than a demo's results: choose another folder.")
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


def _say(text: str) -> None:
    print(text, flush=True)
