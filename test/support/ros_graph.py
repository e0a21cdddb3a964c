# SPDX-License-Identifier: Apache-2.0
"""A ROS graph of its own for one test: processes under test, and a node of the test that talks to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.parameter_client import AsyncParameterClient
from ros_domain import reserve_domain

REPOSITORY = Path(__file__).resolve().parents[2]


class RosGraph:
    """Use as a context manager: on exit every process that is still there is killed."""

    def __init__(self, log_folder: Path) -> None:
        self._lock, self.domain_id = reserve_domain()
        self._log_folder = log_folder
        self._processes: list[subprocess.Popen] = []

    def __enter__(self) -> RosGraph:
        os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        self.context = Context()
        rclpy.init(context=self.context, domain_id=self.domain_id)
        self.node = Node("test", context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        return self

    def __exit__(self, *_) -> None:
        running = [process for process in self._processes if process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:       # a killed process leaves its shared memory behind
                process.kill()
                process.wait()
        self._executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()
        os.close(self._lock)

    def environment(self) -> dict[str, str]:
        paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        return os.environ | {"ROS_DOMAIN_ID": str(self.domain_id), "ROS_LOG_DIR": str(self._log_folder),
                             "ROS_HOME": str(self._log_folder / "ros_home"),
                             "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1",
                             "PYTHONFAULTHANDLER": "1"}

    def start(self, program: str | Path, *remappings: str, **parameters) -> subprocess.Popen:
        """Start a module (a.b.c) or a script as a node; its output is in output(process)."""
        arguments = [f"{name}:={_yaml(value)}" for name, value in parameters.items()]
        flags = [flag for argument in arguments for flag in ("-p", argument)]
        flags += [flag for remapping in remappings for flag in ("-r", remapping)]
        command = [sys.executable, *([str(program)] if isinstance(program, Path) else ["-m", program])]
        return self.start_command(*command, "--ros-args", *flags)

    def start_aceg(self, verb: str, *arguments: object) -> subprocess.Popen:
        """Start a verb of the command line."""
        return self.start_command(sys.executable, "-m", "aceg_ros.cli", verb, *map(str, arguments))

    def start_command(self, *command: str) -> subprocess.Popen:
        log = self._log_folder / f"process_{len(self._processes)}.log"
        with open(log, "w") as file:
            process = subprocess.Popen(command, env=self.environment(), stdout=file,
                                       stderr=subprocess.STDOUT, cwd=self._log_folder)
        process.log = log
        self._processes.append(process)
        return process

    def spin_until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
        """Handle messages until the condition holds; returns whether it does.

        A condition on the last of the messages received does not hold while there is none (IndexError).
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if condition():
                    return True
            except IndexError:
                pass
            if time.monotonic() > deadline:
                return False
            self._executor.spin_once(timeout_sec=0.02)

    def spin(self, duration_s: float) -> None:
        self.spin_until(lambda: False, duration_s)

    def call(self, kind: type, name: str, request=None, timeout_s: float = 60.0):
        """The response of a service."""
        client = self.node.create_client(kind, name)
        assert self.spin_until(client.service_is_ready), f"there is no service {name}"
        future = client.call_async(request or kind.Request())
        assert self.spin_until(future.done, timeout_s), f"{name} did not answer"
        return future.result()

    def set_parameter(self, node_name: str, name: str, value) -> tuple[bool, str]:
        client = AsyncParameterClient(self.node, node_name)
        assert self.spin_until(client.services_are_ready)
        future = client.set_parameters([Parameter(name, value=value)])
        assert self.spin_until(future.done)
        result = future.result().results[0]
        return result.successful, result.reason

    def get_parameter(self, node_name: str, name: str):
        client = AsyncParameterClient(self.node, node_name)
        assert self.spin_until(client.services_are_ready)
        future = client.get_parameters([name])
        assert self.spin_until(future.done)
        return parameter_value_to_python(future.result().values[0])


def output(process: subprocess.Popen) -> str:
    return process.log.read_text()


def stop(process: subprocess.Popen, number: int = signal.SIGINT) -> int:
    """Send a signal; returns the exit code. A process that does not end is made to tell where it stands."""
    process.send_signal(number)
    try:
        return process.wait(60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        process.wait()
        raise AssertionError(f"{process.args} did not end:\n{output(process)}") from None


def _yaml(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
