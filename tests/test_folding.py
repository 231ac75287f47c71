"""Constants fold within limits: what each gives is held against numpy, what is beyond is never computed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from convrewrite.engine import folding
from convrewrite.engine.graph import Constants

Array = np.ndarray[Any, Any]


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, Array], outputs: list[str], opset: int = 17) -> gs.Graph:
    """A graph with an image that nothing need read."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
    ends = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "g", [image], ends, stored)
    return gs.import_onnx(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators that the reference evaluator was given, one entry per evaluation."""
    seen: list[str] = []
    evaluator = folding.ReferenceEvaluator

    def counting(model: onnx.ModelProto, **options: Any) -> Any:
        seen.extend(node.op_type for node in model.graph.node)
        return evaluator(model, **options)

    monkeypatch.setattr(folding, "ReferenceEvaluator", counting)
    return seen


def chain(op: str, length: int, **attrs: Any) -> gs.Graph:
    """z0 -> z1 -> ... of one operator."""
    nodes = [helper.make_node(op, [f"z{i}"], [f"z{i + 1}"], **attrs) for i in range(length)]
    return graph_of(nodes, {"z0": np.array([1.0, -2.0], np.float32)}, [f"z{length}"])


def test_a_chain_is_computed_once_though_every_tensor_is_asked_for(evaluated: list[str]) -> None:
    graph = chain("Neg", 300)
    constants, tensors = Constants(graph), graph.tensors()
    for i in range(301):
        assert np.array_equal(constants.value(tensors[f"z{i}"]), np.array([1.0, -2.0]) * (-1) ** i)
    assert len(evaluated) == 300


def test_sites_that_ask_each_for_themselves_share_what_was_computed(evaluated: list[str]) -> None:
    graph = chain("Neg", 100)
    tensors = graph.tensors()
    for i in range(101):
        assert Constants(graph).value(tensors[f"z{i}"]) is not None
    assert len(evaluated) == 100


def test_what_was_computed_is_forgotten_where_the_node_changes() -> None:
    graph = graph_of([helper.make_node("Concat", ["a", "b"], ["c"], axis=0)], {"a": [[1]], "b": [[2]]}, ["c"])
    node = graph.nodes[0]
    assert Constants(graph).value(node.outputs[0]).shape == (2, 1)
    node.attrs["axis"] = 1
    assert Constants(graph).value(node.outputs[0]).shape == (1, 2)
    node.inputs[1] = gs.Constant("other", np.array([[7, 8]]))
    assert Constants(graph).value(node.outputs[0]).tolist() == [[1, 7, 8]]


@pytest.mark.parametrize("op", ["Identity", "Neg", "Abs", "Relu", "Transpose", "Squeeze"])
def test_deep_chains_do_not_recurse(op: str) -> None:
    graph = chain(op, 3000)
    value = Constants(graph).value(graph.outputs[0])
    want = np.array([1, 2] if op == "Abs" else [1, 0] if op == "Relu" else [1, -2], np.float32)
    assert np.array_equal(value, want)


def test_a_diamond_per_level_is_no_doubling(evaluated: list[str]) -> None:
    nodes = [helper.make_node("Add", [f"z{i}", f"z{i}"], [f"z{i + 1}"]) for i in range(60)]
    graph = graph_of(nodes, {"z0": np.array([1.0])}, ["z60"])
    assert Constants(graph).value(graph.outputs[0]).tolist() == [2.0**60]
    assert len(evaluated) == 60


def test_a_cycle_is_not_constant() -> None:
    graph = chain("Neg", 3)
    first, last = graph.nodes[0], graph.nodes[2]
    first.inputs = [last.outputs[0]]
    assert Constants(graph).value(last.outputs[0]) is None


def i64(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def f32(*shape: int) -> Array:
    return np.ones(shape, np.float32)


GROWING: dict[str, tuple[list[Array], list[Array], dict[str, Any]]] = {
    # operator: operands beyond the limit, operands within, attributes
    "ConstantOfShape": ([i64(3_000_000_000)], [i64(3)], {}),
    "Expand": ([f32(1), i64(20_000, 2_000)], [f32(1), i64(2, 3)], {}),
    "Tile": ([f32(100, 100), i64(50, 50)], [f32(2, 2), i64(2, 1)], {}),
    "Range": ([np.int64(0), np.int64(10**9), np.int64(1)], [np.int64(0), np.int64(4), np.int64(1)], {}),
    "Pad": ([f32(2, 2), i64(5000, 5000, 5000, 5000)], [f32(2, 2), i64(1, 0, 1, 0)], {}),
    "OneHot": ([np.arange(50_000), np.int64(50_000), f32(2)], [np.arange(3), np.int64(3), f32(2)], {}),
    "MatMul": ([f32(9000, 1), f32(1, 9000)], [f32(2, 1), f32(1, 2)], {}),
    "Gemm": ([f32(9000, 1), f32(1, 9000)], [f32(2, 1), f32(1, 2)], {}),
    "Mul": ([f32(9000, 1), f32(1, 9000)], [f32(2, 1), f32(1, 2)], {}),
    "Einsum": ([f32(9000), f32(9000)], [f32(2), f32(2)], {"equation": "i,j->ij"}),
    "Conv": ([f32(1, 1, 4, 4), f32(1, 1, 1, 1)], [f32(1, 1, 2, 2), f32(1, 1, 1, 1)], {"pads": [4000] * 4}),
    "ConvTranspose": ([f32(1, 1, 4, 4), f32(1, 1, 1, 1)], [f32(1, 1, 2, 2), f32(1, 1, 1, 1)], {"strides": [4000] * 2}),
    "Gather": ([f32(10_000, 1000), np.zeros(60_000, np.int64)], [f32(2, 2), i64(0)], {}),
    "Concat": ([f32(3000, 3000), f32(3000, 3000)], [f32(1, 2), f32(1, 2)], {"axis": 0}),
    "Resize": (
        [f32(1, 1, 4, 4), np.zeros(0, np.float32), np.array([1, 1, 2000, 2000], np.float32)],
        [f32(1, 1, 2, 2), np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)],
        {},
    ),
}


def one(op: str, operands: list[Array], attrs: dict[str, Any]) -> gs.Graph:
    """One node that reads computed values, and another that makes a number of its result."""
    nodes = [helper.make_node("Identity", [f"s{i}"], [f"x{i}"]) for i in range(len(operands))]
    nodes.append(helper.make_node(op, [f"x{i}" for i in range(len(operands))], ["big"], **attrs))
    nodes.append(helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0))
    return graph_of(nodes, {f"s{i}": value for i, value in enumerate(operands)}, ["sum"])


@pytest.mark.parametrize("op", [op for op in GROWING if op != "Concat"])
def test_what_grows_beyond_the_limit_is_not_computed(op: str, evaluated: list[str]) -> None:
    large, _, attrs = GROWING[op]
    graph = one(op, large, attrs)
    assert Constants(graph).value(graph.outputs[0]) is None
    assert op not in evaluated
    assert "ReduceSum" not in evaluated


@pytest.mark.parametrize("op", GROWING)
def test_what_stays_within_the_limit_folds(op: str) -> None:
    _, small, attrs = GROWING[op]
    kept = {} if op in ("Conv", "ConvTranspose") else attrs
    graph = one(op, small, kept)
    want = {"ConstantOfShape": 0, "Range": 6, "OneHot": 9, "Resize": 16, "Expand": 6, "Tile": 8, "Gather": 2}.get(op, 4)
    assert float(Constants(graph).value(graph.outputs[0])) == want


def test_large_products_are_not_computed_though_their_result_is_small(evaluated: list[str]) -> None:
    shape = {"shape": i64(3500, 3500)}
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["m"]),
        helper.make_node("MatMul", ["m", "m"], ["mm"]),
        helper.make_node("ReduceSum", ["mm"], ["sum"], keepdims=0),
    ]
    graph = graph_of(nodes, shape, ["sum"])
    assert Constants(graph).value(graph.outputs[0]) is None
    assert "MatMul" not in evaluated


def test_an_einsum_over_many_letters_is_not_computed(evaluated: list[str]) -> None:
    letters = "abcdef"
    names = [f"v{i}" for i in range(6)]
    node = helper.make_node("Einsum", names, ["sum"], equation=",".join(letters) + "->")
    graph = graph_of([node], {name: f32(60) for name in names}, ["sum"])
    assert Constants(graph).value(graph.outputs[0]) is None
    assert not evaluated


def test_the_work_of_all_nodes_together_is_bounded(evaluated: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "WORK_IN_ALL", 1e6)
    nodes = [helper.make_node("Neg", [f"z{i}"], [f"z{i + 1}"]) for i in range(100)]
    graph = graph_of(nodes, {"z0": f32(10_000)}, ["z100"])
    assert Constants(graph).value(graph.outputs[0]) is None
    assert len(evaluated) == math.floor(1e6 / (2 * 20_000))


def test_the_values_at_work_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "LARGEST", 100_000)
    monkeypatch.setattr(folding, "HELD", 300_000)
    nodes = [helper.make_node("ConstantOfShape", ["n"], [f"c{i}"]) for i in range(9)]
    nodes += [
        helper.make_node("Sum", [f"c{i}" for i in range(9)], ["many"]),
        helper.make_node("Sum", ["c0", "c1"], ["few"]),
    ]
    graph = graph_of(nodes, {"n": i64(20_000)}, ["many", "few"])
    assert Constants(graph).value(graph.outputs[0]) is None
    assert Constants(graph).value(graph.outputs[1]).shape == (20_000,)


def test_what_is_made_of_stored_weights_may_be_as_large_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "LARGEST", 1000)
    weight = np.arange(-600, 600).reshape(40, 30).astype(np.int8)
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("DequantizeLinear", ["t", "scale"], ["d"]),
        helper.make_node("Tile", ["w", "twice"], ["five"]),
    ]
    graph = graph_of(nodes, {"w": weight, "scale": np.float32(0.5), "twice": i64(1, 5)}, ["d", "five"])
    assert np.array_equal(Constants(graph).value(graph.outputs[0]), 0.5 * weight.T.astype(np.float32))
    assert Constants(graph).value(graph.outputs[1]) is None


def test_loops_in_constants_are_left_alone(evaluated: list[str]) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> loops (float[1] image) => (float[1] sum) {
        trips = Constant<value = int64[1] {1000000000}>()
        go = Constant<value = bool[1] {1}>()
        start = Constant<value = float[1] {0.0}>()
        sum = Loop(trips, go, start)<body = body (int64 i, bool c, float[1] x) => (bool d, float[1] y) {
            d = Identity(c)
            y = Add(x, x)
        }>
    }"""
    graph = gs.import_onnx(onnx.parser.parse_model(text))
    assert Constants(graph).value(graph.outputs[0]) is None
    assert "Loop" not in evaluated


def test_texts_are_not_folded() -> None:
    nodes = [helper.make_node("StringConcat", [f"z{i}", f"z{i}"], [f"z{i + 1}"]) for i in range(40)]
    graph = graph_of(nodes, {"z0": np.array(["ab"], object)}, ["z40"], opset=20)
    assert Constants(graph).value(graph.outputs[0]) is None  # 2 TB of letters in one entry


def test_sequences_fold() -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["s"], axis=0, keepdims=1),
        helper.make_node("SequenceAt", ["s", "at"], ["y"]),
    ]
    graph = graph_of(nodes, {"x": i64(5, 6, 7), "at": np.int64(1)}, ["y"])
    assert Constants(graph).value(graph.outputs[0]).tolist() == [6]


@pytest.mark.parametrize(("attrs", "want"), [({}, [2, 3, 5]), ({"start": 1}, [3, 5]), ({"start": -2, "end": -1}, [3])])
def test_shapes_that_are_known_fold_whatever_their_size(attrs: dict[str, int], want: list[int]) -> None:
    nodes = [helper.make_node("Shape", ["image"], ["s"], **attrs), helper.make_node("Size", ["image"], ["n"])]
    graph = graph_of(nodes, {}, ["s", "n"])
    constants = Constants(graph, {"image": (2, 3, 5)})
    assert constants.value(graph.outputs[0]).tolist() == want
    assert constants.depends_on_shape(graph.outputs[0])
    assert int(Constants(graph, {"image": (10**6, 10**6)}).value(graph.outputs[1])) == 10**12
    assert Constants(graph).value(graph.outputs[0]) is None
