# SPDX-License-Identifier: Apache-2.0
"""Runs every part that computes on a GPU once, compares it with the CPU, and measures times and memory.

    python -m aceg_ros.benchmarks.gpu_check -o DIR [--device cuda] [--seconds S] [--only NAME ...] [--quick]

Everything is rendered; no data and no network are needed. DIR/gpu_check.md and gpu_check.json are written after each
check, the most important ones first. A check that raises is reported with its traceback, and the others go on; the exit
status is then 1. --device cpu and --quick try the checks themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aceg_ros.benchmarks.gpu.encoders import (
    check_compiled_encoder,
    check_encoder_speed,
    check_encoders,
    check_renderer,
)
from aceg_ros.benchmarks.gpu.localizing import (
    check_graphed_encoder,
    check_localization,
    check_mapping,
    check_mapping_on_cpu,
    check_priors,
    check_rigs,
    check_throughput,
    check_where_time_goes,
)
from aceg_ros.benchmarks.gpu.methods import (
    check_cross_image_regressor,
    check_landmark_regressor,
    check_matched_relative_poses,
    check_pose_transformer,
    check_published_regressor,
    check_relative_pose_networks,
    check_trained_head,
)
from aceg_ros.benchmarks.gpu.session import Outcome, Session
from aceg_ros.benchmarks.gpu.training import (
    check_cross_image_training,
    check_encoder_training,
    check_pose_transformer_training,
    check_regressor_training,
)
from aceg_ros.utils.atomic_file import without_nan, write_json, write_text
from aceg_ros.utils.device import pick_device
from aceg_ros.utils.malloc import configure_malloc

PASSED, DIFFERENT, FAILED = "passed", "different", "failed"
CHECKS: dict[str, Callable[[Session], Outcome]] = {
    "renderer": check_renderer, "encoders": check_encoders, "mapping": check_mapping,
    "localization": check_localization, "encoder speed": check_encoder_speed,
    "encoder training": check_encoder_training, "where time goes": check_where_time_goes, "priors": check_priors,
    "rigs": check_rigs, "encoder as a CUDA graph": check_graphed_encoder, "threads": check_throughput,
    "cross-image regressor": check_cross_image_regressor, "matched relative poses": check_matched_relative_poses,
    "relative pose networks": check_relative_pose_networks, "trained head": check_trained_head,
    "pose transformer": check_pose_transformer, "landmark regressor": check_landmark_regressor,
    "published regressor": check_published_regressor,
    "regressor training": check_regressor_training, "cross-image training": check_cross_image_training,
    "pose transformer training": check_pose_transformer_training,
    "mapping on the CPU": check_mapping_on_cpu, "compiled encoder": check_compiled_encoder}


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """How a check went. seconds: it took. gpu_mb: greatest memory that tensors took on the GPU, MB."""

    name: str
    status: str
    seconds: float
    gpu_mb: float | None = None
    problems: Sequence[str] = ()
    results: dict[str, Any] = field(default_factory=dict)
    traceback: str = ""


def run_checks(session: Session, names: Sequence[str], seconds: float | None = None) -> list[CheckReport]:
    """Run checks in turn, and write the report after each. seconds: no check begins later than that."""
    started, reports = time.monotonic(), []
    session.output.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        if seconds is not None and time.monotonic() - started > seconds:
            print(f"no time for: {', '.join(names[number:])}", flush=True)
            break
        reports.append(_run(session, name))
        _write(session, reports, list(names[number + 1:]))
        print("\n".join(_told(reports[-1])), flush=True)
    return reports


def _run(session: Session, name: str) -> CheckReport:
    started, on_gpu = time.monotonic(), session.device == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def report(status: str, **given: Any) -> CheckReport:
        memory = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else None
        return CheckReport(name=name, status=status, seconds=time.monotonic() - started, gpu_mb=memory, **given)

    try:
        outcome = CHECKS[name](session)
        session.synchronize()
    except Exception as error:                      # of any kind: the other checks go on
        return report(FAILED, problems=[f"{type(error).__name__}: {error}".splitlines()[0]],
                      traceback=traceback.format_exc())
    return report(DIFFERENT if outcome.problems else PASSED, problems=list(outcome.problems), results=outcome.results)


def machine() -> dict[str, Any]:
    """Return what the checks run on."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__,
                             "threads": torch.get_num_threads(), "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
                  "cudnn": torch.backends.cudnn.version()}
    return found


def _write(session: Session, reports: Sequence[CheckReport], left: list[str]) -> None:
    content = {"machine": machine(), "device": session.device, "quick": session.quick, "not_run": left,
               "checks": [asdict(report) for report in reports]}
    write_json(without_nan(json.loads(json.dumps(content))), session.output / "gpu_check.json")
    write_text(session.output / "gpu_check.md", _markdown(session, reports, left))


def _markdown(session: Session, reports: Sequence[CheckReport], left: list[str]) -> str:
    about = machine()
    lines = [f"{about.get('gpu', 'no GPU')}, device {session.device}, torch {about['torch']}, Python {about['python']},"
             f" numpy {about['numpy']}, {about['threads']} threads", "",
             "| check | result | s | GPU MB | problems |", "|---|---|---|---|---|"]
    for report in reports:
        memory = "" if report.gpu_mb is None else f"{report.gpu_mb:.0f}"
        lines.append(f"| {report.name} | {report.status} | {report.seconds:.1f} | {memory} |"
                     f" {'; '.join(report.problems)} |")
    if left:
        lines += ["", f"Not run: {', '.join(left)}."]
    for report in reports:
        lines += ["", f"## {report.name}", "", *_told(report)]
    return "\n".join(lines) + "\n"


def _told(report: CheckReport) -> list[str]:
    """Return the results of a check as lines of a list."""
    lines = [f"{report.name}: {report.status}, {report.seconds:.1f} s", ""]
    lines += [f"- {path}: {value}" for path, value in _flat(report.results)]
    if report.traceback:
        lines += ["", "```", report.traceback.rstrip(), "```"]
    return lines


def _flat(results: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each result with its path; a dictionary of numbers is one line."""
    for key, value in results.items():
        name = f"{path}{key}"
        if isinstance(value, dict) and any(isinstance(entry, dict) for entry in value.values()):
            yield from _flat(value, f"{name} / ")
        elif isinstance(value, dict):
            yield name, ", ".join(f"{entry} {_number(number)}" for entry, number in value.items())
        else:
            yield name, _number(value)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the report")
    parser.add_argument("--device", default="cuda", help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="no check begins later than that")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), metavar="NAME",
                        help=f"only these: {', '.join(CHECKS)}")
    parser.add_argument("--quick", action="store_true", help="few images and repeats")
    options = parser.parse_args(arguments)
    configure_malloc()
    session = Session(pick_device(options.device), options.output, quick=options.quick)
    reports = run_checks(session, options.only or list(CHECKS), options.seconds)
    failed = [report.name for report in reports if report.status != PASSED]
    print(f"{len(reports)} checks, not as expected: {', '.join(failed) or 'none'}; {options.output}/gpu_check.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
