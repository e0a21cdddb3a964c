# SPDX-License-Identifier: Apache-2.0
"""`aceg import`: published weights to files of this package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from aceg_ros.cli.arguments import add_verb
from aceg_ros.importers import registry


def add_parser(verbs: Any) -> None:
    verb = add_verb(verbs, "import", run, "convert published weights to files of this package")
    specs = registry.importers()
    verb.add_argument("kind", metavar="KIND", choices=tuple(specs),
                      help="; ".join(f"{kind}: {spec.description}" for kind, spec in specs.items()))
    verb.add_argument("file", metavar="FILE")
    verb.add_argument("-o", "--output", metavar="OUT", required=True)
    for name, text in registry.INPUTS.items():
        kinds = [kind for kind, spec in specs.items() if name in spec.inputs]
        verb.add_argument(f"--{name}", metavar="FILE", help=f"for {' and '.join(kinds)}: {text}")


def run(options: argparse.Namespace) -> int:
    inputs = {name: getattr(options, name) for name in registry.INPUTS}
    print(registry.import_file(options.kind, Path(options.file), Path(options.output), **inputs))
    return 0
