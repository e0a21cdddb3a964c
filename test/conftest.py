# SPDX-License-Identifier: Apache-2.0
"""What all tests share: a ROS 2 environment of their own, and the scenes beside the checkout."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock
from ros_domain import reserve_domain

REPOSITORY = Path(__file__).resolve().parents[1]

# Two test runs at the same time, or a robot on the network, must not hear each other. Nodes started as subprocesses
# inherit this. The domain is this process's as long as the lock is open.
DOMAIN_LOCK, domain_id = reserve_domain()
os.environ["ROS_DOMAIN_ID"] = str(domain_id)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.setdefault("ROS_LOG_DIR", str(REPOSITORY / ".build" / "ros_log"))
os.environ.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(REPOSITORY / "config" / "fastdds_profile.xml"))

# Several workers share the processor: each computes with one thread.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")


# Files of tests that map or localize in real time; they take about as long as all other tests with nodes.
WHOLE_ROBOT = {"test_node_evaluation.py", "test_node_mapping.py", "test_real_scenes.py", "test_system_mapping.py"}


@pytest.hookimpl(tryfirst=True)            # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks by folder and by fixture. Tests with nodes run one after the other, and those of a whole robot as well, so
    that of each kind there is one at a time."""
    for item in items:
        folder = item.path.relative_to(REPOSITORY / "test").parts[0]
        fixtures = set(getattr(item, "fixturenames", ()))
        if folder == "system":
            item.add_marker("slow")
        if folder == "ros" or fixtures & {"graph", "node"}:
            item.add_marker("ros")
        if fixtures & {"shared", "shared_scenes"}:
            item.add_marker("needs_data")
        if item.get_closest_marker("ros"):
            item.add_marker(pytest.mark.xdist_group("robot" if item.path.name in WHOLE_ROBOT else "nodes"))
            # Processes over real topics on a loaded machine: a failure counts if it happens twice. pytest names reruns.
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What computes steps back for what has to be in time. Groups of nodes come first (they are the largest), so a
    worker that has stepped back starts none of them."""
    if "PYTEST_XDIST_WORKER" in os.environ and not item.get_closest_marker("ros"):
        os.nice(max(0, 10 - os.nice(0)))


def import_script(name: str) -> ModuleType:
    """Import a program of scripts/, which is no package."""
    sys.path.insert(0, str(REPOSITORY / "scripts"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(REPOSITORY / "scripts"))


@pytest.fixture(scope="session")
def generate_docs() -> ModuleType:
    return import_script("generate_docs")


@pytest.fixture(scope="session")
def bump_version() -> ModuleType:
    return import_script("bump_version")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """made_once(name, make): the folder that make(folder) fills, made once for all workers of a run.

    The folder is everybody's: read it, and write elsewhere. ACEG_TEST_CACHE keeps it for the next run of the same code.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    cache = Path(os.environ.get("ACEG_TEST_CACHE", base / "made_once"))
    cache.mkdir(parents=True, exist_ok=True)

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, complete = cache / name, cache / f"{name}.complete"
        with FileLock(cache / f"{name}.lock"):
            if not complete.exists():           # or a test that was to make it has failed
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                complete.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded scenes and reference data beside the checkout, which not everybody has."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the reference data in {folder}, which is not here")
    return folder


@pytest.fixture(scope="session")
def shared_scenes(shared: Path) -> Path:
    return shared / "scenes"


@pytest.fixture(scope="session")
def copy_sources() -> Callable[[Path], None]:
    """copy_sources(folder): what git tracks or would add, which is what somebody who clones the repository gets."""

    def copy(target: Path) -> None:
        listing = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
                                 cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
        for name in filter(None, listing.split("\0")):
            if (REPOSITORY / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, target / name)

    return copy


