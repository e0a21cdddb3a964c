# SPDX-License-Identifier: Apache-2.0
"""What describes the package agrees with itself and with the code, and what is built holds all that it should."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
import zipfile
from datetime import date
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()

# Import name -> key of package.xml; None: rosdep has none, the README says how to install it.
OPTIONAL = {"pycolmap", "ray", "rerun", "transformers"}     # extras: their users install them themselves
THIRD_PARTY = {"PIL": "python3-pil", "cv2": "python3-opencv", "matplotlib": "python3-matplotlib",
               "numba": None, "numpy": "python3-numpy", "poselib": None, "rosbags": "python3-rosbags-pip",
               "safetensors": None, "scipy": "python3-scipy", "torch": "python3-torch", "tqdm": "python3-tqdm",
               "yaml": "python3-yaml", "tf2_ros": "tf2_ros_py"}
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


def test_versions_agree(bump_version):
    written = bump_version.written_versions(ROOT)
    assert written == dict.fromkeys(written, importlib.metadata.version("aceg_ros"))


def test_a_version_is_set_everywhere(bump_version, tmp_path):
    for name in [*bump_version.PLACES, "CHANGELOG.rst"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    with pytest.raises(ValueError, match="Forthcoming"):
        bump_version.bump(tmp_path, "9.8.7", date(2030, 1, 2))
    changelog = (tmp_path / "CHANGELOG.rst").read_text()
    changelog = re.sub(r"^(?=\d)", "Forthcoming\n-----------\n* New.\n\n", changelog, count=1, flags=re.MULTILINE)
    (tmp_path / "CHANGELOG.rst").write_text(changelog)
    bump_version.bump(tmp_path, "9.8.7", date(2030, 1, 2))
    written = bump_version.written_versions(tmp_path)
    assert written == dict.fromkeys(written, "9.8.7")
    assert "9.8.7 (2030-01-02)\n------------------\n* New.\n" in (tmp_path / "CHANGELOG.rst").read_text()
    with pytest.raises(ValueError, match="not a version"):
        bump_version.bump(tmp_path, "next", date(2030, 1, 2))


def test_every_yaml_file_can_be_read(repository):
    """Of CI, templates and containers, which nothing here runs. A workflow's job starts what .ci/run starts."""
    files = [*(repository / ".github").rglob("*.yml"), *(repository / "docker").glob("*.yaml"),
             repository / ".pre-commit-config.yaml", repository / "CITATION.cff"]
    assert len(files) >= 7 and all(isinstance(yaml.safe_load(file.read_text()), dict) for file in files)
    workflow = yaml.safe_load((repository / ".github" / "workflows" / "ci.yml").read_text())
    assert any(step.get("run") == "bash .ci/run" for step in workflow["jobs"]["test"]["steps"])
    classifiers = {f"3.{minor}" for minor in range(10, 14)}
    assert set(workflow["jobs"]["test"]["strategy"]["matrix"]["python"]) == classifiers


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


def test_wheel_of_the_sdist_holds_code_weights_launch_and_config(repository, sdist_and_wheel):
    sdist, wheel = sdist_and_wheel
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/LICENSE") for name in archive.getnames())
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = [path.relative_to(repository) for path in (repository / "aceg_ros").rglob("*.py")]
    expected += [path.relative_to(repository) for path in (repository / "aceg_ros" / "weights").glob("*.safetensors")]
    assert {str(path) for path in expected} <= names
    for folder, pattern in (("launch", "*.launch.py"), ("config", "*")):
        for path in (repository / folder).glob(pattern):
            assert any(name.endswith(f"/data/share/aceg_ros/{folder}/{path.name}") for name in names), path
    assert not any(name.startswith(("test/", "standalone/")) for name in names)
