"""Runs one node as a process: clean exit on SIGINT and SIGTERM, one sentence and exit code 2 on bad input."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.task import Future

from aceg_ros.errors import UserError
from aceg_ros.ros.executor import Executor

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(make_node: Callable[[], Node]) -> int:
    """Spin until a signal, or until the node's `done` future (where it has one). Returns the exit code.

    A node with something to finish does that in `destroy_node`.
    """
    node = None
    being_made = True

    def interrupted(*_: object) -> None:
        # Once the node spins, nothing is raised: within the clean-up below that would leave a node with its threads
        # alive. A thread of rclpy first wakes the executor and then ends its context: between the two, an executor
        # would find nothing to do and wait again, for ever. Python calls this before it goes on after the waking.
        if being_made:
            raise KeyboardInterrupt
        while rclpy.ok():
            time.sleep(0.001)

    try:
        for number in _SIGNALS:
            signal.signal(number, interrupted)      # rclpy's handler calls it
        rclpy.init()
        node = make_node()
        being_made = False
        done: Future = getattr(node, "done", None) or Future()
        rclpy.spin_until_future_complete(node, done, Executor())
        if done.done():
            done.result()
        return 0
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    except (UserError, ParameterException) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except Exception:
        # A signal during start-up ends the context under the constructor's feet: whatever that raises is no fault.
        if rclpy.ok():
            raise
        return 0
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)   # the clean-up below is short and must not be cut in two
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
