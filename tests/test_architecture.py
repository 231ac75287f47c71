"""The arrows of the design, held by parsing every import.

    cli, api, batch -> pipeline -> passes -> engine -> system, errors
    acceptance -> verification, timing -> running -> model_io -> engine

Imports inside functions and under TYPE_CHECKING count too: an arrow is about what a module knows of.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("convrewrite", "passes", "models")
MAX_LINES = 400

GROUND = frozenset({"errors", "system", "text"})
FILES = GROUND | {"engine", "model_io"}
PROOFS = FILES | {"options", "running", "verification", "timing", "acceptance"}
COMMANDS = PROOFS | {"pipeline", "passes", "models"}

# What each folder of convrewrite/ may import from it. "convrewrite" is the package itself (its public names).
ALLOWED: dict[str, frozenset[str]] = {
    "errors": frozenset({"text"}),
    "text": frozenset(),
    "options": frozenset({"errors", "text"}),
    "system": frozenset({"errors"}),
    "engine": GROUND,
    "passes": GROUND | {"engine"},
    "models": frozenset(),
    "rewrite": frozenset({"engine", "text"}),
    "plugins": GROUND | {"engine", "passes"},
    "model_io": GROUND | {"engine"},
    "running": FILES,
    "verification": FILES | {"running", "options"},
    "timing": FILES | {"running", "options"},
    "acceptance": PROOFS,
    "pipeline": PROOFS | {"passes", "models", "convrewrite"},
    "inspection": COMMANDS,
    "page": COMMANDS | {"inspection"},
    "tiling": COMMANDS,
    "batch": COMMANDS | {"page", "plugins"},
    "api": COMMANDS | {"inspection", "page", "plugins", "tiling"},
    "cli": COMMANDS | {"batch", "inspection", "page", "plugins", "tiling", "convrewrite"},
    "convrewrite": frozenset({"api", "errors"}),
    "__main__": frozenset({"cli"}),
}


@dataclass(frozen=True)
class Module:
    """One source file under the name that it is imported by."""

    name: str
    is_package: bool
    source: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


def modules() -> list[Module]:
    found = []
    for folder in FOLDERS:
        # rglob does not enter the symlinks, which would show passes/ and models/ a second time.
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if folder == "convrewrite" and relative.parts[1] in ("passes", "models"):
                continue
            parts = list(relative.with_suffix("").parts)
            if folder != "convrewrite":
                parts.insert(0, "convrewrite")
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            found.append(Module(name, is_package, path.read_text(encoding="utf-8")))
    return found


MODULES = modules()


def imported(module: Module, known: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Each imported module and its line; `from convrewrite import graph` names the module if there is one."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.name.split(".")
                package = package[: len(package) - node.level + module.is_package]
                base = ".".join([*package, *filter(None, [base])])
            for alias in node.names:
                member = f"{base}.{alias.name}"
                yield node.lineno, member if member in known else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            target = node.args[0].value
            if called in ("import_module", "__import__") and isinstance(target, str):
                yield node.lineno, target


def component(name: str) -> str:
    """`convrewrite.passes.fcn.head` belongs to `passes`; the package itself is `convrewrite`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def pass_of(name: str) -> str | None:
    """The pass that a module of convrewrite.passes belongs to: itself, or its package (passes/fcn)."""
    parts = name.split(".")
    return parts[2] if len(parts) > 2 and parts[1] == "passes" else None


def import_faults(module: Module, known: frozenset[str]) -> list[str]:
    here = component(module.name)
    if here not in ALLOWED:
        return [f"{module.name}: say in ALLOWED what this module may import"]
    faults = []
    for line, target in imported(module, known):
        where = f"{module.name}:{line} imports {target}"
        head = target.split(".")[0]
        if head in ("passes", "models"):
            faults.append(f"{where}: the name is convrewrite.{target}")
        elif head != "convrewrite":
            continue
        elif component(target) != here:
            if component(target) not in ALLOWED[here]:
                faults.append(f"{where}: {here} must not know of {component(target)}")
        elif here == "passes" and pass_of(module.name) and pass_of(target) != pass_of(module.name):
            faults.append(f"{where}: a pass must not know of another pass, nor of the list of them")
    return faults


def passes_defined(module: Module) -> list[str]:
    """The classes that are passes: those with candidates, plan and apply."""
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            if {"candidates", "plan", "apply"} <= methods:
                found.append(node.name)
    return found


def docstring_fault(module: Module) -> str | None:
    if component(module.name) != "passes" or not passes_defined(module):
        return None
    docstring = ast.get_docstring(module.tree) or ""
    missing = [word for word in ("Before", "After") if word not in docstring]
    return f"{module.name}: the docstring has no picture headed {' and '.join(missing)}" if missing else None


def length_fault(module: Module) -> str | None:
    lines = len(module.source.splitlines())
    if component(module.name) == "models" or lines <= MAX_LINES:
        return None
    return f"{module.name}: {lines} lines, more than {MAX_LINES}"


KNOWN = frozenset(module.name for module in MODULES)


def test_every_folder_was_read() -> None:
    assert {"convrewrite", "convrewrite.passes", "convrewrite.models"} <= KNOWN
    assert len(KNOWN) == len(MODULES), "a module was read twice"
    assert len(KNOWN) > 10


def test_the_pass_modules_are_recognised() -> None:
    assert any(passes_defined(module) for module in MODULES if component(module.name) == "passes")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_imports_follow_the_arrows(module: Module) -> None:
    assert import_faults(module, KNOWN) == []


def circles(known: Sequence[Module]) -> list[list[str]]:
    """Modules that import each other, at any distance."""
    names = frozenset(module.name for module in known)
    graph = nx.DiGraph((module.name, target) for module in known for _, target in imported(module, names))
    graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    return [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]


