# SPDX-License-Identifier: Apache-2.0
"""`make gpu-check`: on a CPU, whether its checks run, and whether one that fails stops the others."""

import json
import subprocess
import sys

from aceg_ros.benchmarks import gpu_check
from aceg_ros.benchmarks.gpu.session import Outcome, Session


def failing(session):
    raise RuntimeError("tensors on two devices")


def test_a_check_that_raises_is_reported_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "CHECKS", {
        "first": failing, "second": lambda session: Outcome(results={"ms": {"p50": float("nan")}}, problems=["slow"]),
        "third": lambda session: Outcome(results={"images": 3})})
    assert gpu_check.main(["-o", str(tmp_path), "--device", "cpu"]) == 1
    content = json.loads((tmp_path / "gpu_check.json").read_text())
    first, second, third = content["checks"]
    assert [check["status"] for check in (first, second, third)] == ["failed", "different", "passed"]
    assert "tensors on two devices" in first["traceback"] and second["results"] == {"ms": {"p50": None}}
    page = (tmp_path / "gpu_check.md").read_text()
    assert "| first | failed |" in page and "- images: 3" in page and "Traceback" in page
    assert "not as expected: first, second" in capsys.readouterr().out
    assert gpu_check.main(["-o", str(tmp_path), "--device", "cpu", "--only", "third"]) == 0


def test_no_check_begins_when_the_time_is_over(tmp_path):
    reports = gpu_check.run_checks(Session("cpu", tmp_path, quick=True), ["renderer"], seconds=-1.0)
    assert reports == []


def test_the_room_is_rendered_mapped_and_localized_in(tmp_path):
    names = ["renderer", "mapping", "localization", "priors"]
    reports = gpu_check.run_checks(Session("cpu", tmp_path, quick=True), names)
    assert [(report.name, report.status) for report in reports] == [(name, "passed") for name in names]
    assert reports[2].results["difference_to_cpu"]["max_m"] == 0.0
    assert reports[2].results["localized"] == reports[2].results["images"] == 6


def test_neither_the_check_nor_localizing_needs_what_reads_bags():
    code = "import sys, aceg_ros.benchmarks.gpu_check; print('rosbags' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