@pytest.fixture(scope="session")
def sdist_and_wheel(copy_sources, made_once) -> tuple[Path, Path]:
    """The source distribution of this checkout, and the wheel that is built from it, as an index would hold them. Built
    from a copy, so that what an earlier build left in the checkout does not help."""
    def make(folder: Path) -> None:
        copy_sources(folder / "source")
        build = "import setuptools.build_meta as backend; backend.build_sdist('..')"
        subprocess.run([sys.executable, "-c", build], cwd=folder / "source", check=True, capture_output=True)
        sdist, = folder.glob("*.tar.gz")
        subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
                        "--wheel-dir", str(folder), str(sdist)], check=True)

    folder = made_once("distributions", make)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Processes that are launched find this checkout as the installed package."""
    prefix = tmp_path / "prefix"
    index = prefix / "share" / "ament_index" / "resource_index" / "packages"
    programs = prefix / "lib" / "aceg_ros"
    for folder in (index, programs):
        folder.mkdir(parents=True)
    (index / "aceg_ros").touch()
    for name in ("evaluation_node", "localizer_node", "scene_player", "sim_camera"):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m aceg_ros.ros.{name} "$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(prefix), prepend=os.pathsep)


@pytest.fixture
def graph(tmp_path):
    """A ROS graph of the test's own, for processes that talk to each other."""
    pytest.importorskip("rclpy", reason="needs ROS 2")
    from ros_graph import RosGraph

    with RosGraph(tmp_path) as graph:
        yield graph


@pytest.fixture
def node():
    """A node of the test itself; the test spins it."""
    rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")
    rclpy.init()
    node = rclpy.create_node("test")
    yield node
    node.destroy_node()
    rclpy.shutdown()


@pytest.fixture(scope="session")
def rendered_scene(made_once) -> Path:
    """The demo room as folders mapping/ (48 images) and query/ (12, another drive in the evening light)."""
    from aceg_ros.datasets import write_ace_scene
    from aceg_ros.synthetic.demo_room import demo_world, mapping_path, query_path
    from aceg_ros.synthetic.render import DAYLIGHT, EVENING

    def make(folder: Path) -> None:
        world = demo_world()
        for name, path, light in (("mapping", mapping_path(48, world.room), DAYLIGHT),
                                  ("query", query_path(12, world.room), EVENING)):
            write_ace_scene(folder / name, (world.render_frame(pose, light, f"{i:06d}") for i, pose in enumerate(path)))

    return made_once("rendered_scene", make)


@pytest.fixture(scope="session")
def rendered_map(rendered_scene: Path, made_once) -> Path:
    """A map of the rendered scene, made by the command line."""
    from aceg_ros.cli import main

    def make(folder: Path) -> None:
        assert main(["map", str(rendered_scene / "mapping"), "-o", str(folder / "room.map")]) == 0

    return made_once("rendered_map", make) / "room.map"


@pytest.fixture(scope="session")
def marepo_folder(rendered_scene: Path, made_once) -> Path:
    """A folder with maps of the rendered scene with the shipped transformer: room.map, as users make it, and codes.map,
    with coordinates of landmarks that a regressor reads, refined and fine-tuned."""
    from aceg_ros.cli import main

    def make(folder: Path) -> None:
        command = ["map", str(rendered_scene / "mapping"), "--method", "marepo", "-o"]
        assert main([*command, str(folder / "room.map")]) == 0
        assert main([*command, str(folder / "codes.map"), "--codes", "4000", "--refine", "--fine-tune"]) == 0

    return made_once("marepo_map", make)


@pytest.fixture(scope="session")
def map_of_method(rendered_scene: Path, marepo_folder: Path, made_once) -> Callable[[str], Path]:
    """map_of_method(name): a map of the rendered scene, made by the command line with a method of this name."""
    from aceg_ros.cli import main

    def get(method: str) -> Path:
        def make(folder: Path) -> None:
            flags = ("--keyframes", "16") if method == "reloc3r" else ("--budget", "60")
            assert main(["map", str(rendered_scene / "mapping"), "-o", str(folder / f"{method}.map"), "--method",
                         method, *flags]) == 0

        return marepo_folder / "room.map" if method == "marepo" else made_once(f"map_of_{method}", make
                                                                               ) / f"{method}.map"

    return get
