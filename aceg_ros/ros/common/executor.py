"""An executor with one thread for what is quick, and a thread for each callback that may wait.

rclpy's MultiThreadedExecutor submits a message to its pool again and again until a thread has begun with it: a node
with a few topics keeps a core, and the lock of the interpreter, busy. (Measured with rclpy 9.1 and two cores: an image
took the localizer 1.2 s instead of 0.08 s.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import ConditionReachedException, ShutdownException, SingleThreadedExecutor, TimeoutException
from rclpy.logging import get_logger
from rclpy.task import Task

# A signal makes rclpy wake the executors first and end their context then: one that is quicker than the second finds
# nothing to do and waits again, with nothing left to wake it. (Seen with rclpy 9.1: one node in sixty.)
_MAX_WAIT_S = 1.0


class WaitingCallbackGroup(MutuallyExclusiveCallbackGroup):
    """Callbacks that may wait: one of them at a time, beside those of all other groups."""


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
            begun = threading.Event()       # before that, the executor would find the task again
            threading.Thread(target=self._run, args=(task, begun), daemon=True).start()
            begun.wait()

    def _run(self, task: Task, begun: threading.Event) -> None:
        begun.set()
        task()
        error = task.exception()
        if error is not None and self.context.ok():     # else there is no caller left to respond to
            get_logger("executor").error(f"A callback failed: {error!r}")
