# SPDX-License-Identifier: Apache-2.0
"""Write what the documents take from the code: docs/cli.md from the parsers, the tables of parameters in
docs/ros_interface.md from the dataclasses.

    python scripts/generate_docs.py

The tests compare both with the code, so run this after each change of a flag or of a parameter.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"

CLI_INTRODUCTION = """# The `aceg` command

<!-- Made by scripts/generate_docs.py from the parsers: change the help texts there. -->

`aceg VERB --help` shows the same in a terminal. A verb ends with 0, with 2 on bad usage or unusable files, after one
sentence on stderr that says why ([troubleshooting](troubleshooting.md)), and with 130 on Ctrl-C.
"""

HEADER = "| argument | |\n|---|---|\n"
UNNAMED = ("positional arguments", "options")     # argparse's own groups

# Module and dataclasses of each node whose parameters are listed, in the order of the tables' rows.
NODES = {
    "localizer_node": (
        ("localizer.parameters", "LocalizerParameters"), ("localizer.parameters", "ImageParameters"),
        ("localizer.parameters", "PoseParameters"), ("localizer.bond", "BondParameters"),
        ("mapping.parameters", "MappingParameters")),
    "scene_player": (("players.scene_player", "SceneParameters"), ("players.playback", "PlaybackParameters"),
                     ("players.camera_publisher", "CameraParameters")),
    "sim_camera": (("players.sim_camera", "SimParameters"),),
    "evaluation_node": (("evaluation.parameters", "EvaluationParameters"),),
    "bag_recorder": (("recorders.bag_recorder", "BagParameters"),),
    "scene_recorder": (("recorders.scene_recorder", "RecorderParameters"),),
}


# --- the command line -----------------------------------------------------------------------------------------------


def cli_page(parser: argparse.ArgumentParser) -> str:
    """Return docs/cli.md for a parser with subparsers. Groups of flags that several verbs have are at its end, once."""
    groups = [group for verb in _verbs(parser) for group in verb._action_groups]
    tables = Counter((group.title, _rows(group)) for group in groups if group.title not in UNNAMED)
    shared = {title: rows for (title, rows), count in tables.items() if count > 1 and rows}
    sections = [*_sections(parser, 2, shared), *(f"## {title}\n\n{HEADER}{rows}" for title, rows in shared.items())]
    return CLI_INTRODUCTION + "".join(f"\n{section}" for section in sections)


def _sections(parser: argparse.ArgumentParser, level: int, shared: Mapping[str, str]) -> Iterator[str]:
    for verb in _verbs(parser):
        text, rows, elsewhere = f"{'#' * level} {verb.prog}\n\n{verb.description}\n", "", []
        for group in verb._action_groups:
            if group.title in shared:
                elsewhere.append(f"[{group.title}](#{group.title.lower().replace(' ', '-')})")
            else:
                rows += _title_row(group) + _rows(group)
        if elsewhere:
            text += f"\nIt takes the flags for {' and '.join(elsewhere)} as well.\n"
        yield text + (f"\n{HEADER}{rows}" if rows else "")
        yield from _sections(verb, level + 1, shared)


def _verbs(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    return [verb for action in parser._actions if isinstance(action, argparse._SubParsersAction)
            for verb in action.choices.values()]


def _title_row(group: Any) -> str:
    return f"| **{group.title}** | {_cell(group.description or '')} |\n" \
        if group.title not in UNNAMED and _rows(group) else ""


def _rows(group: Any) -> str:
    return "".join(f"| `{_signature(action)}` | {_cell(_help(action))} |\n" for action in group._group_actions
                   if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction))


def _signature(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices is not None else None
    metavar = action.metavar or choices or action.dest.upper()
    values = " ".join(metavar) if isinstance(metavar, tuple) else metavar
    values += " ..." if action.nargs in ("*", "+") else ""
    return f"{names} {values}".strip()


def _help(action: argparse.Action) -> str:
    return (action.help or "") % {**vars(action), "prog": "aceg"}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# --- ROS parameters -------------------------------------------------------------------------------------------------


def with_parameter_tables(page: str) -> str:
    """Return docs/ros_interface.md with its tables of parameters made anew, between their comments.

    Raises:
        ValueError: if the page lacks the comments of a node.
    """
    for node, kinds in NODES.items():
        begin, end = f"<!-- parameters of {node} -->\n", f"<!-- end of parameters of {node} -->"
        pattern = re.compile(f"({re.escape(begin)}).*?({re.escape(end)})", re.DOTALL)
        if not pattern.search(page):
            raise ValueError(f"docs/ros_interface.md has no place for the parameters of {node}")
        table = _parameter_table(kinds)
        page = pattern.sub(lambda found, table=table: f"{found[1]}\n{table}\n{found[2]}", page)
    return page


def _parameter_table(kinds: tuple[tuple[str, str], ...]) -> str:
    lines = ["| parameter | default | |", "|---|---|---|"]
    for module, name in kinds:
        for field in dataclasses.fields(getattr(import_module(f"aceg_ros.ros.{module}"), name)):
            lines.append(f"| `{field.name}` | {_default(field.default)} | {_cell(_description(field.metadata))} |")
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    if isinstance(value, tuple):
        text = ", ".join(filter(None, value))           # ROS 2 has no empty list of strings: one of '' stands for it
    else:
        text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else "empty"


def _description(metadata: Any) -> str:
    minimum, maximum = metadata["range"]
    parts = [metadata["description"]]
    if metadata["choices"]:
        choices = ", ".join(f"`{choice}`" if choice else "empty" for choice in metadata["choices"])
        parts.append(f"One of {choices}.")
    if minimum is not None:
        parts.append(f"From {minimum:.12g} to {maximum:.12g}.")
    if metadata["read_only"]:
        parts.append("*Fixed.*")
    return " ".join(parts)


def main() -> None:
    from aceg_ros.cli import make_parser

    (DOCS / "cli.md").write_text(cli_page(make_parser()))
    ros_interface = DOCS / "ros_interface.md"
    ros_interface.write_text(with_parameter_tables(ros_interface.read_text()))


if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))        # of the code beside these documents, whatever is installed
    main()
