# SPDX-License-Identifier: Apache-2.0
"""Set the version of the package everywhere that it is written.

    python scripts/bump_version.py 0.3.0

`aceg_ros.__version__` is what counts: setup.py reads it there. package.xml and CITATION.cff follow, and the changes
that CHANGELOG.rst has under "Forthcoming" become those of the version, with the date of today.
"""

from __future__ import annotations

import re
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What stands before and after the version in each file.
PLACES = {"aceg_ros/__init__.py": ('^__version__ = "', '"$'), "package.xml": ("^  <version>", "</version>$"),
          "CITATION.cff": ("^version: ", "$")}


def written_versions(root: Path) -> dict[str, str]:
    """Return the version that each file has, and that of the newest release in the changelog."""
    found = {}
    for name, (before, after) in PLACES.items():
        found[name], = re.findall(f"{before}(.+?){after}", (root / name).read_text(), re.MULTILINE)
    found["CHANGELOG.rst"] = re.findall(r"^(\d+\.\d+\.\d+) \(", (root / "CHANGELOG.rst").read_text(), re.MULTILINE)[0]
    return found


def bump(root: Path, version: str, today: date) -> None:
    """Write a version into all files.

    Raises:
        ValueError: if it is no version, or the changelog has no "Forthcoming" to make a release of.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"'{version}' is not a version such as 0.3.0")
    title = f"{version} ({today.isoformat()})"
    changelog, count = re.subn(r"^Forthcoming\n-+$", f"{title}\n{'-' * len(title)}",
                               (root / "CHANGELOG.rst").read_text(), count=1, flags=re.MULTILINE)
    if not count:
        raise ValueError("CHANGELOG.rst has no section 'Forthcoming'")
    (root / "CHANGELOG.rst").write_text(changelog)
    for name, (before, after) in PLACES.items():
        text = re.sub(f"({before}).+?({after})", rf"\g<1>{version}\g<2>", (root / name).read_text(), flags=re.MULTILINE)
        (root / name).write_text(text)


if __name__ == "__main__":
    try:
        bump(ROOT, *sys.argv[1:2], date.today())
    except (TypeError, ValueError) as error:
        sys.exit(f"bump_version: {error}")
