# SPDX-License-Identifier: Apache-2.0
"""The notebook among the examples runs from top to bottom."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("nbmake", reason="needs nbmake")


def test_the_notebook_runs(repository, tmp_path):
    notebook = repository / "examples" / "localize.ipynb"
    result = subprocess.run([sys.executable, "-m", "pytest", "--nbmake", "-q", "-p", "no:cacheprovider", "--rootdir",
                             str(tmp_path), str(notebook)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 passed" in result.stdout
