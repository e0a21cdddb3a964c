# SPDX-License-Identifier: Apache-2.0
"""ROS domains that no other test on this machine uses at the same time."""

from __future__ import annotations

import fcntl
import os
import random
import tempfile
from pathlib import Path


def reserve_domain() -> tuple[int, int]:
    """An open lock file and the ROS domain that nobody else's tests on this machine get while it is open."""
    for domain_id in random.sample(range(1, 101), 100):
        lock = os.open(Path(tempfile.gettempdir()) / f"aceg_ros_test_domain_{domain_id}", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock, domain_id
        except BlockingIOError:
            os.close(lock)
    raise RuntimeError("All ROS domains are in use by tests.")
