# SPDX-License-Identifier: Apache-2.0
"""The rules of the code, read from the code: sizes, calls, dataclasses, names of methods, private names, words."""

from __future__ import annotations

import ast
import builtins
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "aceg_ros").rglob("*.py"))
TESTS = sorted((ROOT / "test").rglob("*.py"))
LAUNCH = sorted((ROOT / "launch").rglob("*.py"))
OTHER_SOURCES = [ROOT / "setup.py", ROOT / "Makefile", ROOT / ".ci" / "run", *(
    path for folder in ("scripts", "examples", "standalone", "docker") for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".sh", ".Dockerfile"))]
LICENCE = "# SPDX-License-Identifier: Apache-2.0"
MAX_LINES, MAX_FUNCTION_LINES, MAX_POSITIONAL = 400, 60, 4


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def at(path: Path, node: ast.AST, what: str = "") -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno} {what}".rstrip()


def report(offenders: list[str]) -> None:
    assert not offenders, f"{len(offenders)}:\n" + "\n".join(offenders)


# --- licence --------------------------------------------------------------------------------------------------------


def test_every_source_file_names_its_licence():
    """On the first line, or the second of a script, so that a file that is copied elsewhere still says it."""
    assert (ROOT / "LICENSE").read_text().split()[:2] == ["Apache", "License"] and len(OTHER_SOURCES) > 10
    report([f"{path.relative_to(ROOT)}: the first line must be {LICENCE}"
            for path in [*PACKAGE, *TESTS, *LAUNCH, *OTHER_SOURCES]
            if next((line for line in lines(path) if not line.startswith("#!")), "") != LICENCE])


# --- sizes ----------------------------------------------------------------------------------------------------------


def test_no_file_is_longer_than_a_few_screens():
    report([f"{path.relative_to(ROOT)}: {len(lines(path))} lines" for path in PACKAGE + TESTS + LAUNCH
            if len(lines(path)) > MAX_LINES])


def test_no_function_is_longer_than_a_screen():
    report([at(path, node, f"{node.name}: {node.end_lineno - node.lineno + 1} lines")
            for path in PACKAGE + TESTS + LAUNCH for node in ast.walk(tree(path))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES])


# --- calls ----------------------------------------------------------------------------------------------------------


@cache
def own_names() -> tuple[frozenset[str], frozenset[str]]:
    """Names of all functions, methods and classes that the package and its tests define; those that take as many
    arguments as one likes."""
    found = [node for path in PACKAGE + TESTS for node in ast.walk(tree(path))
             if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    return frozenset(node.name for node in found), frozenset(
        node.name for node in found if not isinstance(node, ast.ClassDef) and node.args.vararg)


@cache
def foreign_names(path: Path) -> set[str]:
    """What a file imports from elsewhere: numpy as np, from scipy.spatial.transform import Rotation, ..."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names
                      if not alias.name.startswith("aceg_ros")}
        elif isinstance(node, ast.ImportFrom) and not is_ours(node.module or ""):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


OURS = {"aceg_ros", "conftest"} | {path.stem for path in (ROOT / "test" / "support").glob("*.py")}


def is_ours(module: str) -> bool:
    return module.split(".")[0] in OURS


def root_name(node: ast.expr) -> str | None:
    """a of a.b.c(...)[0].d"""
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def is_own_call(node: ast.Call, foreign: set[str]) -> bool:
    """Whether a call is, as far as a name tells, of something that we define."""
    own, of_any_number = own_names()
    if not isinstance(node.func, ast.Name | ast.Attribute):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
    if root_name(node.func) in foreign or name in of_any_number:
        return False
    return name in own if isinstance(node.func, ast.Attribute) else not hasattr(builtins, name)


def test_calls_name_their_arguments():
    """No call of our own functions with more than four positional arguments."""
    offenders = []
    for path in PACKAGE + TESTS + LAUNCH:
        foreign = foreign_names(path)
        offenders += [at(path, node, ast.unparse(node.func)) for node in ast.walk(tree(path))
                      if isinstance(node, ast.Call) and len(node.args) > MAX_POSITIONAL and is_own_call(node, foreign)]
    report(offenders)


# --- dataclasses ----------------------------------------------------------------------------------------------------


def test_dataclasses_are_frozen_and_keyword_only():
    """Mutable ones say why, in a comment on the decorator's line."""
    offenders = []
    for path in PACKAGE:
        for node in ast.walk(tree(path)):
            for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
                called = decorator.func if isinstance(decorator, ast.Call) else decorator
                if ast.unparse(called) not in ("dataclass", "dataclasses.dataclass"):
                    continue
                given = {keyword.arg for keyword in decorator.keywords if ast.unparse(keyword.value) == "True"} \
                    if isinstance(decorator, ast.Call) else set()
                explained = re.search(r"#\s*\w+", lines(path)[decorator.lineno - 1])
                if "kw_only" not in given or ("frozen" not in given and not explained):
                    offenders.append(at(path, node, node.name))
    report(offenders)


# --- names of methods -----------------------------------------------------------------------------------------------


# The same words name an encoder and a format of recordings.
NOT_A_METHOD = {"aceg_ros/encoders": {"ace"}, "aceg_ros/datasets": {"ace"}}


def method_names() -> set[str]:
    from aceg_ros.methods import registry

    return set(registry.names())


def compared_strings(node: ast.AST) -> Iterator[ast.Constant]:
    """String constants that a node compares with something or chooses by."""
    parts: list[ast.AST | None] = []
    if isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
    elif isinstance(node, ast.MatchValue):
        parts = [node.value]
    elif isinstance(node, ast.Dict):
        parts = list(node.keys)
    for part in parts:
        several = part.elts if isinstance(part, ast.Tuple | ast.List | ast.Set) else [part]
        yield from (found for found in several if isinstance(found, ast.Constant) and isinstance(found.value, str))


def test_nobody_but_the_registry_knows_a_methods_name():
    names, offenders = method_names(), []
    assert {"ace", "ace_g"} <= names
    for path in PACKAGE + LAUNCH:
        folder = "/".join(path.relative_to(ROOT).parts[:2])
        if folder in ("aceg_ros/methods", "aceg_ros/importers"):
            continue
        for node in ast.walk(tree(path)):
            offenders += [at(path, found, repr(found.value)) for found in compared_strings(node)
                          if found.value in names - NOT_A_METHOD.get(folder, set())]
    report(offenders)


# --- private names --------------------------------------------------------------------------------------------------


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_tests_go_through_public_names():
    """No private name of another module is imported, patched or read; `self._x` of a class of the test's own is."""
    offenders = []
    for path in TESTS:
        own = {node.name for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)} | {
            node.attr for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store) and root_name(node) == "self"}
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and is_ours(node.module or ""):
                offenders += [at(path, node, alias.name) for alias in node.names if private(alias.name)]
            elif isinstance(node, ast.Attribute) and private(node.attr) and not (
                    isinstance(node.value, ast.Name) and node.value.id in ("self", "cls") and node.attr in own):
                if root_name(node) not in foreign_names(path):
                    offenders.append(at(path, node, ast.unparse(node)))
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
                offenders += [at(path, node, argument.value) for argument in node.args[:2]
                              if isinstance(argument, ast.Constant) and private(str(argument.value).split(".")[-1])]
    report(offenders)


