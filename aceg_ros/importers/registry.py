# SPDX-License-Identifier: Apache-2.0
"""All kinds of `aceg import`: those of the methods, and encoders."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from aceg_ros.errors import UserError
from aceg_ros.importers.encoders import IMPORTERS
from aceg_ros.methods.registry import ImporterSpec, specs

# Other files that an import may need: name of the flag, and its help.
INPUTS = {"encoder": "the encoder that it belongs to", "regressor": "the imported regressor that it belongs to"}


def importers() -> dict[str, ImporterSpec]:
    """Return all importers by kind."""
    every = (*IMPORTERS, *(importer for spec in specs() for importer in spec.importers))
    return {importer.kind: importer for importer in every}


def import_file(kind: str, source: Path, target: Path, **inputs: str | None) -> str:
    """Import one published file; inputs that the kind does not need are ignored.

    Returns:
        A sentence that says what was written.

    Raises:
        UserError: the file is of another kind or damaged, or a file that it needs is missing.
    """
    known = importers()
    if kind not in known:
        raise UserError(f"Unknown kind '{kind}': this version imports {', '.join(known)}.")
    module, name = known[kind].function.split(":")
    function = getattr(import_module(module), name)
    return function(source, target, **{needed: inputs.get(needed) for needed in known[kind].inputs})
