# SPDX-License-Identifier: Apache-2.0
"""Read a YAML file that is a mapping with a list of entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from aceg_ros.errors import UserError


def read_yaml_list(path: Path, key: str, advice: str = "") -> dict[str, Any]:
    """Return the mapping in a file, in which `key` has a list that is not empty.

    Raises UserError, with the advice, if the file cannot be read or has none.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    if not isinstance(content, dict) or not isinstance(content.get(key), list) or not content[key]:
        raise UserError(f"{path} has no list '{key}'{f': {advice}' if advice else ''}.")
    return content
