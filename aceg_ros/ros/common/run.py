# SPDX-License-Identifier: Apache-2.0
"""Run one node as a process: clean exit on SIGINT and SIGTERM, one sentence and exit code 2 on bad input."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.task import Future
from rclpy.utilities import remove_ros_args

from aceg_ros.errors import UserError
from aceg_ros.ros.common.executor import Executor
from aceg_ros.ros.start import INTERRUPTED
from aceg_ros.utils.ros_environment import ros_environment

# The clean-up of a recorder may take half a minute; launch and systemd have killed the process by then.
_CLEANUP_S = 60.0
_USAGE = ("A node takes --ros-args, and after it -p PARAMETER:=VALUE, --params-file FILE, -r NAME:=NEW_NAME, and"
          " --log-level debug, info, warn, error or fatal.")


def after_first_spin(node: Node, start: Callable[[], None]) -> None:
    """Call start() as soon as the node spins.

    Open files and start threads there: if the node is interrupted in its constructor, nothing would close them.
    """
    def first() -> None:
        node.destroy_timer(timer)
        start()

    timer = node.create_timer(0.0, first, clock=Clock(clock_type=ClockType.STEADY_TIME))


def run(make_node: Callable[[], Node], cleanup_s: float = _CLEANUP_S) -> int:
    """Spin a node until a signal, or until its `done` future (if it has one) is done.

    Nodes clean up in `destroy_node`; signals are ignored meanwhile, since the process is about to end. If the clean-up
    takes more than cleanup_s seconds, the process prints where each thread stands and ends with code 1.

    Returns:
        The exit code: 0; 2 on bad input, after a sentence on stderr; 130 on SIGINT before the node spins.
    """
    node = executor = None
    being_made, was_interrupted = True, False

    def interrupted(*_: object) -> None:
        # Once the node spins, rclpy's handler ends it by shutting down its context. The interrupt may come later, from
        # another thread: raised during the clean-up below, it would leave threads of the node running.
        nonlocal was_interrupted
        was_interrupted = True
        if being_made:
            raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGINT, interrupted)       # rclpy's handler calls it
        _init()
        node = make_node()
        being_made = False
        done: Future = getattr(node, "done", None) or Future()
        executor = Executor()
        rclpy.spin_until_future_complete(node, done, executor)
        if done.done():
            done.result()
        return 0
    except (KeyboardInterrupt, ExternalShutdownException):
        return INTERRUPTED if being_made else 0
    except (UserError, ParameterException, NameValidationException) as error:
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception:
        # If a signal shuts down the context during start-up, the constructor may raise anything: that is no error.
        if rclpy.ok():
            raise
        return INTERRUPTED if being_made and was_interrupted else 0
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)   # the clean-up below is short and must not be interrupted
        with _ended_after(cleanup_s):
            if node is not None:
                node.destroy_node()
            if executor is not None:
                executor.shutdown()     # now: the garbage collector might do it after the context is gone
            rclpy.try_shutdown()


@contextmanager
def _ended_after(limit_s: float) -> Iterator[None]:
    """End the process if the block takes longer: Fast DDS 3.2 was seen to hang while a node is destroyed, with the GIL
    held, so that nothing written in Python could end it."""
    faulthandler.dump_traceback_later(limit_s, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _init() -> None:
    """Initialize rclpy, with a transport for large images. Raises UserError if the command line does not allow it."""
    os.environ.update(ros_environment())
    try:
        rclpy.init()
    except RuntimeError as error:       # rclpy's own errors
        reason = re.sub(r", at \S+:\d+", "", str(error)).removeprefix("failed to initialize rcl: ").rstrip(".")
        if type(error).__name__ == "UnknownROSArgsError":
            reason = f"unknown arguments {reason}"
        raise UserError(f"ROS 2 cannot be started: {reason}. {_USAGE}") from None
    unknown = remove_ros_args(sys.argv)[1:]
    if unknown:
        raise UserError(f"Unknown arguments: {' '.join(unknown)}. {_USAGE}")
