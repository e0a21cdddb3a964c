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
        assert {path.name for path in (share / folder).glob("*")} == expected


def test_command_runs_from_the_installation(installed):
    """In the environment that colcon's own set-up script makes, and from a folder without the sources."""
    result = subprocess.run(["bash", "-c", "source ../setup.bash && exec lib/aceg_ros/aceg --help"], cwd=installed,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "aceg" in result.stdout
    where = subprocess.run(["bash", "-c", f"source ../setup.bash && exec {sys.executable} -c 'import aceg_ros; "
                            "print(aceg_ros.__file__)'"], cwd=installed, capture_output=True, text=True)
    assert where.stdout.startswith(str(installed)), where
