# SPDX-License-Identifier: Apache-2.0
"""Files of the ALIKED release."""

from __future__ import annotations

from pathlib import Path

from aceg_ros.encoders.aliked import AlikedNet
from aceg_ros.importers import encoders


def import_encoder(source: Path, target: Path) -> str:
    """Import the network, such as aliked-n16.pth."""
    return encoders.import_encoder(source, target, AlikedNet, kind="aliked", label="ALIKED")
