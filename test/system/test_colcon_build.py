# SPDX-License-Identifier: Apache-2.0
"""The package builds with colcon and installs where `ros2 run` and `ros2 launch` look."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("colcon_core", reason="needs colcon")


@pytest.fixture(scope="module")
def installed(copy_sources, tmp_path_factory) -> Path:
    workspace = tmp_path_factory.mktemp("workspace")
    copy_sources(workspace / "src" / "aceg_ros")
    command = [sys.executable, "-m", "colcon", "build", "--packages-select", "aceg_ros", "--event-handlers",
               "console_direct+"]
    result = subprocess.run(command, cwd=workspace, env=os.environ | {"COLCON_HOME": str(workspace / "home")},
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return workspace / "install" / "aceg_ros"


def test_programs_are_where_ros2_run_looks(installed):
    for name in ("aceg", "localizer_node", "scene_player", "sim_camera"):
        assert os.access(installed / "lib" / "aceg_ros" / name, os.X_OK), name


def test_share_is_complete(installed, repository):
    share = installed / "share" / "aceg_ros"
    assert (share / "package.xml").is_file()
    assert (installed / "share/ament_index/resource_index/packages/aceg_ros").is_file()
    for folder, pattern in (("launch", "*.launch.py"), ("config", "*")):
        expected = {path.name for path in (repository / folder).glob(pattern)}
        assert expected and {path.name for path in (share / folder).glob("*")} == expected


def run_in_workspace(installed: Path, *command: str) -> str:
    """Output of a command in the environment that colcon's own set-up script makes, away from the sources."""
    result = subprocess.run(["bash", "-c", 'source ../setup.bash && exec "$@"', "bash", *command], cwd=installed,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_command_runs_from_the_installation(installed):
    assert "aceg" in run_in_workspace(installed, "lib/aceg_ros/aceg", "--help")


def test_installation_is_what_python_and_ros_find(installed):
    pytest.importorskip("rclpy", reason="needs ROS 2")
    lines = ("import aceg_ros, rclpy", "from ament_index_python import get_package_share_directory as share",
             "rclpy.init()", "print(aceg_ros.__file__)", "print(share('aceg_ros'))", "share('rclpy')")
    found = run_in_workspace(installed, sys.executable, "-c", "; ".join(lines)).split()
    assert Path(found[0]).is_relative_to(installed)
    assert Path(found[1]) == installed / "share" / "aceg_ros"
