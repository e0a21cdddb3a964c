# SPDX-License-Identifier: Apache-2.0
"""The documents: links, what they take from the code, and what they say about messages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from aceg_ros.cli import make_parser
from aceg_ros.estimate import Status

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
OUT_OF_DATE = "python scripts/generate_docs.py makes it anew"


def without_code(page: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", page, flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ +(.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_every_document_is_in_the_navigation():
    """mkdocs only notes it: a page that nothing leads to is not found."""
    navigation = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"[\w/.-]+\.md", navigation))
    log = (DOCS / "research_log.md").read_text()
    reports = set(re.findall(r"benchmarks/[\w.-]+\.md", log))
    assert {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} == named | reports


def test_the_page_of_the_command_line_is_that_of_the_parsers(generate_docs):
    assert (DOCS / "cli.md").read_text() == generate_docs.cli_page(make_parser()), OUT_OF_DATE


# --- troubleshooting ------------------------------------------------------------------------------------------------


def table_rows(title: str) -> list[str]:
    """First cells of the table in a section of docs/troubleshooting.md."""
    page = (DOCS / "troubleshooting.md").read_text()
    section = re.split(r"^## ", page, flags=re.MULTILINE)
    found, = (part for part in section if part.startswith(title))
    return [line.split(" | ")[0].removeprefix("| ") for line in found.splitlines() if line.startswith("| `")]


def test_every_rejection_is_explained():
    node = {str(value) for value in string_constants(ROOT / "aceg_ros" / "ros" / "localizer" / "results.py")}
    known = {status.value for status in Status} - {"accepted"} | {"no_map", "replaced", "internal_error", "bad_stamp",
                                                                  "no_transform", "unconfirmed"}
    assert known - {status.value for status in Status} <= node, "statuses of the node, by other names"
    assert sorted(row.strip("`") for row in table_rows("Rejected images")) == sorted(known)


def string_constants(path: Path) -> list[str]:
    """Values of the module's constants that are strings."""
    return [node.value.value for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]


def sentence(node: ast.AST) -> str:
    """A string as it stands in the code, with ... for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(sentence, node.values))
    if isinstance(node, ast.BinOp):
        return sentence(node.left) + sentence(node.right)
    return "..."


def sentences() -> str:
    return "\n".join(sentence(node).replace("\n", " ") for path in sorted((ROOT / "aceg_ros").rglob("*.py"))
                     for node in ast.walk(ast.parse(path.read_text()))
                     if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp))


def test_the_messages_that_are_explained_exist():
    """What stands between the dots of an explained message is in one message of the code, in this order."""
    explained = [message for title in ("Nothing is published", "Reading a recording", "Mapping",
                                           "Poses from images alone", "Maps and weights")
                 for row in table_rows(title) for message in re.findall("`([^`]+)`", row)]
    code = sentences()
    missing = [message for message in explained
               if not re.search("[^\n]*".join(map(re.escape, message.split("..."))), code)]
    assert len(explained) > 80 and not missing
