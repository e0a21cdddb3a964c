# SPDX-License-Identifier: Apache-2.0
"""Runs the nodes of a demo in their own ROS domain: starts, monitors and reliably ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from aceg_ros.errors import UserError
from aceg_ros.utils.child_process import die_with_parent
from aceg_ros.utils.ros_environment import ros_environment

_STOP_S = 30.0
_START_S = 120.0
_PLAIN_LOG = ("--disable-external-lib-logs",)     # no log files of rcl: stdout already goes to a log file


@dataclass(frozen=True, kw_only=True)
class NodeProcess:
    """A node and the file that it logs into."""

    name: str
    popen: subprocess.Popen
    log: Path

    def lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()

    def last_line(self) -> str:
        """Return the last line of the log, without the logger's prefix."""
        lines = self.lines()
        return lines[-1].split("]: ")[-1].strip() if lines else ""


class Processes:
    """Running nodes; a context manager. Each logs into a file of its own in log_folder."""

    def __init__(self, log_folder: Path) -> None:
        self._folder = log_folder
        self._running: list[NodeProcess] = []
        self._started = 0
        self._environment = os.environ | ros_environment() | {
            "ROS_DOMAIN_ID": os.environ.get("ROS_DOMAIN_ID", str(1 + os.getpid() % 100)),
            "ROS_LOG_DIR": str(log_folder), "ROS_HOME": str(log_folder / "ros_home"), "PYTHONUNBUFFERED": "1"}
        self._environment.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")

    def __enter__(self) -> Processes:
        self._folder.mkdir(parents=True)
        print(f"ROS_DOMAIN_ID={self._environment['ROS_DOMAIN_ID']}", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.popen.kill()
        for process in self._running:
            process.popen.wait()

    def start(self, module: str, parameters: dict[str, object],
              remappings: dict[str, str] | None = None) -> NodeProcess:
        """Start a module of this package as a node."""
        name = module.rsplit(".", 1)[-1]
        self._started += 1
        log = self._folder / f"{self._started}_{name}.log"
        command = [sys.executable, *node_command(module, parameters, remappings)]
        # In its own session, so that Ctrl-C reaches this process only, which then ends the others in order.
        with open(log, "w") as file:
            popen = subprocess.Popen(command, env=self._environment, stdin=subprocess.DEVNULL, stdout=file,
                                     stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=die_with_parent)
        process = NodeProcess(name=name, popen=popen, log=log)
        self._running.append(process)
        return process

    def stop(self, process: NodeProcess) -> None:
        """Ask a process to finish, and wait until it has. Raises UserError if it fails or takes too long."""
        process.popen.send_signal(signal.SIGINT)
        try:
            process.popen.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            raise UserError(f"{process.name} did not end within {_STOP_S:.0f} s.") from None
        self._check(process)

    def wait_for_end(self, process: NodeProcess) -> None:
        """Wait until a process ends by itself, printing its log. Raises UserError if it or another one fails."""
        shown = ""
        while process.popen.poll() is None:
            self._check_others(process)
            if process.last_line() != shown:
                shown = process.last_line()
                print(f"    {shown}", flush=True)
            time.sleep(0.2)
        self._check(process)

    def wait_for_line(self, process: NodeProcess, words: str) -> None:
        """Wait until a process logs these words. Raises UserError if it or another one fails, or takes too long."""
        deadline = time.monotonic() + _START_S
        while not any(words in line for line in process.lines()):
            self._check_others(None)
            if time.monotonic() > deadline or "[ERROR]" in process.log.read_text():
                raise UserError(f"{process.name} did not get ready: {process.last_line()}")
            time.sleep(0.1)

    def _check_others(self, process: NodeProcess | None) -> None:
        for other in self._running:
            if other is not process and other.popen.poll() is not None:
                self._check(other)
                raise UserError(f"{other.name} ended too early: {other.last_line()}")

    def _check(self, process: NodeProcess) -> None:
        """Take an ended process off the list. Raises UserError with its last error if it failed."""
        self._running.remove(process)
        if process.popen.returncode != 0:
            errors = [line.removeprefix("Error: ") for line in process.lines() if line.startswith("Error: ")]
            reason = errors[-1] if errors else process.last_line() or f"exit code {process.popen.returncode}"
            raise UserError(f"{process.name} failed: {reason}")


def node_command(module: str, parameters: dict[str, object], remappings: dict[str, str] | None = None) -> list[str]:
    """Return the arguments of python that run a module as a node."""
    flags = [flag for key, value in parameters.items() for flag in ("-p", f"{key}:={_yaml(value)}")]
    flags += [flag for key, value in (remappings or {}).items() for flag in ("-r", f"{key}:={value}")]
    return ["-m", module, "--ros-args", *flags, *_PLAIN_LOG]


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str | Path) else str(value)
