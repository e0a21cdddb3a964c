"""Run one node as a process: clean exit on SIGINT and SIGTERM, one sentence and exit code 2 on bad input."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.task import Future

from aceg_ros.errors import UserError
from aceg_ros.ros.common.executor import Executor


def after_first_spin(node: Node, start: Callable[[], None]) -> None:
    """Call start() as soon as the node spins.

    For what must be ended, a file or a thread: it would not be ended if the node was interrupted in its constructor.
    """
    def first() -> None:
        node.destroy_timer(timer)
        start()

    timer = node.create_timer(0.0, first, clock=Clock(clock_type=ClockType.STEADY_TIME))


def run(make_node: Callable[[], Node]) -> int:
    """Spin until a signal, or until the node's `done` future (if it has one). Returns the exit code.

    A node with something to finish does that in `destroy_node`. Signals are ignored from then on: the process is about
    to end.
    """
    node = executor = None
    being_made = True

    def interrupted(*_: object) -> None:
        # Once the node spins, rclpy's handler ends it by ending its context. The interrupt may come later than that,
        # out of another thread: raised within the clean-up below, it would leave a node with its threads alive.
        if being_made:
            raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGINT, interrupted)       # rclpy's handler calls it
        rclpy.init()
        node = make_node()
        being_made = False
        done: Future = getattr(node, "done", None) or Future()
        executor = Executor()
        rclpy.spin_until_future_complete(node, done, executor)
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
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)   # the clean-up below is short and must not be cut in two
        if node is not None:
            node.destroy_node()
        if executor is not None:
            executor.shutdown()     # left to the garbage collector, it may outlive what it has to unregister from
        rclpy.try_shutdown()
