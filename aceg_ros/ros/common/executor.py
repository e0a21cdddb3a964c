# SPDX-License-Identifier: Apache-2.0
"""An executor that runs short callbacks in one thread, and each callback that may wait in a thread of its own.

rclpy's MultiThreadedExecutor submits a message to its pool again and again until a thread has started on it, so that a
node with a few topics keeps a core and the GIL busy. (Measured with rclpy 9.1 on two cores: localizing an image took
1.2 s instead of 0.08 s.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import ConditionReachedException, ShutdownException, SingleThreadedExecutor, TimeoutException
from rclpy.logging import get_logger
from rclpy.task import Task

# At a signal, rclpy wakes the executors and then shuts down their context. An executor that checks in between finds
# nothing to do and would wait forever (seen with rclpy 9.1: one node in sixty), so ours wakes up regularly.
_MAX_WAIT_S = 1.0


class WaitingCallbackGroup(MutuallyExclusiveCallbackGroup):
    """Callbacks that may wait: they run one at a time, in parallel with those of other groups."""


class Executor(SingleThreadedExecutor):
    def _spin_once_impl(self, timeout_sec: Any = None, wait_condition: Callable[[], bool] = lambda: False) -> None:
        try:
            longest = _MAX_WAIT_S if timeout_sec is None else timeout_sec
            task, entity, _ = self.wait_for_ready_callbacks(longest, None, wait_condition)
        except (ShutdownException, TimeoutException, ConditionReachedException):
            return
        if entity is None or not isinstance(entity.callback_group, WaitingCallbackGroup):
            task()
            task.result()       # raises what the callback raised
        elif not task.executing():
            started = threading.Event()     # until the task executes, the executor would find it again
            threading.Thread(target=self._run, args=(task, started), daemon=True).start()
            started.wait()

    def _run(self, task: Task, started: threading.Event) -> None:
        started.set()
        task()
        error = task.exception()
        if error is not None and self.context.ok():     # errors after the shutdown are expected
            get_logger("executor").error(f"A callback failed: {error!r}")
