# SPDX-License-Identifier: Apache-2.0
"""The HTML page of an evaluation: complete, offline, and every number in it that of the JSON."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from aceg_ros.camera import Camera, Frame
from aceg_ros.cli import main
from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.evaluation.evaluate import Evaluation, report_json
from aceg_ros.evaluation.html_page import write_page
from aceg_ros.evaluation.metrics import FrameResult, summarize
from aceg_ros.maps.header import NetworkReference
from aceg_ros.maps.scene_map import SceneMap, display_sections
from aceg_ros.utils.atomic_file import write_json

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=10000")


def embedded(page: Path) -> dict:
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text)


def rendered(page: Path, profile: Path) -> str:
    """The document as a real browser has it after the scripts ran."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    return subprocess.run([CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()],
                          capture_output=True, text=True, timeout=120, check=True).stdout


def results(count: int) -> list[FrameResult]:
    """A drive along a circle; every seventh frame is rejected."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(count):
        truth = np.eye(4)
        truth[:2, 3] = 3 * np.cos(0.01 * index), 2 * np.sin(0.01 * index)
        pose = truth.copy()
        pose[:3, 3] += rng.normal(0, 0.01, 3)
        if index % 7:
            estimate = PoseEstimate(status=Status.ACCEPTED, message="Found.", map_from_camera=pose, inliers=200,
                                    covariance=np.eye(6) * 1e-4, inlier_ratio=0.5, reprojection_rms_px=2.0)
        else:
            estimate = PoseEstimate(status=Status.NO_CONSENSUS, message="Nothing fits </script><b>.")
        made.append(FrameResult(name=f"{index:06d}", stamp_s=0.1 * index, truth=truth, estimate=estimate,
                                latency_ms=40.0))
    return made


def run_of(made: list[FrameResult], tmp_path: Path, name: str) -> Evaluation:
    rng = np.random.default_rng(1)
    sections = display_sections(rng.uniform(-4, 4, (40_000, 3)), rng.integers(0, 255, (40_000, 3), np.uint8),
                                np.tile(np.eye(4), (50, 1, 1)))
    scene_map = SceneMap(method="ace_g", networks={"encoder": NetworkReference(source="compact", identity="compact:1")},
                         sections=sections, covariance_scale=1.25)
    path = tmp_path / f"{name}.map"
    scene_map.save(path)
    statistics = report_json(summarize(made), scene_map, path=path, device="cpu", seed=0)
    return Evaluation(name=name, results=made, scene_map=scene_map, statistics=statistics)


def frames_of(made: list[FrameResult]) -> list[Frame]:
    camera = Camera(width=96, height=64, fx=90.0, fy=91.0, cx=47.0, cy=31.0)
    return [Frame(image=np.full((64, 96, 3), 90, np.uint8), camera=camera, stamp_s=r.stamp_s, map_from_camera=r.truth,
                  name=r.name) for r in made]


def test_the_report_of_a_drive_has_the_numbers_of_the_json(rendered_map, rendered_scene, tmp_path, capsys):
    assert main(["evaluate", str(rendered_map), str(rendered_scene / "query"), "--report", str(tmp_path / "r")]) == 0
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    page = tmp_path / "r" / "report.html"
    data = embedded(page)
    (run,) = data["runs"]
    assert run["summary"] == summary
    assert len(run["frames"]) == 12 and run["cloud"]["count"] > 1000
    assert len(run["images"]) == 12             # each with its keyframes
    assert not re.findall(r'(?:src|href)\s*=\s*"?https?:', page.read_text()), "it opens offline"


@pytest.mark.parametrize("count", [30, 1000])
def test_a_browser_shows_every_number_of_the_json(tmp_path, count):
    made = results(count)
    runs = [run_of(made, tmp_path, "first"), run_of(results(count), tmp_path, "second")]
    page = tmp_path / "report.html"
    write_page(page, runs, "hall/query", frames_of(made))
    assert page.stat().st_size < 1_600_000
    shown = rendered(page, tmp_path / "profile")
    assert 'data-ready="true"' in shown, "the scripts ran to their end"
    cells = {key: json.loads(html.unescape(value)) for key, value in
             re.findall(r'data-key="summary\.0\.([^"]*)" data-value="([^"]*)"', shown)}

    def check(content, prefix=""):
        for name, value in content.items():
            if isinstance(value, dict) and value:
                check(value, f"{prefix}{name}.")
            elif not isinstance(value, dict):
                assert cells[f"{prefix}{name}"] == value, name

    check(runs[0].statistics)
    assert shown.count("<circle") > count, "the charts are drawn"
    assert shown.count("<tr") > 2 * count and "Nothing fits &lt;/script&gt;&lt;b&gt;." in shown


def test_a_drive_without_a_single_pose_has_a_page_too(tmp_path):
    made = [r for r in results(60) if not r.estimate.accepted]
    run = run_of(made, tmp_path, "lost")
    write_json(run.statistics, tmp_path / "summary.json")
    write_page(tmp_path / "report.html", [run], "hall", frames_of(made))
    assert embedded(tmp_path / "report.html")["runs"][0]["summary"]["median_translation_m"] is None
    assert 'data-ready="true"' in rendered(tmp_path / "report.html", tmp_path / "profile")
