"""How the process of a node ends."""

from ros_graph import RosGraph, output

LATE = """
import os, signal, sys
from rclpy.node import Node
from rclpy.task import Future
from aceg_ros.ros import run

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
