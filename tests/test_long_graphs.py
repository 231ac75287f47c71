"""Graphs of thousands of nodes: no recursion, no walk over the whole graph for each of its nodes."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from convrewrite.engine import folding
from convrewrite.engine import graph as graphs
from convrewrite.engine.graph import infer_shapes, maker, position, sort_nodes
from convrewrite.engine.rewrite import Context, Declined, Pass, Plan, Reason, Refusal, run_pass
from convrewrite.errors import UsageError
from convrewrite.passes.fc_to_conv import FcToConv
from convrewrite.passes.fcn import Fcn
from convrewrite.passes.separable import Separable
from nets import Net, run


def imported(
    nodes: list[onnx.NodeProto], stored: dict[str, Any], shape: Sequence[int], output: str, flat: bool = False
) -> gs.Graph:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    end = helper.make_tensor_value_info(output, TensorProto.FLOAT, [2, 60] if flat else shape)
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    made = helper.make_graph(nodes, "g", [image], [end], weights)
    return gs.import_onnx(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def relus(length: int) -> gs.Graph:
    nodes = [helper.make_node("Relu", ["image" if not i else f"r{i}"], [f"r{i + 1}"]) for i in range(length)]
    return imported(nodes, {}, [1, 3, 8, 8], f"r{length}")


def layers(count: int, op: str) -> gs.Graph:
    """MatMul and Relu, or Conv and Relu, in turns."""
    rng = np.random.default_rng(0)
    shape = (8, 8) if op == "MatMul" else (8, 8, 3, 3)
    nodes, stored, tensor = [], {}, "image"
    for i in range(count):
        stored[f"w{i}"] = rng.standard_normal(shape).astype(np.float32)
        more = {} if op == "MatMul" else {"pads": [1] * 4}
        nodes.append(helper.make_node(op, [tensor, f"w{i}"], [f"c{i}"], f"layer{i}", **more))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        tensor = f"r{i}"
    return imported(nodes, stored, [1, 8] if op == "MatMul" else [1, 8, 6, 6], tensor)


@pytest.mark.parametrize("seed", range(5))
def test_nodes_are_sorted_as_graphsurgeon_does(seed: int) -> None:
    rng = random.Random(seed)
    nodes = []
    for i in range(60):
        read = [rng.choice(["image", *(f"t{j}" for j in range(i))]) for _ in range(rng.choice((1, 2, 3)))]
        nodes.append(helper.make_node("Sum", read, [f"t{i}"], f"n{i}"))
    graph = imported(nodes, {}, [1, 2], "t59")
    rng.shuffle(graph.nodes)
    want = [node.name for node in graph.copy().toposort().nodes]
    assert [node.name for node in sort_nodes(graph).nodes] == want


def test_what_a_branch_reads_comes_before_it() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[2] image) => (float[2] y) {
        yes = Constant<value = bool {1}>()
        y = If(yes)<then_branch = a () => (float[2] p) { p = Neg(late) }, else_branch = b () => (float[2] q)
            { q = Abs(late) }>
        late = Relu(image)
    }"""
    graph = sort_nodes(gs.import_onnx(onnx.parser.parse_model(text)))
    assert [node.op for node in graph.nodes] == ["Constant", "Relu", "If"]


def test_a_reversed_chain_is_sorted_without_recursion() -> None:
    graph = relus(3000)
    want = [id(node) for node in graph.nodes]
    graph.nodes.reverse()
    assert [id(node) for node in sort_nodes(graph).nodes] == want


def test_a_cycle_is_a_clear_line() -> None:
    graph = relus(5)
    graph.nodes[1].inputs = [graph.nodes[3].outputs[0]]
    with pytest.raises(UsageError, match="cycle through Relu"):
        sort_nodes(graph)


def test_a_node_is_found_by_identity_among_its_equals() -> None:
    x = gs.Variable("x")
    equal = [gs.Node("Relu", "", {}, [x], []) for _ in range(4)]
    graph = gs.Graph(equal)
    assert [position(graph, node) for node in equal] == [0, 1, 2, 3]


def test_the_maker_of_a_tensor_is_found_after_the_graph_changed() -> None:
    graph = relus(3)
    assert maker(graph, "r2") is graph.nodes[1]
    fresh = gs.Variable("fresh")
    graph.nodes.append(gs.Node("Abs", "", {}, [graph.inputs[0]], [fresh]))
    assert maker(graph, "fresh") is graph.nodes[-1]
    taken = graph.nodes[1].outputs[0]
    graph.nodes[1].outputs.clear()
    graph.nodes[0].outputs = [taken]
    assert maker(graph, "r2") is graph.nodes[0]