def test_no_module_imports_itself_by_way_of_another() -> None:
    assert circles(MODULES) == []


def test_a_circle_is_found() -> None:
    typed = "if TYPE_CHECKING:\n    from convrewrite.page import table"
    modules = [
        Module("convrewrite.page", True, "from convrewrite.page.render import page"),
        Module("convrewrite.page.render", False, "def f():\n    import convrewrite.page.table"),
        Module("convrewrite.page.table", False, "from convrewrite.errors import UsageError"),
    ]
    assert circles(modules) == []
    assert circles([*modules, Module("convrewrite.errors", False, typed)]) == [
        ["convrewrite.errors", "convrewrite.page.table"]
    ]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_modules_are_short(module: Module) -> None:
    assert length_fault(module) is None


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_a_pass_opens_with_its_picture(module: Module) -> None:
    assert docstring_fault(module) is None


FRAGMENT = re.compile(r"(Of|For the report|As JSON|As the command)\b")
"""What the first words of a docstring were where it only went on from a name: a property `sha256`, "Of the file."."""


def fragments(module: Module) -> list[str]:
    """Docstrings that are no sentence without the name that they follow."""
    named = [node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [f"{module.name}.{node.name}" for node in named if FRAGMENT.match(ast.get_docstring(node) or "")]


def test_docstrings_are_sentences() -> None:
    assert [found for module in MODULES for found in fragments(module)] == []
    assert fragments(Module("convrewrite.p", False, 'def sha256():\n    """Of the file."""')) == [
        "convrewrite.p.sha256"
    ]
    assert fragments(Module("convrewrite.p", False, 'def sha256():\n    """The hash of the file."""')) == []


NESTED = (
    "engine.graph",
    "running.runtime",
    "passes.fcn",
    "passes.fcn.head",
    "passes.fcn.rules",
    "passes.groups",
    "models.lenet",
)
SYNTHETIC_KNOWN = frozenset(f"convrewrite.{name}" for name in (*ALLOWED, *NESTED)) | {"convrewrite"}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("passes.groups", "from convrewrite.running.runtime import session"),
        ("passes.groups", "import convrewrite.cli.app"),
        ("passes.groups", "from convrewrite import engine, pipeline"),
        ("passes.groups", "from convrewrite import Report"),
        ("passes.groups", "from convrewrite.passes.fcn import Fcn"),
        ("passes.groups", "from convrewrite.passes import fcn"),
        ("passes.groups", "from convrewrite.passes import ALL"),
        ("passes.groups", "from . import fcn"),
        ("passes.groups", "from ..verification import verify"),
        ("passes.fcn.head", "from ... import acceptance"),
        ("passes.fcn.head", "def f():\n    from convrewrite import timing"),
        ("passes.fcn.head", "if TYPE_CHECKING:\n    import convrewrite.pipeline.report"),
        ("passes.fcn.head", "importlib.import_module('convrewrite.model_io')"),
        ("passes.fcn.head", "from convrewrite.models.lenet import build"),
        ("engine.graph", "from convrewrite.passes import ALL"),
        ("engine.graph", "from ..passes.groups import Groups"),
        ("errors", "import convrewrite.engine.graph"),
        ("running.runtime", "from convrewrite.verification import verify"),
        ("verification", "from convrewrite import acceptance"),
        ("verification", "from convrewrite.timing import measure"),
        ("acceptance", "from convrewrite.passes import ALL"),
        ("pipeline", "from convrewrite.cli.app import app"),
        ("models.lenet", "from convrewrite.engine.graph import fold"),
        ("models.lenet", "import convrewrite"),
        ("cli", "from passes import ALL"),
        ("cli", "import models.lenet"),
        ("newcomer", ""),
    ],
)
def test_a_wrong_import_is_found(name: str, source: str) -> None:
    module = Module(f"convrewrite.{name}", is_package=False, source=source)
    assert len(import_faults(module, SYNTHETIC_KNOWN)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "passes.groups",
            "import numpy\nfrom convrewrite.engine.rewrite import Plan\nfrom convrewrite import errors",
        ),
        ("passes.fcn.head", "from convrewrite.passes.fcn import rules\nfrom . import rules"),
        ("passes.fcn.head", "from .rules import RULES\nfrom ...engine.rewrite import Plan"),
        ("passes", "from convrewrite.passes.fcn import Fcn\nfrom convrewrite.passes import groups"),
        ("acceptance", "from convrewrite.timing import measure\nfrom convrewrite import engine, running"),
        ("cli", "from convrewrite import __version__, pipeline\nfrom convrewrite.passes import ALL"),
        ("models.lenet", "from convrewrite.models import build"),
    ],
)
def test_a_right_import_passes(name: str, source: str) -> None:
    module = Module(f"convrewrite.{name}", is_package=name == "passes", source=source)
    assert import_faults(module, SYNTHETIC_KNOWN) == []


PASS = "class P:\n    def candidates(self): ...\n    def plan(self): ...\n    def apply(self): ...\n"


def test_a_missing_picture_is_found() -> None:
    assert docstring_fault(Module("convrewrite.passes.p", False, f'"""Before only."""\n{PASS}')) is not None
    assert docstring_fault(Module("convrewrite.passes.p", False, PASS)) is not None
    assert docstring_fault(Module("convrewrite.passes.p", False, f'"""Before / After."""\n{PASS}')) is None
    assert docstring_fault(Module("convrewrite.passes.p", False, "def helper(): ...\n")) is None


def test_a_long_module_is_found() -> None:
    assert length_fault(Module("convrewrite.passes.p", False, "\n" * (MAX_LINES + 1))) is not None
    assert length_fault(Module("convrewrite.passes.p", False, "\n" * MAX_LINES)) is None
