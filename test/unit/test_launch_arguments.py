# SPDX-License-Identifier: Apache-2.0
"""The checks of launch arguments, without launch."""

import pytest

from aceg_ros.errors import UserError
from aceg_ros.ros.common.launch_arguments import is_true, number, require_executables, require_file


def test_booleans_and_numbers_are_strict():
    assert is_true("true") and is_true("1") and not is_true("False") and not is_true("off")
    assert number("rate", "2.5") == 2.5 and number("every", "3", int) == 3
    for text in ("perhaps", "", "tru"):
        with pytest.raises(UserError, match="neither true nor false"):
            is_true(text)
    with pytest.raises(UserError, match="rate must be a number, not 'fast'"):
        number("rate", "fast")
    with pytest.raises(UserError, match="every must be a whole number"):
        number("every", "1.5", int)


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    pytest.importorskip("ament_index_python", reason="needs ROS 2")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"params_file names the file /missing\.yaml"):
        require_file("params_file", "/missing.yaml")
    with pytest.raises(UserError, match="rviz2 is not installed"):
        require_executables("rviz2", "rviz2")
    index = tmp_path / "share" / "ament_index" / "resource_index" / "packages"
    index.mkdir(parents=True)
    (index / "rviz2").touch()
    with pytest.raises(UserError, match="lacks rviz2"):
        require_executables("rviz2", "rviz2")
    program = tmp_path / "lib" / "rviz2" / "rviz2"
    program.parent.mkdir(parents=True)
    program.touch()
    require_executables("rviz2", "rviz2")
