"""Every kind of `aceg import`: those of the methods, and encoders, which belong to none."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from aceg_ros.errors import UserError
from aceg_ros.importers.encoders import IMPORTERS
from aceg_ros.methods.registry import ImporterSpec, specs

# Other files that an import may need: for each, the flag's name and its help.
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
        UserError: the file is wrong or damaged, or another file is missing that it needs.
    """
    known = importers()
    if kind not in known:
        raise UserError(f"Unknown kind '{kind}': this version imports {', '.join(known)}.")
    module, name = known[kind].function.split(":")
    function = getattr(import_module(module), name)
    return function(source, target, **{needed: inputs.get(needed) for needed in known[kind].inputs})
