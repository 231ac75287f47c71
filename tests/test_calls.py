"""Calls that can be read: no more than four values whose names the reader has to know."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from test_architecture import MODULES, Module

MOST = 4

VARIADIC = ("max", "pack_into", "partial", "prctl", "reshape", "zip")
"""Functions of other packages that take as many values as there are, or none by name."""


def long_calls(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and len(node.args) > MOST:
            called = ast.unparse(node.func)
            if called.rpartition(".")[2] not in VARIADIC:
                yield f"{module.name}:{node.lineno} {called} takes {len(node.args)} values without their names"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_no_call_has_more_than_four_values_without_names(module: Module) -> None:
    assert list(long_calls(module)) == []


def test_a_long_call_is_found() -> None:
    source = "f(1, 2, 3, 4)\nzip(1, 2, 3, 4, 5)\nf(1, 2, 3, 4, e=5)\na.f(1, 2, 3, 4, 5)\nf(*a, 2, 3, 4, 5)"
    found = list(long_calls(Module("convrewrite.x", is_package=False, source=source)))
    assert [fault.partition(" ")[0] for fault in found] == ["convrewrite.x:4", "convrewrite.x:5"]
