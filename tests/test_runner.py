"""The runner, which no pass can get around: what it asks of a pass, and what it makes of the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from pass_examples import classifier

from convrewrite import model_io
from convrewrite.acceptance import smaller
from convrewrite.engine.rewrite import (
    Context,
    Declined,
    FixedSize,
    Kernels,
    Pass,
    Plan,
    Reason,
    Refusal,
    Site,
    run_pass,
)
from convrewrite.errors import ConvrewriteError
from convrewrite.passes.fcn import Fcn


def load(model: onnx.ModelProto) -> gs.Graph:
    return model_io.load(model.SerializeToString()).graph


@pytest.mark.parametrize(
    ("options", "rewritten"),
    [
        ({"only": ["fir*"]}, True),
        ({"only": ["t2"]}, True),
        ({"only": ["nothing", "t?"]}, True),
        ({"only": ["second"]}, False),
        ({"skip": ["first"]}, False),
        ({"skip": ["t*"]}, False),
        ({"skip": ["FIRST"]}, True),
        ({"only": ["first"], "skip": ["t2"]}, False),
    ],
)
def test_patterns_choose_the_sites(options: dict[str, Sequence[str]], rewritten: bool) -> None:
    result = run_pass(Fcn(), load(classifier()), **options)
    assert result.changed == rewritten
    if not rewritten:
        assert [site.reason for site in result.sites] == ["rewrite/left-out"]


# A pass that breaks the contract ------------------------------------------------------------------------------------

NONE = Reason("toy/none", "nothing", "nothing")


@dataclass(frozen=True)
class Toy(Pass):
    """A pass whose plan and apply are given: for tests of the runner alone."""

    name: ClassVar[str] = "toy"
    reasons: ClassVar[Mapping[str, Reason]] = {NONE.code: NONE}
    change: Callable[[gs.Graph], None] = lambda graph: None
    answer: Callable[[gs.Node], Sequence[Plan] | Declined | Refusal] | None = None
    last: bool = False

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        yield from graph.nodes

    def plan(self, context: Context, node: gs.Node) -> Sequence[Plan] | Declined | Refusal:
        if self.answer is not None:
            return self.answer(node)
        return [Plan((Site("toy", node.outputs[0].name, node.op, "rewritten"),), node.name, last=self.last)]

    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        self.change(graph)


def rename_output(graph: gs.Graph) -> None:
    graph.outputs[0].name = "renamed"


def change_type(graph: gs.Graph) -> None:
    graph.outputs[0].dtype = np.dtype(np.float64)


def forget_output(graph: gs.Graph) -> None:
    graph.outputs = graph.outputs[:0]


def rename_input(graph: gs.Graph) -> None:
    graph.inputs[0].name = "other"


def add_input(graph: gs.Graph) -> None:
    graph.inputs.append(gs.Variable("more", np.dtype(np.float32), [1]))


def unknown_operator(graph: gs.Graph) -> None:
    graph.nodes[0].op = "NoSuchOperator"


def missing_attribute(graph: gs.Graph) -> None:
    next(node for node in graph.nodes if node.op == "MaxPool").attrs.clear()


def wrong_shape(graph: gs.Graph) -> None:
    conv = next(node for node in graph.nodes if node.op == "Conv")
    conv.inputs[1] = gs.Constant("wrong", np.zeros((3, 2, 3), np.float32))


def wrong_type(graph: gs.Graph) -> None:
    conv = next(node for node in graph.nodes if node.op == "Conv")
    conv.inputs[1] = gs.Constant("wrong", np.zeros((3, 2, 3, 3), np.float64))


def dangling_tensor(graph: gs.Graph) -> None:
    graph.nodes[2].inputs[0] = gs.Variable("from-nowhere", np.dtype(np.float32))


BREAKS = [
    (rename_output, "outputs"),
    (change_type, "outputs"),
    (forget_output, "outputs"),
    (rename_input, "inputs"),
    (add_input, "inputs"),
    (unknown_operator, "not valid ONNX"),
    (missing_attribute, "not valid ONNX"),
    (wrong_shape, "not valid ONNX"),
    (wrong_type, "not valid ONNX"),
    (dangling_tensor, "not valid ONNX"),
]


@pytest.mark.parametrize(("change", "message"), BREAKS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_pass_that_breaks_the_graph_is_an_internal_error(change: Callable[[gs.Graph], None], message: str) -> None:
    model = model_io.load(classifier().SerializeToString())
    before = model_io.to_bytes(model)
    with pytest.raises(ConvrewriteError, match=message) as error:
        run_pass(Toy(change=change, last=True), model.graph)
    assert "toy" in str(error.value)
    assert error.value.exit_code == 70
    assert "\n" not in str(error.value)
    assert model_io.to_bytes(model) == before, "the input was changed"


def test_a_pass_without_plan_or_reason_is_an_internal_error() -> None:
    with pytest.raises(ConvrewriteError, match="no plan"):
        run_pass(Toy(answer=lambda node: []), load(classifier()))


def test_a_pass_that_never_ends_is_stopped() -> None:
    """Every candidate is looked at once, also where a pass makes new ones."""
    made = []

    def grow(graph: gs.Graph) -> None:
        made.append(len(made))
        source = graph.outputs[0]
        extra = gs.Variable(f"extra{len(made)}", np.dtype(np.float32))
        graph.nodes.append(gs.Node("Relu", f"extra{len(made)}", inputs=[source], outputs=[extra]))

    graph = load(classifier())
    result = run_pass(Toy(change=grow), graph)
    assert len(result.sites) <= 2 * len(graph.nodes) + 16


def test_outcomes_become_sites() -> None:
    answers = {"Conv": Refusal(NONE, "no"), "Relu": Declined(NONE, "not worth it")}
    plan = Plan((Site("toy", "elsewhere", "Gemm", "rewritten"),), None)
    result = run_pass(Toy(answer=lambda node: answers.get(node.op, [plan])), load(classifier()))
    outcomes = {site.op: site.outcome for site in result.sites}
    assert (outcomes["Conv"], outcomes["Relu"], outcomes["Gemm"]) == ("refused", "declined", "rewritten")
    assert [site.remedy for site in result.outcome("refused")] == ["nothing"]


def test_the_first_accepted_plan_is_applied() -> None:
    plans = [Plan((Site("toy", f"plan{i}", "Conv", "rewritten"),), i) for i in range(3)]

    def judge(_: gs.Graph, plan: Plan) -> Declined | None:
        return None if plan.payload == 1 else Declined(NONE, "slow")

    result = run_pass(Toy(answer=lambda node: plans), load(classifier()), judge=judge, only=["first"])
    assert [site.anchor for site in result.outcome("rewritten")] == ["plan1"]


# The walk over the candidates ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walker(Toy):
    """Rewrites what `wanted` says of each node, and counts how often it is asked for its candidates."""

    wanted: Callable[[gs.Node], bool] = lambda node: True
    asked: list[int] = field(default_factory=list)

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        self.asked.append(len(graph.nodes))
        yield from (node for node in graph.nodes if self.wanted(node))


def relus(count: int) -> gs.Graph:
    """x0 -> x1 -> ... by as many Relu."""
    tensors = [gs.Variable(f"x{i}", np.dtype(np.float32), [1, 4]) for i in range(count + 1)]
    nodes = [gs.Node("Relu", f"n{i}", {}, [tensors[i]], [tensors[i + 1]]) for i in range(count)]
    return gs.Graph(nodes, tensors[:1], tensors[-1:], opset=13)


def anchors(pass_: Pass, graph: gs.Graph) -> list[str]:
    return [site.anchor for site in run_pass(pass_, graph).outcome("rewritten")]


def test_candidates_are_not_listed_for_each_site() -> None:
    """Once, and once more when something was rewritten, whatever the number of sites."""
    for count in (5, 50):
        pass_ = Walker()
        assert anchors(pass_, relus(count)) == [f"x{i + 1}" for i in range(count)]
        assert len(pass_.asked) == 2


def test_a_candidate_that_a_rewrite_makes_is_rewritten_too() -> None:
    """Of a node that was there; what a rewrite adds is not planned."""

    def change(graph: gs.Graph) -> None:
        graph.nodes[0].name = "ready"
        fresh = gs.Variable("fresh", np.dtype(np.float32))
        graph.nodes.append(gs.Node("Relu", "fresh", {}, [graph.inputs[0]], [fresh]))

    graph = relus(5)
    pass_ = Walker(change=change, wanted=lambda node: node.name in ("n2", "n4", "fresh", "ready"))
    assert anchors(pass_, graph) == ["x3", "x5", "x1"]


def test_a_candidate_that_a_rewrite_removes_is_not_looked_at() -> None:
    def change(graph: gs.Graph) -> None:
        doomed = [node for node in graph.nodes if node.name == "n3"]
        for node in doomed:
            node.outputs[0].outputs[0].inputs[0] = node.inputs[0]
            del graph.nodes[[id(n) for n in graph.nodes].index(id(node))]
            node.inputs.clear()
            node.outputs.clear()

    assert anchors(Walker(change=change), relus(5)) == ["x1", "x2", "x3", "x5"]


def test_a_candidate_that_stays_under_another_name_comes_next() -> None:
    """As a node whose output a rewrite hands on to a node behind it."""

    def change(graph: gs.Graph) -> None:
        node = graph.nodes[1]
        if node.name == "n1" and node.outputs[0].name == "x2":
            last, inner = node.outputs[0], gs.Variable("inner", np.dtype(np.float32))
            node.outputs = [inner]
            graph.nodes.append(gs.Node("Identity", "behind", {}, [inner], [last]))

    @dataclass(frozen=True)
    class Handing(Walker):
        def apply(self, graph: gs.Graph, plan: Plan) -> None:
            if plan.sites[0].anchor == "x2":
                change(graph)

    assert anchors(Handing(), relus(4)) == ["x1", "x2", "inner", "x3", "x4"]


# Evidence ------------------------------------------------------------------------------------------------------------


def with_evidence(*evidence: Any) -> Toy:
    def answer(node: gs.Node) -> list[Plan]:
        site = Site("toy", node.outputs[0].name, node.op, "rewritten")
        return [Plan((site,), None, evidence=[made(site.anchor) for made in evidence])]

    return Toy(answer=answer)


def test_facts_of_one_kind_are_joined() -> None:
    def kernel() -> tuple[np.ndarray, None]:
        return np.ones(1), None

    pass_ = with_evidence(lambda anchor: Kernels({anchor: kernel}), lambda anchor: FixedSize())
    result = run_pass(pass_, relus(3))
    kernels = result.evidence_of(Kernels)
    assert kernels is not None
    assert set(kernels.made) == {"x1", "x2", "x3"}
    assert result.evidence_of(FixedSize) is not None
    assert len(result.evidence) == 2


def test_what_is_no_evidence_is_not_taken() -> None:
    with pytest.raises(TypeError, match="sequence of Evidence"):
        Plan((), None, evidence={"kernels": {}})


def test_what_is_not_counted_is_not_called_nothing() -> None:
    """A pass that counts no multiply-accumulates is declined as not smaller without a figure; the report has 0."""
    (site,) = run_pass(Toy(), relus(1), judge=smaller).sites
    assert (site.outcome, site.reason, site.macs_before) == ("declined", "accept/not-smaller", None)
    assert site.detail == "the pass does not say how many multiply-accumulates it would save"
    assert (site.to_dict()["macs_before"], site.to_dict()["macs_after"]) == (0, 0)
    counted = Plan((Site("toy", "y", "Conv", "rewritten", macs_before=10, macs_after=12),), None)
    declined = smaller(relus(1), counted)
    assert declined is not None
    assert declined.detail == "10 multiply-accumulates would become 12"