# --- words ----------------------------------------------------------------------------------------------------------


# Words of an own dialect, and what the field says.
GONE = {
    "picture": "image", "pictures": "images", "partner": "covisible image", "partners": "covisible images",
    "sketch": "covisibility features", "sketches": "covisibility features", "looked": "extracted", "thinned":
    "subsampled", "surest": "most confident", "surer": "more confident", "crowd": "density", "crowded": "dense",
    "nowhere": "lost", "astray": "wrong", "apart": "distance", "refusal": "rejection", "refusals": "rejections",
    "refuse": "reject", "refused": "rejected", "refuses": "rejects", "tally": "counts", "rival": "second pose",
    "pupil": "student", "pupils": "student", "taught": "distilled", "lesson": "teacher descriptors",
    "lessons": "teacher descriptors", "believed": "accepted", "nonsense": "random input", "rearranged":
    "with objects moved", "photograph": "render_frame", "photographs": "images", "judge": "evaluate", "judges":
    "evaluates", "judged": "evaluated", "offered": "count", "pull": "loss", "pulled": "supervised",
    "keep_heap": "configure_malloc", "give_back_heap": "release_free_memory", "once_it_spins": "after_first_spin",
    "of_query": "", "claim": "lock", "claims": "locks", "claimed": "locked", "figures": "statistics",
}
# Names of definitions that were riddles.
GONE_NAMES = {
    "Answer", "Belief", "Collection", "Frames", "Grid", "INSIDE", "LEAST", "Lesson", "Picture", "Place", "PlaceData",
    "REACH", "Request", "SKETCH", "Seen", "Sketches", "Tally", "Tracker", "Way", "Window", "choose_partners",
    "conclude", "forget", "guide", "guide_loss", "look", "merge", "offer", "regress", "serve", "solve_pose", "thin",
    "visit",
}
WORD = re.compile(r"[a-z]+(?:_[a-z]+)*")


def identifiers_and_prose(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of text: identifiers, comments, docstrings and messages. A string without a space is a name on the outside
    (a key of JSON, a topic, a flag), which stays as it is."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.NAME, tokenize.COMMENT):
            yield token.start[0], token.string
        elif token.type == tokenize.STRING or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            for number, line in enumerate(token.string.splitlines()):
                if " " in token.string.strip():
                    yield token.start[0] + number, line


def words_of(text: str) -> set[str]:
    """Lower-case words; CamelCase and snake_case are taken to pieces, and kept whole as well."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text).lower()
    found = set(WORD.findall(text))
    return found | {part for word in found for part in word.split("_")}


def test_the_fields_words_are_used():
    offenders = []
    for path in PACKAGE + LAUNCH:
        for number, text in identifiers_and_prose(path):
            offenders += [f"{path.relative_to(ROOT)}:{number} {word} -> {GONE[word]}" for word in words_of(text)
                          if word in GONE]
    for path in [ROOT / "README.md", *sorted((ROOT / "config").glob("*"))]:
        for number, line in enumerate(lines(path), 1):
            offenders += [f"{path.relative_to(ROOT)}:{number} {word} -> {GONE[word]}" for word in words_of(line)
                          if word in GONE]
    report(offenders)


def test_nothing_is_called_by_an_old_name():
    defined = [(path, node, getattr(node, "name", None) or getattr(node, "id", None))
               for path in PACKAGE for node in ast.walk(tree(path))
               if isinstance(node, ast.FunctionDef | ast.ClassDef)
               or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))]
    report([at(path, node, name) for path, node, name in defined if name in GONE_NAMES])
