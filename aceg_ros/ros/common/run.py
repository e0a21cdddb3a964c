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

    Open files and start threads there: if the node is interrupted in its constructor, nothing would close them.
    """
    def first() -> None:
        node.destroy_timer(timer)
        start()

    timer = node.create_timer(0.0, first, clock=Clock(clock_type=ClockType.STEADY_TIME))


def run(make_node: Callable[[], Node]) -> int:
    """Spin a node until a signal, or until its `done` future (if it has one) is done. Returns the exit code.

    Nodes clean up in `destroy_node`; signals are ignored meanwhile, since the process is about to end.
    """
    node = executor = None
    being_made = True

    def interrupted(*_: object) -> None:
        # Once the node spins, rclpy's handler ends it by shutting down its context. The interrupt may come later, from
        # another thread: raised during the clean-up below, it would leave threads of the node running.
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
        # If a signal shuts down the context during start-up, the constructor may raise anything: that is no error.
        if rclpy.ok():
            raise
        return 0
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)   # the clean-up below is short and must not be interrupted
        if node is not None:
            node.destroy_node()
        if executor is not None:
            executor.shutdown()     # now: the garbage collector might do it after the context is gone
        rclpy.try_shutdown()
