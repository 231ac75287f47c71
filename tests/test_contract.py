"""The contract of a pass, held for every pass of the project; and the runner, which no pass can get around."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from convrewrite import model_io
from convrewrite.engine.rewrite import Context, Declined, Pass, Plan, Reason, Refusal, Site, run_pass
from convrewrite.engine.windows import OutputGrid, Window
from convrewrite.errors import ConvrewriteError
from convrewrite.passes import ALL
from helpers import Net, convert

PICTURE = re.compile(r"^Before +After$", re.MULTILINE)


def classifier(dead: bool = False) -> onnx.ModelProto:
    """`dead`: one channel of the convolution is zero, so that every pass has something to do."""
    net = Net(1, 2, 9, 12)
    weight = net.numbers_of(3, 2, 3, 3)
    weight[0] *= not dead
    first = net.Conv("x", net.const(weight), net.ints(3), name="first")
    map_ = net.MaxPool(net.Relu(first), kernel_shape=[2, 2], strides=[2, 2])
    return net.model(net.Softmax(net.fc(net.Relu(net.fc(net.Flatten(map_), 6)), 4), axis=1))


def strided() -> onnx.ModelProto:
    """Fully convolutional, with a stride to remove."""
    net = Net(1, 2, 9, 12)
    return net.model(net.node("MaxPool", net.conv("x", 4, 3, 3), outputs=["y"], kernel_shape=[2, 2], strides=[2, 2]))


def whole_map() -> onnx.ModelProto:
    """A convolution whose kernel is its map."""
    net = Net(1, 2, 3, 4)
    return net.model(net.Relu(net.conv("x", 4, 3, 4)))


WINDOW = Window("x", "NCHW", (4, 4), (2, 2), (0, 0), (4, 4), "windows", outputs={"y": OutputGrid((2, 2), (1, 1))})
"""Of `strided`."""


def vectors() -> onnx.ModelProto:
    net = Net(1, 16)
    return net.model(net.fc("x", 4))


def convolutional() -> onnx.ModelProto:
    net = Net(1, 2, "height", "width")
    return net.model(net.conv("x", 4, 3, 3))


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "classifier": classifier,
    "vectors": vectors,
    "convolutional": convolutional,
    "strided": strided,
    "whole map": whole_map,
}
EVERY = pytest.mark.parametrize("pass_", ALL, ids=lambda p: p.name)


def load(model: onnx.ModelProto) -> gs.Graph:
    return model_io.load(model.SerializeToString()).graph


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


@pytest.mark.parametrize("kind", MODELS)
@EVERY
def test_plan_is_pure_and_the_input_is_left_alone(pass_: type[Any], kind: str) -> None:
    """`convert` compares the contents of the graph before and after plan and run_pass."""
    result, _ = convert(MODELS[kind](), pass_())
    for site in result.sites:
        assert site.pass_name == pass_.name
        assert site.outcome in ("rewritten", "declined", "refused")
        assert (site.reason == "") == (site.outcome == "rewritten")
        assert site.to_dict()["pass"] == pass_.name
        assert site.anchor in str(result)


@pytest.mark.parametrize("kind", MODELS)
@EVERY
def test_a_pass_is_idempotent(pass_: type[Any], kind: str) -> None:
    result, model = convert(MODELS[kind](), pass_())
    again, _ = convert(model, pass_())
    assert not again.changed or not result.changed


@pytest.mark.parametrize("kind", MODELS)
@EVERY
def test_two_runs_agree(pass_: type[Any], kind: str) -> None:
    first, one = convert(MODELS[kind](), pass_())
    second, two = convert(MODELS[kind](), pass_())
    assert first.sites == second.sites
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


@EVERY
def test_the_judge_has_the_last_word(pass_: type[Any]) -> None:
    slow = Reason("test/slow", "it is slower", "nothing")
    models = {"dense": strided, "upsample": strided, "conv-to-fc": whole_map}
    graph = load(models[pass_.name]() if pass_.name in models else classifier(dead=True))
    made = pass_(window=WINDOW) if pass_.name == "upsample" else pass_()
    judged: list[Plan] = []

    def judge(_: gs.Graph, plan: Plan) -> Declined:
        judged.append(plan)
        return Declined(slow, "1.3 times slower")

    result = run_pass(made, graph, judge=judge)
    assert judged
    assert not result.changed
    assert {(s.outcome, s.reason, s.detail, s.remedy) for s in result.sites} == {
        ("declined", "test/slow", "1.3 times slower", "nothing")
    }
    assert not result.metadata


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
    (fcn,) = (pass_ for pass_ in ALL if pass_.name == "fcn")
    result = run_pass(fcn(), load(classifier()), **options)
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


def test_the_toy_is_a_pass() -> None:
    toy: Pass = Toy()
    assert toy.name == "toy"
