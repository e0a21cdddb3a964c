# SPDX-License-Identifier: Apache-2.0
"""The method that docs/adding_a_method.md shows: its very text is registered, maps and localizes."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aceg_ros.cli import main
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods import registry

MAX_LINES = 40
OURS = ["ace_g", "ace", "marepo", "sacreg", "reloc3r"]


@pytest.fixture(scope="module")
def module_folder(repository, tmp_path_factory) -> Path:
    """A folder with nearest_landmark.py, the code block of the document, installed as a package of its own."""
    text = (repository / "docs" / "adding_a_method.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert len(blocks) == 1
    folder = tmp_path_factory.mktemp("package")
    (folder / "nearest_landmark.py").write_text(blocks[0])
    about = folder / "nearest_landmark-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: nearest-landmark\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[aceg_ros.methods]\nnearest_landmark = nearest_landmark:SPEC\n")
    return folder


@pytest.fixture
def registered(module_folder, monkeypatch):
    monkeypatch.syspath_prepend(str(module_folder))
    spec = importlib.import_module("nearest_landmark").SPEC
    if spec.name not in registry.names():
        registry.register(spec)
    yield spec
    registry.unregister(spec.name)
    sys.modules.pop("nearest_landmark")


def test_it_is_small(module_folder):
    _docstring, *code = (module_folder / "nearest_landmark.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in code) <= MAX_LINES


@pytest.mark.slow
def test_it_maps_and_localizes(registered, rendered_scene, tmp_path, capsys):
    path, result = tmp_path / "room.map", tmp_path / "found.json"
    assert main(["map", str(rendered_scene / "mapping"), "-o", str(path), "--method", "nearest_landmark",
                 "--max-landmarks", "9000", "--every", "2", "--budget", "60"]) == 0
    scene_map = SceneMap.load(path)
    assert scene_map.method == "nearest_landmark" and len(scene_map.sections["landmarks"]["points"]) == 9000
    images = sorted(map(str, (rendered_scene / "query" / "rgb").iterdir()))[:2]
    assert main(["localize", str(path), *images]) == 0
    assert main(["evaluate", str(path), str(rendered_scene / "query"), "--json", str(result)]) == 0
    found = json.loads(result.read_text())
    assert found["method"] == "nearest_landmark" and found["false_accepts"] == 0
    assert found["localized"] >= 9 and found["recall"]["0.25m_5deg"] >= 0.7


def test_the_command_line_offers_it(registered, rendered_scene, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["map", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"nearest_landmark ({registered.summary})" in text
    assert "--max-landmarks N of --method nearest_landmark: how many landmarks a map keeps (default: 20000)" in text
    command = ["map", str(rendered_scene / "mapping"), "-o", str(tmp_path / "no.map")]
    assert main([*command, "--max-landmarks", "500"]) == 2
    assert "--max-landmarks is of method nearest_landmark: leave it out" in capsys.readouterr().err
    assert main([*command, "--method", "nearest_landmark", "--codes", "500"]) == 2
    assert "--codes is of method ace_g" in capsys.readouterr().err


def test_an_installed_package_offers_it_by_an_entry_point(module_folder, repository):
    code = ("from aceg_ros.methods import registry\n"
            "print(*registry.names(), registry.default_names(), sep=' ')\n")
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                             env={"PYTHONPATH": f"{repository}:{module_folder}"})
    assert process.stdout.split() == [*OURS, "nearest_landmark", "('ace_g',", "'ace')"], process.stderr


def test_a_broken_package_costs_a_warning_only(module_folder, repository, tmp_path):
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[aceg_ros.methods]\nbroken = missing_module:SPEC\n")
    process = subprocess.run([sys.executable, "-c", "from aceg_ros.methods import registry; print(*registry.names())"],
                             capture_output=True, text=True, timeout=60, env={"PYTHONPATH": f"{repository}:{tmp_path}"})
    assert process.stdout.split() == OURS and "Method broken" in process.stderr
