"""For each pass a small model that it rewrites, and what the contract says of any pass on any such model.

A new pass adds its example here: `test_contract` then holds it to the contract.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from convrewrite import model_io
from convrewrite.engine.rewrite import Declined, Pass, Plan, Reason, run_pass
from convrewrite.engine.windows import OutputGrid, Window
from convrewrite.passes.conv_to_fc import ConvToFc
from convrewrite.passes.dense import Dense
from convrewrite.passes.fc_to_conv import FcToConv
from convrewrite.passes.fcn import Fcn
from convrewrite.passes.groups import Groups
from convrewrite.passes.open_batch import OpenBatch
from convrewrite.passes.separable import Separable
from convrewrite.passes.subpixel_conv import SubpixelConv
from convrewrite.passes.upsample import Upsample
from helpers import convert
from nets import Net


def classifier(weight: np.ndarray | None = None) -> onnx.ModelProto:
    """Fixed at its window and at a batch of one. weight: of the convolution, [3, 2, 3, 3]."""
    net = Net(1, 2, 9, 12)
    weight = net.numbers_of(3, 2, 3, 3) if weight is None else weight
    first = net.Conv("x", net.const(weight), net.ints(3), name="first")
    map_ = net.MaxPool(net.Relu(first), kernel_shape=[2, 2], strides=[2, 2])
    return net.model(net.Softmax(net.fc(net.Relu(net.fc(net.Flatten(map_), 6)), 4), axis=1))


def with_a_dead_channel() -> onnx.ModelProto:
    weight = np.ones((3, 2, 3, 3), np.float32)
    weight[0] = 0
    return classifier(weight)


def of_rank_one() -> onnx.ModelProto:
    """A kernel that is the product of a column and a row."""
    net = Net(1, 16, 9, 12)
    column, row = net.numbers_of(16, 16, 3, 1), np.array([1, 2, -1], np.float32)
    return net.model(net.node("Conv", "x", net.const(column * row), outputs=["y"]))


def strided() -> onnx.ModelProto:
    """Fully convolutional, with a stride to remove."""
    net = Net(1, 2, 9, 12)
    return net.model(net.node("MaxPool", net.conv("x", 4, 3, 3), outputs=["y"], kernel_shape=[2, 2], strides=[2, 2]))


def whole_map() -> onnx.ModelProto:
    """A convolution whose kernel is its map."""
    net = Net(1, 2, 3, 4)
    return net.model(net.Relu(net.conv("x", 4, 3, 4)))


def spread() -> onnx.ModelProto:
    """A transposed convolution with a stride."""
    net = Net(1, 2, 3, 4)
    return net.model(net.ConvTranspose("x", net.ints(2, 3, 4, 4), net.ints(3), strides=[2, 2], pads=[1, 1, 1, 1]))


WINDOW = Window("x", "NCHW", (4, 4), (2, 2), (0, 0), (4, 4), "windows", outputs={"y": OutputGrid((2, 2), (1, 1))})
"""Of `strided`."""


@dataclass(frozen=True)
class Example:
    """A pass, and a model that it rewrites.

    Attributes:
        again: the pass as it is run on its own result, where that is not the pass itself: what it was told of the
            model may no longer hold.
    """

    pass_: Pass
    model: Callable[[], onnx.ModelProto]
    again: Pass | None = None


EXAMPLES: tuple[Example, ...] = (
    Example(OpenBatch(), classifier),
    Example(Fcn(), classifier),
    Example(Dense(), strided),
    Example(Upsample(window=WINDOW), strided, again=Upsample()),
    Example(Groups(), with_a_dead_channel),
    Example(Separable(), of_rank_one),
    Example(SubpixelConv(), spread),
    Example(FcToConv(), classifier),
    Example(ConvToFc(), whole_map),
)
"""At least one for each pass."""


def check_rewrites(example: Example) -> None:
    """The model that is written is another one, and the plan and the runner left the one that came alone."""
    before = example.model()
    result, made = convert(before, example.pass_)
    assert result.changed, f"nothing was rewritten: {result}"
    assert structure(made) != structure(before), "the pass says that it rewrote something, and the graph is as it was"
    assert {tensor.name for tensor in before.graph.output} == {tensor.name for tensor in made.graph.output}


def check_idempotent(example: Example) -> None:
    """On its own result there is nothing left to do."""
    _, made = convert(example.model(), example.pass_)
    again, _ = convert(made, example.again or example.pass_)
    assert not again.changed, f"rewritten twice: {again}"


def check_repeatable(example: Example) -> None:
    """Two runs say and write the same."""
    (first, one), (second, two) = (convert(example.model(), example.pass_) for _ in range(2))
    assert first.sites == second.sites
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def check_judged(example: Example) -> None:
    """The judge sees every plan, and what it declines is left as it is, with its reason."""
    slow = Reason("test/slow", "it is slower", "nothing")
    judged: list[Plan] = []

    def judge(_: gs.Graph, plan: Plan) -> Declined:
        judged.append(plan)
        return Declined(slow, "1.3 times slower")

    result = run_pass(example.pass_, model_io.load(example.model().SerializeToString()).graph, judge=judge)
    assert judged, "no plan came before the judge"
    assert not result.changed
    told = {(s.outcome, s.reason, s.detail, s.remedy) for s in result.sites if s.reason == slow.code}
    assert told == {("declined", "test/slow", "1.3 times slower", "nothing")}
    assert not result.metadata
    assert not result.evidence


def check_sites(example: Example) -> None:
    """What the report will say has the name of the pass, a known outcome, and a reason where nothing was rewritten."""
    result, _ = convert(example.model(), example.pass_)
    for site in result.sites:
        assert site.pass_name == example.pass_.name
        assert site.outcome in ("rewritten", "declined", "refused")
        assert (site.reason == "") == (site.outcome == "rewritten")
        assert (site.equivalence in ("exact", "reassociated", "approximate")) == (site.outcome == "rewritten")
        assert not site.reason or site.reason in example.pass_.reasons
        assert site.to_dict()["pass"] == example.pass_.name
        assert site.anchor in str(result)


CHECKS = (check_rewrites, check_idempotent, check_repeatable, check_judged, check_sites)


def structure(model: onnx.ModelProto) -> list[object]:
    """Nodes, inputs and outputs: what a rewrite changes."""
    graph = model.graph
    shapes = [value.SerializeToString() for value in (*graph.input, *graph.output)]
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    nodes = [(node.op_type, *node.input, *node.output, *(str(a) for a in node.attribute)) for node in graph.node]
    return [shapes, weights, nodes]
