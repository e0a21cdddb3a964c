# SPDX-License-Identifier: Apache-2.0
"""The wheel, installed by pip into an environment with nothing in it, brings all that the core needs, and no ROS.

The wheel is built from the source distribution, so that both are tried.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.xdist_group("bare_install")        # one worker makes it, and the others need not wait


def with_requirements(name: str) -> Iterator[Distribution]:
    """An installed distribution and all that it requires."""
    yield distribution(name)
    for requirement in map(Requirement, distribution(name).requires or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield from with_requirements(requirement.name)


def link_all(source: Path, target: Path) -> None:
    """Hard links of a file, or of all that is in a folder; copies where the target is on another file system."""
    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except FileExistsError:                 # in a folder of several distributions
            pass
        except OSError:
            shutil.copy2(source, target)

    if source.is_dir():
        shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)
    else:
        link(str(source), str(target))


@pytest.fixture(scope="module")
def bin_folder(sdist_and_wheel, made_once) -> Path:
    """Programs of a virtual environment into which this package was installed by pip."""
    _, wheel = sdist_and_wheel

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        site, = (folder / "venv" / "lib").glob("python*/site-packages")
        # The torch that everything here runs with, as hard links: another one would be gigabytes of CUDA.
        for found in with_requirements("torch"):
            if not any(Distribution.discover(name=found.metadata["Name"], path=[str(site)])):
                for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
                    link_all(Path(str(found.locate_file(name))), site / name)
        subprocess.run([str(folder / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile",
                        "--disable-pip-version-check", str(wheel)], check=True)

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


def test_the_package_is_typed_and_brings_its_weights(run, repository):
    code = ("import aceg_ros, pathlib; folder = pathlib.Path(aceg_ros.__file__).parent; "
            "print((folder / 'py.typed').is_file(), *sorted(p.name for p in folder.glob('weights/*.safetensors')))")
    shipped = sorted(path.name for path in (repository / "aceg_ros" / "weights").glob("*.safetensors"))
    assert run("python", "-c", code).split() == ["True", *shipped] and {"ace_g.safetensors",
                                                                       "compact.safetensors"} <= set(shipped)


def test_the_python_script_runs(run, repository, rendered_scene):
    image = sorted((rendered_scene / "query" / "rgb").iterdir())[0]
    script = repository / "examples" / "map_and_localize.py"
    output = run("python", script, rendered_scene / "mapping", "room.map", image)
    assert "is at" in output
