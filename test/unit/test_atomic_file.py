# SPDX-License-Identifier: Apache-2.0
"""Files are whole or not there, whatever happens while they are written."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from aceg_ros.errors import UserError
from aceg_ros.utils.atomic_file import atomic_replacement, write_json, write_text


def test_what_writes_by_path_replaces_the_target_at_the_end(tmp_path):
    target = tmp_path / "new folder" / "a.npz"
    with atomic_replacement(target) as temporary:
        np.savez(temporary, x=np.arange(3))                  # adds .npz to names that do not end so
        assert not target.exists()
    assert np.load(target)["x"].tolist() == [0, 1, 2] and os.listdir(target.parent) == ["a.npz"]
    assert target.stat().st_mode & 0o777 == 0o644


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_replacement(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_json({}, tmp_path / "file" / "a.json")


def test_a_process_that_is_killed_while_it_writes_leaves_a_whole_file(tmp_path):
    path = tmp_path / "file"
    program = ("import sys; from pathlib import Path; from aceg_ros.utils.atomic_file import write_bytes\n"
               "while True:\n for b in (b'a', b'b'): write_bytes(Path(sys.argv[1]), b * 3_000_000)")
    rng = np.random.default_rng(0)
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", program, str(path)])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.3 + rng.uniform(0, 0.1))
        process.kill()
        process.wait()
        content = path.read_bytes()
        assert content in (b"a" * 3_000_000, b"b" * 3_000_000)
