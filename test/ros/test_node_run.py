# SPDX-License-Identifier: Apache-2.0
"""How the process of a node ends."""

import os
import signal
import sys

import pytest
from node_bench import FAKE_NODE
from ros_graph import RosGraph, output, stop

LATE = """
import os, signal, sys
from rclpy.node import Node
from rclpy.task import Future
from aceg_ros.ros.common import run

set_handler = signal.signal

def interrupted_before(number, handler):
    if handler is signal.SIG_IGN and number == signal.SIGINT:
        os.kill(os.getpid(), signal.SIGINT)
    return set_handler(number, handler)

class Careful(Node):
    def __init__(self):
        super().__init__("careful")
        self.done = Future()
        self.create_timer(0.1, lambda: self.done.set_result(None))
        signal.signal = interrupted_before

    def destroy_node(self):
        print("cleaned up")
        super().destroy_node()

sys.exit(run.run(Careful))
"""


def test_an_interrupt_that_comes_late_does_not_cut_the_clean_up(tmp_path):
    """rclpy ends the spinning in one thread, Python hears of the signal in another: the second may be the later one."""
    (tmp_path / "late.py").write_text(LATE)
    with RosGraph(tmp_path) as graph:
        process = graph.start(tmp_path / "late.py")
        assert process.wait(60) == 0, output(process)
        assert "cleaned up" in output(process) and "Traceback" not in output(process)


# rclpy's handling of a signal, with the moment between its two steps made long: wake the executors, end the context.
SLOWLY_ENDED = """
import os, signal, sys, threading, time
import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerGuardCondition, SignalHandlerOptions
from aceg_ros.ros.common import run

guards = []

def make_guard(self, context=None):
    init_guard(self, context)
    guards.append(self)

def handle_signals():
    os.read(heard, 1)
    for guard in guards:
        guard.trigger()
    time.sleep(0.1)
    context = rclpy.get_default_context()
    with context.handle:
        context.handle.shutdown()

init_guard, SignalHandlerGuardCondition.__init__ = SignalHandlerGuardCondition.__init__, make_guard
init, rclpy.init = rclpy.init, lambda: init(signal_handler_options=SignalHandlerOptions.NO)
heard, told = os.pipe()
os.set_blocking(told, False)
signal.set_wakeup_fd(told)
signal.signal(signal.SIGTERM, lambda *_: None)
threading.Thread(target=handle_signals, daemon=True).start()

class Careful(Node):
    def __init__(self):
        super().__init__("careful")
        self.create_timer(0.1, self._start)

    def _start(self):
        self.destroy_timer(next(self.timers))
        print("spinning", flush=True)

    def destroy_node(self):
        print("cleaned up")
        super().destroy_node()

sys.exit(run.run(Careful))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_executor_that_is_quicker_than_the_end_of_its_context_does_not_wait_for_ever(tmp_path, number):
    (tmp_path / "slowly.py").write_text(SLOWLY_ENDED)
    with RosGraph(tmp_path) as graph:
        process = graph.start(tmp_path / "slowly.py")
        assert graph.spin_until(lambda: "spinning" in output(process)), output(process)
        graph.spin(0.5)
        assert stop(process, number) == 0, output(process)
        assert "cleaned up" in output(process) and "Traceback" not in output(process)


@pytest.mark.parametrize(("arguments", "words"), [
    (("--ros-args", "--params-file", "/missing.yaml"), ("cannot be started", "/missing.yaml")),
    (("--ros-args", "--log-level", "verbose"), ("cannot be started", "verbose", "debug, info, warn")),
    (("--ros-args", "--frobnicate"), ("unknown arguments", "--frobnicate")),
    (("--map", "hall.map"), ("Unknown arguments: --map hall.map", "-p PARAMETER:=VALUE"))])
def test_a_command_line_that_ros_does_not_take_is_one_sentence(graph, arguments, words):
    process = graph.start_command(sys.executable, str(FAKE_NODE), *arguments)
    assert process.wait(60) == 2, output(process)
    errors = [line for line in output(process).splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and all(word in errors[0] for word in words), output(process)
    assert "Traceback" not in output(process)


def test_an_interrupt_while_torch_is_imported_ends_the_process_without_a_traceback(graph, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    process = graph.start("aceg_ros.ros.localizer_node")
    assert graph.spin_until(lambda: "importing" in output(process)), output(process)
    assert stop(process) == 130
    assert output(process) == "importing\n"


HANGING = """
import ctypes, sys
from rclpy.node import Node
from rclpy.task import Future
from aceg_ros.ros.common import run

class Hanging(Node):
    def __init__(self):
        super().__init__("hanging")
        self.done = Future()
        self.create_timer(0.1, lambda: self.done.set_result(None))

    def destroy_node(self):
        print("destroying", flush=True)
        ctypes.PyDLL(None).sleep(600)           # with the GIL held

sys.exit(run.run(Hanging, cleanup_s=1.0))
"""


def test_a_clean_up_that_hangs_in_a_library_ends_the_process_with_its_stacks(tmp_path):
    (tmp_path / "hanging.py").write_text(HANGING)
    with RosGraph(tmp_path) as graph:
        process = graph.start(tmp_path / "hanging.py")
        assert process.wait(60) == 1, output(process)
        assert "destroying" in output(process) and "in destroy_node" in output(process)


INTERRUPTED = """
import os, signal, sys
from rclpy.node import Node
from aceg_ros.ros.common import run

class Slow(Node):
    def __init__(self):
        super().__init__("slow")
        print(os.environ["FASTDDS_DEFAULT_PROFILES_FILE"], flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            self.create_timer(1000.0, lambda: None)

del os.environ["FASTDDS_DEFAULT_PROFILES_FILE"]
sys.exit(run.run(Slow))
"""


def test_an_interrupt_in_a_constructor_and_the_profile_of_fast_dds(tmp_path, repository):
    """Without a profile of the user's, the process sets the package's own before rclpy is initialized."""
    (tmp_path / "slow.py").write_text(INTERRUPTED)
    with RosGraph(tmp_path) as graph:
        process = graph.start(tmp_path / "slow.py")
        assert process.wait(60) == 130, output(process)
        assert output(process) == f"{repository / 'config' / 'fastdds_profile.xml'}\n"
