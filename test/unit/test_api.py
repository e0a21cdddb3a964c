# SPDX-License-Identifier: Apache-2.0
"""The Python API: what `import aceg_ros` offers, and the script of the README."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import aceg_ros as ag
from aceg_ros.datasets import load_image, write_ace_scene


@pytest.fixture(scope="module")
def localizer(rendered_map: Path) -> ag.Localizer:
    return ag.Localizer.load(rendered_map)


@pytest.fixture(scope="module")
def query(rendered_scene: Path) -> Path:
    return sorted((rendered_scene / "query" / "rgb").iterdir())[3]


@pytest.fixture(scope="module")
def recording(rendered_scene: Path, made_once) -> Path:
    """Every third image of the rendered mapping drive: enough for a map, made in seconds."""
    return made_once("short_recording", lambda folder: write_ace_scene(
        folder, ag.open_scene(rendered_scene / "mapping", every=3)))


def run_python(code: str, folder: Path) -> str:
    """Output of a script in a process of its own."""
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_loads_nothing_heavy(tmp_path):
    code = "import sys, aceg_ros; print(sorted({'cv2', 'matplotlib', 'scipy', 'torch'} & set(sys.modules)))"
    assert run_python(code, tmp_path).strip() == "[]"


def test_every_public_name_is_there_and_documented():
    assert set(ag.__all__) <= set(dir(ag))
    for name in ag.__all__:
        assert getattr(ag, name).__doc__, name
    with pytest.raises(AttributeError, match="build_mop"):
        _ = ag.build_mop


@pytest.mark.slow
def test_the_script_of_the_readme_runs(repository, recording, query, tmp_path):
    script, = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    assert len(script.strip().splitlines()) <= 14
    (tmp_path / "recording").symlink_to(recording)
    (tmp_path / "photo.jpg").symlink_to(query)
    output = run_python(script, tmp_path)
    assert (tmp_path / "lab.map").stat().st_size > 100_000
    assert output.count("[") >= 10, output                  # the rows of a 4x4 and of a 6x6 matrix


@pytest.mark.slow
def test_the_example_maps_and_localizes(repository, recording, query, tmp_path):
    result = subprocess.run([sys.executable, str(repository / "examples" / "map_and_localize.py"),
                             str(recording), "room.map", str(query)], cwd=tmp_path,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"{query} is at" in result.stdout


def test_a_file_an_array_and_a_frame_are_the_same_image(localizer, rendered_map, query):
    pixels = load_image(query)
    camera, = ag.SceneMap.load(rendered_map).cameras
    of_file = localizer.localize(query)
    assert of_file.accepted
    for estimate in (localizer.localize(str(query)), localizer.localize(pixels), localizer.localize(pixels, camera),
                     localizer.localize(ag.Frame(image=pixels, camera=camera))):
        assert np.array_equal(estimate.map_from_camera, of_file.map_from_camera)
        assert np.array_equal(estimate.covariance, of_file.covariance)


def test_an_image_of_unknown_size_needs_a_camera(localizer, query):
    pixels = load_image(query)[:400]
    with pytest.raises(ag.UserError, match=r"no camera of 640x400 \(its images: 640x480\)"):
        localizer.localize(pixels)
    camera = ag.Camera(width=640, height=400, fx=525.0, fy=520.0, cx=318.0, cy=242.0)
    assert localizer.localize(pixels, camera).accepted


def test_what_cannot_be_localized_is_a_rejection_or_a_sentence(localizer, tmp_path):
    estimate = localizer.localize(np.zeros((480, 640, 3), np.uint8))
    assert estimate.status is ag.Status.BAD_IMAGE and estimate.map_from_camera is None
    with pytest.raises(ag.UserError, match="nothing.jpg"):
        localizer.localize(tmp_path / "nothing.jpg")


@pytest.mark.slow
def test_a_recording_and_its_frames_make_the_same_map(recording):
    reports = []
    of_folder = ag.build_map(recording, codes=500, progress=reports.append)
    of_frames = ag.build_map(list(ag.open_scene(recording)), codes=500)
    for key, value in of_folder.sections["landmarks"].items():
        assert value.equal(of_frames.sections["landmarks"][key]), key
    assert len(of_folder.sections["landmarks"]["points"]) == 500
    assert of_folder.statistics.frames == 16
    assert reports[-1].fraction == 1.0


def test_several_recordings_make_one_map(recording, tmp_path):
    frames = list(ag.open_scene(recording))
    write_ace_scene(tmp_path / "first", frames[::2])
    write_ace_scene(tmp_path / "second", frames[1::2])
    both = ag.build_map([tmp_path / "first", tmp_path / "second"])
    alone = ag.build_map(tmp_path / "first")
    assert both.statistics.frames == 16 and alone.statistics.frames == 8
    assert len(both.sections["database"]["points"]) > 1.5 * len(alone.sections["database"]["points"])


def test_a_methods_own_options_are_checked(recording):
    with pytest.raises(ag.UserError, match="codes is of method ace_g"):
        ag.build_map(recording, method="ace", codes=500)
    with pytest.raises(ag.UserError, match="colour"):
        ag.build_map(recording, colour="red")


def test_skipped_frames_are_counted_and_logged(recording, caplog):
    frames = list(ag.open_scene(recording))
    grey = ag.Frame(image=np.zeros_like(frames[0].image), camera=frames[0].camera, name="the grey one",
                    map_from_camera=frames[0].map_from_camera)
    scene_map = ag.build_map([*frames, grey], codes=500)
    assert scene_map.statistics.skipped == 1
    assert any("the grey one" in record.message for record in caplog.records)


def test_unreadable_files_are_counted_too(recording, tmp_path, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(recording, copy)
    damaged = sorted((copy / "rgb").iterdir())[2]
    damaged.write_bytes(b"no image")
    assert ag.build_map(copy, codes=500).statistics.skipped == 1
    assert any(damaged.name in record.message for record in caplog.records)
