"""The contract of a pass, held for every pass of the project on an example that it rewrites (`pass_examples`)."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import Any

import onnx_graphsurgeon as gs
import pytest
from pass_examples import CHECKS, EXAMPLES, Example

from convrewrite.engine.rewrite import Context, Declined, Pass, Plan
from convrewrite.errors import ConvrewriteError
from convrewrite.passes import ALL
from helpers import convert

PICTURE = re.compile(r"^Before +After$", re.MULTILINE)


EVERY = pytest.mark.parametrize("pass_", ALL, ids=lambda p: p.name)


@EVERY
def test_a_pass_is_a_frozen_value(pass_: type[Any]) -> None:
    assert dataclasses.is_dataclass(pass_)
    made = pass_()
    assert made == pass_()
    assert hash(made) == hash(pass_())
    for field in dataclasses.fields(pass_):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, field.name, None)
    assert re.fullmatch(r"[a-z][a-z0-9-]*", pass_.name)


def test_names_differ() -> None:
    assert isinstance(ALL, tuple)
    assert len({pass_.name for pass_ in ALL}) == len(ALL)


@EVERY
def test_the_module_opens_with_a_picture(pass_: type[Any]) -> None:
    """Before and After, the algebra, what it requires and what it refuses: `explain` prints this text."""
    text = __import__(pass_.__module__, fromlist=["__doc__"]).__doc__
    assert text.startswith(f"{pass_.name}: ")
    assert PICTURE.search(text)
    for word in ("Algebra", "Requires", "Refuses"):
        assert word in text
    assert pass_.__doc__


@EVERY
def test_reasons_carry_the_name_of_the_pass(pass_: type[Any]) -> None:
    assert pass_.reasons
    for code, reason in pass_.reasons.items():
        assert re.fullmatch(rf"{pass_.name}/[a-z][a-z-]*", code)
        assert reason.code == code
        assert reason.meaning
        assert reason.remedy


def test_every_pass_has_an_example() -> None:
    assert {type(example.pass_) for example in EXAMPLES} == set(ALL)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.pass_.name)
def test_the_example_keeps_the_contract(example: Example, check: Callable[[Example], None]) -> None:
    check(example)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.pass_.name)
@EVERY
def test_a_pass_keeps_its_hands_off_what_is_not_for_it(pass_: type[Any], example: Example) -> None:
    """On the examples of the others, too, plan is pure, and what was rewritten is not rewritten again."""
    result, model = convert(example.model(), pass_())
    again, _ = convert(model, pass_())
    assert not again.changed or not result.changed


# The checks themselves: what breaks the contract fails one of them ------------------------------------------------


def fails(check: Callable[[Example], None], example: Example) -> bool:
    try:
        check(example)
    except (AssertionError, ConvrewriteError):
        return True
    return False


def mutant(example: Example, **methods: Any) -> Example:
    """The example with some methods of its pass replaced."""
    kind = type(example.pass_)
    made = type(kind.__name__, (kind,), methods)
    pass_ = made(**{field.name: getattr(example.pass_, field.name) for field in dataclasses.fields(kind)})
    return dataclasses.replace(example, pass_=pass_)


def does_nothing(example: Example) -> dict[str, Any]:
    return {"apply": lambda self, graph, plan: None}


def declines_all(example: Example) -> dict[str, Any]:
    reason = next(iter(example.pass_.reasons.values()))
    return {"plan": lambda self, context, node: Declined(reason, "no")}


def has_no_candidates(example: Example) -> dict[str, Any]:
    return {"candidates": lambda self, graph: iter(())}


def changes_while_it_plans(example: Example) -> dict[str, Any]:
    def plan(self: Pass, context: Context, node: gs.Node) -> Any:
        context.graph.nodes[-1].attrs["planned"] = 1
        return type(example.pass_).plan(self, context, node)

    return {"plan": plan}


def changes_an_initializer(example: Example) -> dict[str, Any]:
    def apply(self: Pass, graph: gs.Graph, plan: Plan) -> None:
        for tensor in graph.tensors().values():
            if isinstance(tensor, gs.Constant):
                tensor.values += 1
        type(example.pass_).apply(self, graph, plan)

    return {"apply": apply}


def is_different_each_time(example: Example) -> dict[str, Any]:
    names = itertools.count()

    def apply(self: Pass, graph: gs.Graph, plan: Plan) -> None:
        type(example.pass_).apply(self, graph, plan)
        graph.nodes[0].name = f"node{next(names)}"

    return {"apply": apply}


MUTATIONS = (
    does_nothing,
    declines_all,
    has_no_candidates,
    changes_while_it_plans,
    changes_an_initializer,
    is_different_each_time,
)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.pass_.name)
def test_the_checks_bite(example: Example, mutation: Callable[[Example], dict[str, Any]]) -> None:
    made = mutant(example, **mutation(example))
    assert any(fails(check, made) for check in CHECKS)
