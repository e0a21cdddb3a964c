"""`pip install .` into an environment with nothing in it brings all that the core needs; ROS stays outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("bare_install")        # one worker makes it, and the others need not wait


@pytest.fixture(scope="module")
def bin_folder(copy_sources, made_once) -> Path:
    """Programs of a virtual environment into which this checkout was installed by pip."""
    def make(folder: Path) -> None:
        copy_sources(folder / "source")
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        # The torch that everything here runs with: another one would be gigabytes of CUDA.
        subprocess.run([str(folder / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet",
                        "--no-compile", "--disable-pip-version-check", f"torch=={version('torch').split('+')[0]}",
                        str(folder / "source")], check=True)

    return made_once("bare_install", make) / "venv" / "bin"


@pytest.fixture
def run(bin_folder, tmp_path):
    def run(program: str, *arguments: object) -> str:
        keep = ("HOME", "LANG", "PATH", "OMP_NUM_THREADS")              # nothing of this checkout, nothing of ROS
        result = subprocess.run([str(bin_folder / program), *map(str, arguments)], cwd=tmp_path, capture_output=True,
                                text=True, env={name: os.environ[name] for name in keep if name in os.environ})
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def test_maps_localizes_and_evaluates(run, rendered_scene, tmp_path):
    assert run("python", "-c", "import importlib.util as u; print(u.find_spec('rclpy'))").strip() == "None"
    run("aceg", "map", rendered_scene / "mapping", "-o", "room.map", "--budget", 100)
    image = sorted((rendered_scene / "query" / "rgb").iterdir())[0]
    assert "inliers" in run("aceg", "localize", "room.map", image)
    run("aceg", "evaluate", "room.map", rendered_scene / "query", "--json", "result.json", "--report", "report")
    assert json.loads((tmp_path / "result.json").read_text())["localized"] >= 10
    assert (tmp_path / "report" / "report.html").is_file()


def test_the_package_is_typed_and_brings_its_weights(run):
    code = ("import aceg_ros, pathlib; folder = pathlib.Path(aceg_ros.__file__).parent; "
            "print((folder / 'py.typed').is_file(), *sorted(p.name for p in folder.glob('weights/*.safetensors')))")
    assert run("python", "-c", code).split() == ["True", "ace_g.safetensors", "compact.safetensors"]


def test_the_python_script_runs(run, repository, rendered_scene):
    image = sorted((rendered_scene / "query" / "rgb").iterdir())[0]
    script = repository / "examples" / "map_and_localize.py"
    output = run("python", script, rendered_scene / "mapping", "room.map", image)
    assert "is at" in output
