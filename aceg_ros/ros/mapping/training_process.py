# SPDX-License-Identifier: Apache-2.0
"""Train a map in a separate process, so that the localizer stays responsive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aceg_ros.utils.child_process import die_with_parent
from aceg_ros.utils.progress import Progress

_NICENESS = 10                  # lower priority than the robot's other programs
_KILL_S = 5.0


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Arguments of `aceg map`, or of `aceg extend`. method: empty for the default. extended: the map to extend, None
    to make one."""

    recording: Path
    output: Path
    method: str = ""
    budget_s: float = 300.0
    device: str = "auto"
    seed: int = 0
    use_depth: bool = False
    extended: Path | None = None


class TrainingProcess:
    """Runs `aceg map` or `aceg extend`. A thread calls on_progress for each report, and on_end(error or None) at the
    end."""

    def __init__(self, config: TrainingConfig, on_progress: Callable[[Progress], None],
                 on_end: Callable[[str | None], None]) -> None:
        self.config = config
        self._on_progress, self._on_end = on_progress, on_end
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._cancelled = False
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Terminate the training; on_end is called."""
        with self._lock:
            self._cancelled = True
            if self._process is not None:
                self._process.terminate()
        self._thread.join(_KILL_S)
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._thread.join(_KILL_S)

    def _run(self) -> None:
        error: str | None
        try:
            error = self._train()
        except Exception as failure:    # of any kind: on_end must be called
            error = f"The training failed: {failure!r}."
        self._on_end("Cancelled." if self._cancelled else error)

    def _train(self) -> str | None:
        """Run the process until it ends. Returns why it failed, or None."""
        with self._lock:
            if self._cancelled:
                return "Cancelled."
            # Started by this thread, which waits for it: `die_with_parent` is tied to the starting thread.
            self._process = subprocess.Popen(command_of(self.config), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                             stderr=subprocess.PIPE, text=True, preexec_fn=_prepare_child)
        process = self._process
        assert process.stdout is not None and process.stderr is not None
        errors: list[str] = []
        reader = threading.Thread(target=errors.extend, args=(process.stderr,), daemon=True)
        reader.start()
        for line in process.stdout:
            if line.startswith("{"):
                known = {key: value for key, value in json.loads(line).items() if value is not None}   # null is NaN
                self._on_progress(Progress(**known))
        code = process.wait()
        reader.join()
        if code == 0:
            return None
        sentences = [line.removeprefix("aceg: ").strip() for line in errors if line.startswith("aceg: ")]
        last = errors[-1].strip() if errors else "no error output"
        return sentences[-1] if sentences else f"The training ended with code {code} ({last})."


def command_of(config: TrainingConfig) -> list[str]:
    """Return the command line of a training."""
    verb = ["map"] if config.extended is None else ["extend", str(config.extended)]
    command = [sys.executable, "-m", "aceg_ros.cli", *verb, str(config.recording), "-o", str(config.output),
               "--json-progress", "--budget", str(config.budget_s), "--device", config.device,
               "--seed", str(config.seed)]
    if config.method and config.extended is None:
        command += ["--method", config.method]
    if config.use_depth:
        command.append("--use-depth")
    return command


def _prepare_child() -> None:
    os.nice(_NICENESS)
    die_with_parent()
