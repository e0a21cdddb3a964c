# SPDX-License-Identifier: Apache-2.0
"""Compiled functions compute the same, and also where nothing can be kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from aceg_ros.utils.compiled import compiled


@compiled
def total(values: np.ndarray) -> float:
    result = 0.0
    for value in values:
        result += value
    return result


def test_compiled_functions_compute_the_same() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    assert abs(total(values) - values.sum()) < 1e-9
    assert np.isnan(total(np.array([1.0, np.nan])))
    assert total(np.array([1.0, np.inf])) == np.inf


def test_where_nothing_can_be_kept_functions_are_compiled_all_the_same(tmp_path: Path) -> None:
    # Neither beside its source, which is no file, nor in a home that is none.
    script = ("from aceg_ros.utils.compiled import compiled\n"
              "namespace = {'compiled': compiled}\n"
              "exec(compile('@compiled\\ndef one(): return 1', 'nowhere', 'exec'), namespace)\n"
              "print(namespace['one']())")
    home = tmp_path / "file"
    home.write_text("")
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home), "PYTHONPATH": os.getcwd()}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"