@pytest.mark.parametrize("links", [3, 40])
def test_shapes_that_follow_from_each_other_take_a_few_rounds(links: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pow of a shape is beyond onnx's data propagation: each Reshape waits for the one before."""
    nodes, tensor = [], "image"
    for i in range(links):
        nodes += [
            helper.make_node("Shape", [tensor], [f"s{i}"]),
            helper.make_node("Pow", [f"s{i}", "one"], [f"p{i}"]),
            helper.make_node("Reshape", [tensor, f"p{i}"], [f"x{i}"]),
        ]
        tensor = f"x{i}"
    nodes.append(helper.make_node("Flatten", [tensor], ["flat"]))
    graph = imported(nodes, {"one": np.array([1], np.int64)}, [2, 3, 4, 5], "flat", flat=True)
    sizes: list[int] = []
    inference = onnx.shape_inference.infer_shapes

    def counting(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
        sizes.append(len(model.graph.node))
        return inference(model, **options)

    monkeypatch.setattr(graphs.onnx.shape_inference, "infer_shapes", counting)
    shapes = infer_shapes(graph, {"image": [2, 3, 4, 5]})
    assert {shapes[f"x{i}"] for i in range(links)} == {(2, 3, 4, 5)}
    assert shapes["flat"] == (2, 60)
    assert sum(size == len(nodes) for size in sizes) <= graphs.ROUNDS + 2


@dataclass(frozen=True)
class Nothing(Pass):
    """A pass that declines everything, and counts how often it was asked for its candidates."""

    name: ClassVar[str] = "nothing"
    reasons: ClassVar[dict[str, Reason]] = {"nothing/no": Reason("nothing/no", "no", "no")}
    asked: ClassVar[list[int]] = []

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        self.asked.append(1)
        yield from graph.nodes

    def plan(self, context: Context, node: gs.Node) -> Sequence[Plan] | Declined | Refusal:
        return Declined(self.reasons["nothing/no"], "no")

    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        raise AssertionError("nothing was planned")


def test_the_list_of_candidates_is_made_anew_only_where_the_graph_changed() -> None:
    Nothing.asked.clear()
    result = run_pass(Nothing(), relus(50))
    assert len(result.sites) == 50
    assert len(Nothing.asked) == 1


@pytest.mark.parametrize(("op", "pass_"), [("MatMul", FcToConv()), ("Conv", Separable(tol=0.9))])
def test_rewriting_many_layers_compares_few_nodes(op: str, pass_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`list.index` and `list.remove` compare whole nodes; per rewritten layer a few are in order, not the graph."""
    compared, walked = [0], [0]
    equal, tensors = gs.Node.__eq__, gs.Graph.tensors

    def counting(self: gs.Node, other: object) -> Any:
        compared[0] += 1
        return equal(self, other)

    def walking(self: gs.Graph, *args: Any, **options: Any) -> Any:
        walked[0] += 1
        return tensors(self, *args, **options)

    graph = layers(60, op)
    known = infer_shapes(graph, {"image": graph.inputs[0].shape})
    monkeypatch.setattr(gs.Node, "__eq__", counting)
    monkeypatch.setattr(gs.Graph, "tensors", walking)
    result = run_pass(pass_, graph, context=Context.of(graph, shapes=known))
    assert len(result.outcome("rewritten")) == 60
    assert compared[0] <= 4 * 60
    assert walked[0] <= 20


def test_what_depends_on_the_image_is_not_followed_again_for_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [0]
    producer = folding.producer

    def counting(tensor: gs.Tensor) -> gs.Node | None:
        steps[0] += 1
        return producer(tensor)

    monkeypatch.setattr(folding, "producer", counting)
    found = []
    for count in (30, 60):
        steps[0] = 0
        run_pass(FcToConv(), layers(count, "MatMul"))
        found.append(steps[0])
    assert found[1] <= 2.2 * found[0]


@pytest.mark.parametrize("start", ["constant", "input", "random"])
def test_fcn_takes_a_long_chain_beside_the_image(start: str) -> None:
    """What does not depend on the image is copied into the new graph: 1,500 nodes of it, one behind the other."""
    net = Net(1, 3, 6, 8)
    first = {
        "constant": lambda: net.const(np.arange(4.0).reshape(1, 4, 1, 1)),
        "input": lambda: net.input("second", 1, 4, 1, 1),
        "random": lambda: net.RandomUniform(shape=[1, 4, 1, 1], high=0.0, low=0.0),
    }[start]
    offset = functools.reduce(lambda tensor, _: net.Neg(tensor), range(1500), first())
    features = net.Flatten(net.Add(net.Conv("x", net.const(net.numbers_of(4, 3, 3, 3))), offset))
    model = net.model(net.Gemm(features, net.const(net.numbers_of(4 * 4 * 6, 5))))
    result = run_pass(Fcn(), gs.import_onnx(model))
    assert [site.outcome for site in result.sites] == ["rewritten"]
    feeds = {"x": net.numbers_of(1, 3, 6, 8)} | ({"second": net.numbers_of(1, 4, 1, 1)} if start == "input" else {})
    (got,) = run(gs.export_onnx(result.graph), feeds).values()
    (want,) = run(model, feeds).values()
    assert np.array_equal(got[..., 0, 0], want)
