"""What all tests share: a ROS 2 environment of their own, and the scenes beside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Two test runs at the same time, or a robot on the network, must not hear each other. Nodes started as subprocesses
# inherit this.
os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.setdefault("ROS_LOG_DIR", str(REPOSITORY / ".build" / "ros_log"))
os.environ.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(REPOSITORY / "config" / "fastdds_profile.xml"))


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


@pytest.fixture
def node():
    """A node of the test itself; the test spins it."""
    rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")
    rclpy.init()
    node = rclpy.create_node("test")
    yield node
    node.destroy_node()
    rclpy.shutdown()
