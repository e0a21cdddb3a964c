"""What describes the package agrees with itself and with the code, and what is built holds all that it should."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

MANIFEST = ElementTree.parse(Path(__file__).resolve().parents[2] / "package.xml").getroot()

# Import name -> key of package.xml; None: rosdep has none, the README says how to install it.
OPTIONAL = {"pycolmap", "rerun", "transformers"}     # benchmark, DINOv2, viewer: their users install them themselves
THIRD_PARTY = {"PIL": "python3-pil", "cv2": "python3-opencv", "matplotlib": "python3-matplotlib",
               "numpy": "python3-numpy", "poselib": None, "rosbags": "python3-rosbags-pip", "safetensors": None,
               "scipy": "python3-scipy", "torch": "python3-torch", "tqdm": "python3-tqdm", "yaml": "python3-yaml",
               "tf2_ros": "tf2_ros_py"}
ON_THE_INDEX = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml"}
STAND_INS = {"bond", "cv_bridge", "sensor_msgs_py", "tf2_msgs", "tf2_ros"}
NOT_IMPORTED = {"rmw_fastrtps_cpp", "rviz2"}


def imported(path: Path) -> set[str]:
    """The top-level names that a Python file, or those in a folder, import, less the standard library."""
    names = set()
    for file in [path] if path.suffix == ".py" else path.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"aceg_ros", "_typeshed"}


def pinned(repository: Path) -> set[str]:
    lines = (repository / "requirements.txt").read_text().splitlines()
    return {Requirement(line).name.lower().replace("_", "-") for line in lines if line and not line.startswith("#")}


def test_versions_agree():
    import aceg_ros

    version = importlib.metadata.version("aceg_ros")
    assert MANIFEST.findtext("version") == version
    assert getattr(aceg_ros, "__version__", version) == version


def test_entry_points_import():
    entry_points = importlib.metadata.distribution("aceg_ros").entry_points
    scripts = {entry.name: entry for entry in entry_points if entry.group == "console_scripts"}
    assert set(scripts) == {"aceg", "bag_recorder", "evaluation_node", "localizer_node", "scene_player", "sim_camera"}
    for entry in scripts.values():
        if ".ros." in entry.value:
            pytest.importorskip("rclpy", reason="needs ROS 2")
        assert callable(entry.load())


def test_only_the_ros_folder_imports_ros(repository):
    declared = {depend.text for depend in MANIFEST.iter("exec_depend")}
    ros = {name for name in declared if not name.startswith("python3-")} | {"tf2_ros"}
    for path in (repository / "aceg_ros").iterdir():
        if path.name != "ros":
            assert not imported(path) & ros, path


def test_every_import_is_declared(repository):
    declared = {depend.text for depend in MANIFEST.iter("exec_depend")}
    for name in imported(repository / "aceg_ros") | imported(repository / "launch"):
        key = None if name in OPTIONAL else THIRD_PARTY.get(name, name)
        assert key is None or key in declared, f"package.xml lacks {key}"


def test_every_dependency_is_pinned(repository):
    available = pinned(repository)
    for name in imported(repository / "aceg_ros") - STAND_INS - OPTIONAL:
        on_the_index = ON_THE_INDEX.get(name, name)
        candidates = {on_the_index, f"ros-{on_the_index.replace('_', '-')}"}
        assert candidates & available, f"requirements.txt lacks {name}"


def test_every_declared_dependency_is_used(repository):
    used = {THIRD_PARTY.get(name, name) for name in imported(repository / "aceg_ros") | imported(repository / "launch")}
    declared = {depend.text for depend in MANIFEST.iter("exec_depend")}
    assert not declared - NOT_IMPORTED - used


def test_wheel_holds_code_weights_launch_and_config(repository, copy_sources, tmp_path):
    """Built from a copy, so that what an earlier build left in the checkout does not help."""
    copy_sources(tmp_path / "source")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
                    "--wheel-dir", str(tmp_path), str(tmp_path / "source")], check=True)
    wheel, = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = [path.relative_to(repository) for path in (repository / "aceg_ros").rglob("*.py")]
    expected += [path.relative_to(repository) for path in (repository / "aceg_ros" / "weights").glob("*.safetensors")]
    assert {str(path) for path in expected} <= names
    for folder, pattern in (("launch", "*.launch.py"), ("config", "*")):
        for path in (repository / folder).glob(pattern):
            assert any(name.endswith(f"/data/share/aceg_ros/{folder}/{path.name}") for name in names), path
    assert not any(name.startswith(("test/", "standalone/")) for name in names)
