"""What is shown in Rerun, saved to a file; only where Rerun is installed (pip install rerun-sdk)."""

import sys

import pytest

from aceg_ros.cli import main


def test_without_rerun_the_user_is_told(rendered_map, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert main(["view", str(rendered_map), "--save", str(tmp_path / "a.rrd")]) == 2
    assert "pip install rerun-sdk" in capsys.readouterr().err


def test_a_map_and_a_drive_are_saved(rendered_map, rendered_scene, tmp_path, capsys):
    pytest.importorskip("rerun", reason="needs rerun-sdk")
    file = tmp_path / "drive.rrd"
    assert main(["view", str(rendered_map), str(rendered_scene / "query"), "--save", str(file)]) == 0
    assert "12 frames shown" in capsys.readouterr().out
    content = file.read_bytes()
    for entity in (b"map/cloud", b"map/camera/image", b"map/truth", b"status"):
        assert entity in content
