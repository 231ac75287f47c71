"""Model files: what is read comes back unchanged, what is no model is one line with exit code 2, and what is
written appears whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from convrewrite import model_io
from convrewrite.errors import UsageError
from convrewrite.model_io import Model, copy_bytes, external_data, load, protofile, save, staged, to_bytes, write_stream
from convrewrite.model_io.stored import StoredValues

FLOAT = TensorProto.FLOAT


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stream in pieces that do not divide the weights, so that the seams are tested."""
    monkeypatch.setattr(protofile, "CHUNK", 1000)


def info(name: str, shape: Sequence[Any] | None = (1, 64), code: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, code, shape)


def weight(name: str, shape: tuple[int, ...] = (64, 64), seed: int = 0) -> TensorProto:
    return numpy_helper.from_array(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32), name)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[TensorProto] = (),
    *,
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    opset: int = 17,
    ir_version: int = 8,
    **graph_fields: Any,
) -> ModelProto:
    inputs = [info("x")] if inputs is None else inputs
    outputs = [info("y")] if outputs is None else outputs
    graph = helper.make_graph(nodes, "net", inputs, outputs, initializers, **graph_fields)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, producer_name="maker")


def mlp(**fields: Any) -> ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["y"]),
    ]
    return model_of(nodes, [weight("w"), weight("b", (64,), 1)], **fields)


def stored(model: ModelProto, path: Path, **external: Any) -> Path:
    onnx.save(model, path, **external)
    return path


def outputs_of(model: bytes | Path, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    source = model if isinstance(model, bytes) else str(model)
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(seed)
    dtypes = {"tensor(float)": np.float32, "tensor(bool)": np.bool_, "tensor(float16)": np.float16}
    feeds: dict[str, np.ndarray[Any, Any]] = {
        node.name: generator.standard_normal([n if isinstance(n, int) else 1 for n in node.shape]).astype(
            dtypes[node.type]
        )
        for node in session.get_inputs()
    }
    return [np.asarray(value) for value in session.run(None, feeds)]


def assert_same_outputs(left: bytes | Path, right: bytes | Path) -> None:
    for a, b in zip(outputs_of(left), outputs_of(right), strict=True):
        np.testing.assert_array_equal(a, b)


def round_trip(proto: ModelProto, tmp_path: Path) -> ModelProto:
    """Through a file and back by the path; the result passes the checker and equals `to_bytes`."""
    source = stored(proto, tmp_path / "in.onnx")
    target = save(load(source), tmp_path / "out.onnx")
    onnx.checker.check_model(str(target))
    assert target.read_bytes() == to_bytes(load(source.read_bytes()))
    return onnx.load(target)


def arrays(graph: onnx.GraphProto) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def assert_same_parts(before: ModelProto, after: ModelProto) -> None:
    fields = [
        "ir_version",
        "producer_name",
        "producer_version",
        "domain",
        "model_version",
        "doc_string",
        "metadata_props",
    ]
    for name in fields:
        assert getattr(after, name) == getattr(before, name), name
    assert list(after.functions) == list(before.functions)
    assert list(after.opset_import) == list(before.opset_import)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert list(after.graph.sparse_initializer) == list(before.graph.sparse_initializer)
    assert list(after.graph.quantization_annotation) == list(before.graph.quantization_annotation)
    assert [node.SerializeToString(deterministic=True) for node in after.graph.node] == [
        node.SerializeToString(deterministic=True) for node in before.graph.node
    ]


# Bad input ------------------------------------------------------------------------------------------------------------


def refusal(source: Path | bytes) -> str:
    with pytest.raises(UsageError) as caught:
        load(source)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "the file is empty"),
        (b"just some text, no model at all\n", "not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "not an ONNX model"),
        (np.random.default_rng(0).bytes(10_000), "not an ONNX model"),
        (b"\x08\x08", "holds no readable graph"),
        (mlp().SerializeToString()[:-1], "truncated"),
        (mlp().SerializeToString()[:9000], "truncated"),
        (mlp().SerializeToString() + b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "truncated"),
    ],
    ids="empty text png random no-graph one-byte-short half-a-file huge-length".split(),
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, fragment: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    assert fragment in refusal(path)
    assert fragment in refusal(content)
    assert str(path) in refusal(path)


def test_a_path_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "it is a folder" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "missing.onnx")
    (tmp_path / "file").write_bytes(b"1")
    assert "Not a directory" in refusal(tmp_path / "file" / "model.onnx")


def renamed_input(model: ModelProto) -> ModelProto:
    model.graph.node[0].input[0] = "nowhere"
    return model


def without_opset(model: ModelProto) -> ModelProto:
    del model.opset_import[:]
    model.opset_import.add(domain="com.example", version=1)
    return model


def short_weight(model: ModelProto) -> ModelProto:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    return model


def floats_missing(model: ModelProto) -> ModelProto:
    model.graph.initializer[1].CopyFrom(TensorProto(name="b", data_type=FLOAT, dims=[1 << 40], float_data=[1.0]))
    return model


def negative_dimension(model: ModelProto) -> ModelProto:
    model.graph.initializer[0].dims[:] = [-64, -64]
    return model


def binary_name(model: ModelProto) -> bytes:
    return bytes(model.SerializeToString()).replace(b"\x0a\x01x\x0a\x01w", b"\x0a\x01\xff\x0a\x01w")


CYCLE = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["a", "x"], ["b"])]


@pytest.mark.parametrize(
    ("model", "fragment"),
    [
        (renamed_input(mlp()), "nowhere"),
        (model_of([helper.make_node("NoSuchOperator", ["x"], ["y"])]), "NoSuchOperator"),
        (model_of(CYCLE, outputs=[info("b")]), "cycle"),
        (without_opset(mlp()), "no opset of the default domain; 7 to"),
        (mlp(opset=999), "opset 999 is newer"),
        (mlp(ir_version=999), "ir_version"),
        (mlp(inputs=[info("x", (0, 64))]), "input 'x' has a dimension of size 0"),
        (mlp(outputs=[]), "no outputs"),
        (short_weight(mlp()), "tensor 'w' has 16,380 bytes of data"),
        (floats_missing(mlp()), "tensor 'b' has 1 value "),
        (negative_dimension(mlp()), "negative dimension"),
        (binary_name(mlp()), "is not text in UTF-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_that_is_wrong_is_refused(tmp_path: Path, model: ModelProto | bytes, fragment: str) -> None:
    content = model if isinstance(model, bytes) else model.SerializeToString()
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    assert fragment in refusal(path)


def test_an_old_opset_is_left_to_the_passes() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], opset=6, ir_version=3)
    assert load(model.SerializeToString()).opset == 6


SMALL_FILE = mlp(value_info=[info("h")]).SerializeToString()


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_files_load_or_are_refused(data: st.DataObject) -> None:
    content = bytearray(SMALL_FILE)
    weights = SMALL_FILE.index(struct.pack("<f", numpy_helper.to_array(weight("w"))[0, 0]))
    # Damage to the weights' bytes changes numbers only: aim at all else.
    places = [*range(weights), *range(weights + 64 * 64 * 4, len(SMALL_FILE))]
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.sampled_from(places))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    try:
        model = load(bytes(content[:cut]))
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        to_bytes(model)
        model.skeleton()
        for tensor in model.graph.tensors().values():
            if isinstance(tensor, gs.Constant):
                np.asarray(tensor.values)


# Round trips ----------------------------------------------------------------------------------------------------------


def test_the_corpus_comes_back(corpus_model: Path, tmp_path: Path) -> None:
    path = corpus_model
    before = onnx.load(path)
    target = save(load(path), tmp_path / "out.onnx")
    after = onnx.load(target)
    assert_same_parts(before, after)
    used = {name for node in before.graph.node for name in node.input} | {out.name for out in before.graph.output}
    kept = [tensor for tensor in before.graph.initializer if tensor.name in used]
    assert list(after.graph.initializer) == kept
    assert_same_outputs(path, target)
    assert save(load(target), tmp_path / "again.onnx").read_bytes() == target.read_bytes()


def test_touched_weights_are_written_as_they_were(tmp_path: Path) -> None:
    model = load(stored(mlp(), tmp_path / "in.onnx"))
    constants = {t.name: t for t in model.graph.tensors().values() if isinstance(t, gs.Constant)}
    values = constants["w"].values
    assert not values.flags.writeable
    assert values.base is not None, "a view, not a copy"
    np.testing.assert_array_equal(values, arrays(mlp().graph)["w"])
    constants["b"].values = constants["b"].values.astype(np.float64).astype(np.float32)
    assert arrays(onnx.load_from_string(to_bytes(model)).graph).keys() == {"w", "b"}
    assert_same_outputs(mlp().SerializeToString(), to_bytes(model))


def test_new_weights_are_written_from_any_memory_layout(tmp_path: Path) -> None:
    model = load(mlp().SerializeToString())
    matrix = np.random.default_rng(5).standard_normal((64, 64), dtype=np.float32)
    constants = {t.name: t for t in model.graph.tensors().values() if isinstance(t, gs.Constant)}
    constants["w"].values = matrix.T
    after = onnx.load(save(model, tmp_path / "out.onnx"))
    np.testing.assert_array_equal(arrays(after.graph)["w"], matrix.T)


def test_constants_that_share_lazy_values_keep_their_names() -> None:
    model = load(mlp().SerializeToString())
    tensor = next(t for t in model.graph.tensors().values() if t.name == "w")
    twin = gs.Constant("twin", tensor._values)
    extra = gs.Variable("extra", np.dtype(np.float32), (1, 64))
    model.graph.nodes.append(gs.Node("MatMul", inputs=[model.graph.inputs[0], twin], outputs=[extra]))
    model.graph.outputs.append(extra)
    found = arrays(onnx.load_from_string(to_bytes(model)).graph)
    np.testing.assert_array_equal(found["twin"], found["w"])


def test_what_graphsurgeon_drops_comes_back(tmp_path: Path) -> None:
    proto = mlp(value_info=[info("h")], doc_string="about the graph")
    proto.doc_string = "about the model"
    proto.domain, proto.model_version = "org.example", 7
    for key in ("z", "a"):
        proto.metadata_props.add(key=key, value=key * 2)
    node = proto.graph.node[0]
    node.doc_string = "about the node"
    node.metadata_props.add(key="pkg", value="torch")
    proto.graph.metadata_props.add(key="graph", value="1")
    annotation = proto.graph.quantization_annotation.add(tensor_name="h")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    proto.graph.initializer.append(weight("scale", (2000,), 4))
    gone = proto.graph.quantization_annotation.add(tensor_name="no such tensor")
    gone.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b")
    proto.training_info.add().algorithm.name = "sgd"
    proto.ir_version = 10
    unknown = bytes([0xFA, 0x7F, 3]) + b"new"  # field 2047, of a later release
    source = tmp_path / "in.onnx"
    source.write_bytes(proto.SerializeToString() + unknown)
    model = load(source)
    assert list(model.metadata.items()) == [("z", "zz"), ("a", "aa")]
    target = save(model, tmp_path / "out.onnx")
    after = onnx.load(target)
    del proto.graph.quantization_annotation[1]
    assert_same_parts(proto, after)
    assert list(after.graph.initializer) == list(proto.graph.initializer)
    assert list(after.graph.value_info) == list(proto.graph.value_info)
    assert list(after.graph.metadata_props) == list(proto.graph.metadata_props)
    assert list(after.training_info) == list(proto.training_info)
    assert after.graph.doc_string == "about the graph"
    assert unknown in target.read_bytes()


def test_attributes_that_graphsurgeon_cannot_hold_come_back(tmp_path: Path) -> None:
    blob = b"\xff\xfe engine"
    node = helper.make_node("Engine", ["x"], ["y"], domain="com.example", blob=blob, shape=[1, 2])
    node.attribute.append(helper.make_attribute("axes", [], attr_type=onnx.AttributeProto.FLOATS))
    node.attribute.append(helper.make_attribute("kind", helper.make_tensor_type_proto(FLOAT, [1])))
    node.attribute.append(helper.make_attribute("parts", [weight("p"), weight("q", (64, 65), 2)]))
    proto = model_of([node])
    proto.opset_import.add(domain="com.example", version=3)
    after = round_trip(proto, tmp_path)
    assert {a.name: a for a in after.graph.node[0].attribute} == {a.name: a for a in node.attribute}
    assert list(after.opset_import) == list(proto.opset_import)


def test_functions_come_back_inlined(tmp_path: Path) -> None:
    big = helper.make_node("Constant", [], ["c"], value=weight("c"))
    body = [big, helper.make_node("MatMul", ["a", "c"], ["r"])]
    function = helper.make_function("local", "Times", ["a"], ["r"], body, [helper.make_opsetid("", 17)])
    proto = model_of([helper.make_node("Times", ["x"], ["y"], domain="local")])
    proto.functions.append(function)
    proto.opset_import.add(domain="local", version=1)
    after = round_trip(proto, tmp_path)
    assert not after.functions
    assert [node.op_type for node in after.graph.node if node.op_type != "Constant"] == ["MatMul"]
    assert_same_outputs(tmp_path / "in.onnx", tmp_path / "out.onnx")


def if_model() -> ModelProto:
    """`w` is read outside and in both branches, `inner` only inside, `own` belongs to one branch."""
    then = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [], [info("t")])
    other = helper.make_graph(
        [
            helper.make_node("Add", ["s", "inner"], ["p"]),
            helper.make_node("MatMul", ["p", "own"], ["q"]),
            helper.make_node("MatMul", ["q", "w"], ["e"]),
        ],
        "else",
        [],
        [info("e")],
        [weight("own", seed=3)],
    )
    nodes = [
        helper.make_node("If", ["c"], ["z"], then_branch=then, else_branch=other),
        helper.make_node("MatMul", ["x", "w"], ["s"]),
        helper.make_node("Add", ["z", "s"], ["y"]),
    ]
    inputs = [info("x"), info("c", (), TensorProto.BOOL)]
    return model_of(nodes, [weight("w"), weight("inner", (64, 64), 2)], inputs=inputs, outputs=[info("y", None)])


def test_subgraphs_keep_captured_weights_outside(tmp_path: Path) -> None:
    proto = if_model()
    source = stored(proto, tmp_path / "in.onnx")
    target = save(load(source), tmp_path / "out.onnx")
    after = onnx.load(target)
    assert [node.op_type for node in after.graph.node] == ["MatMul", "If", "Add"], "sorted: the branch reads s"
    assert list(after.graph.initializer) == list(proto.graph.initializer)
    branches = {attribute.name: attribute.g for attribute in after.graph.node[1].attribute}
    assert [t.name for t in branches["then_branch"].initializer] == []
    assert list(branches["else_branch"].initializer) == [weight("own", seed=3)]
    in_order = if_model()
    first = in_order.graph.node.pop(1)
    in_order.graph.node.insert(0, first)
    assert_same_outputs(in_order.SerializeToString(), target)


def test_unsorted_nodes_are_sorted_and_sorted_ones_left_alone(tmp_path: Path) -> None:
    proto = mlp()
    proto.graph.node.reverse()
    after = round_trip(proto, tmp_path)
    assert [node.op_type for node in after.graph.node] == ["MatMul", "Add"]
    assert_same_outputs(mlp().SerializeToString(), tmp_path / "out.onnx")


def test_names_may_be_empty_or_repeated(tmp_path: Path) -> None:
    proto = mlp()
    for node in proto.graph.node:
        node.name = "same"
    proto.graph.name = ""
    proto.graph.initializer.append(weight("unused", seed=9))
    after = round_trip(proto, tmp_path)
    assert [node.name for node in after.graph.node] == ["same", "same"]
    assert after.graph.name == "graph"
    assert arrays(after.graph).keys() == {"w", "b"}, "unused initializers are dropped"


def test_an_initializer_may_be_a_graph_output(tmp_path: Path) -> None:
    proto = mlp(outputs=[info("y"), info("w", (64, 64))])
    assert_same_parts(proto, round_trip(proto, tmp_path))


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_listed_as_inputs(tmp_path: Path, ir_version: int) -> None:
    inputs = [info("w", (64, 64)), info("x"), info("b", (64,))]
    proto = mlp(inputs=inputs, ir_version=ir_version)
    source = stored(proto, tmp_path / "in.onnx")
    model = load(source)
    assert [tensor.name for tensor in model.graph.inputs] == ["x"]
    new = gs.Constant("new", np.ones(64, np.float32))
    model.graph.nodes[1].inputs[1] = new
    after = onnx.load(save(model, tmp_path / "out.onnx"))
    onnx.checker.check_model(after)
    assert after.ir_version == ir_version
    assert [tensor.name for tensor in after.graph.input] == ["w", "x", *(["new"] if ir_version < 4 else [])]
    outputs_of(tmp_path / "out.onnx")


def test_initializers_that_should_be_inputs_are_listed_on_saving(tmp_path: Path) -> None:
    after = round_trip(mlp(ir_version=3), tmp_path)
    assert [tensor.name for tensor in after.graph.input] == ["x", "w", "b"]
    assert_same_outputs(mlp().SerializeToString(), tmp_path / "out.onnx")


def test_a_sparse_initializer_comes_back_and_can_be_read(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.array([1.5, -2, 3], np.float32), "w")
    indices = numpy_helper.from_array(np.array([[0, 1], [5, 6], [63, 63]]), "w_indices")
    sparse = helper.make_sparse_tensor(values, indices, [64, 64])
    proto = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])])
    proto.graph.sparse_initializer.append(sparse)
    assert_same_parts(proto, round_trip(proto, tmp_path))
    assert_same_outputs(tmp_path / "in.onnx", tmp_path / "out.onnx")
    model = load(tmp_path / "in.onnx")
    dense = next(t for t in model.graph.tensors().values() if t.name == "w").values
    assert [dense[0, 1], dense[5, 6], dense[63, 63], np.count_nonzero(dense)] == [1.5, -2, 3, 3]


TYPES = "FLOAT16 BFLOAT16 DOUBLE INT8 UINT8 INT32 INT64 BOOL FLOAT8E4M3FN FLOAT8E5M2 INT4 UINT4".split()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("count", [30, 8193])
def test_every_type_comes_back(tmp_path: Path, name: str, count: int) -> None:
    code = TensorProto.DataType.Value(name)
    dtype = helper.tensor_dtype_to_np_dtype(code)
    array = np.random.default_rng(1).integers(0, 2, count).astype(np.int8).astype(dtype)
    tensor = numpy_helper.from_array(array, "w")
    assert tensor.data_type == code
    proto = model_of(
        [helper.make_node("Identity", ["w"], ["y"])],
        [tensor],
        inputs=[],
        outputs=[info("y", [count], code)],
        opset=21,
        ir_version=10,
    )
    assert round_trip(proto, tmp_path).graph.initializer[0] == tensor
    model = load(tmp_path / "in.onnx")
    constant = next(t for t in model.graph.tensors().values() if t.name == "w")
    assert constant.values.dtype == dtype
    np.testing.assert_array_equal(constant.values.astype(np.float32), array.astype(np.float32))
    assert onnx.load_from_string(to_bytes(model)).graph.initializer[0] == tensor, "the same after it was read"


def test_strings_and_typed_data_come_back(tmp_path: Path) -> None:
    floats = helper.make_tensor("w", FLOAT, [64, 64], np.arange(4096.0), raw=False)
    words = numpy_helper.from_array(np.array(["a", "bc"], object), "words")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Identity", ["words"], ["s"])]
    proto = model_of(nodes, [floats, words], outputs=[info("y"), info("s", [2], TensorProto.STRING)])
    assert list(round_trip(proto, tmp_path).graph.initializer) == [floats, words]
    model = load(tmp_path / "in.onnx")
    for constant in [t for t in model.graph.tensors().values() if isinstance(t, gs.Constant)]:
        assert constant.values.shape in [(64, 64), (2,)]
    assert list(arrays(onnx.load_from_string(to_bytes(model)).graph)["words"]) == ["a", "bc"]


def test_sequences_keep_their_types(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("s", FLOAT, [1, 64])
    nodes = [helper.make_node("SequenceConstruct", ["x", "x"], ["s"]), helper.make_node("Identity", ["s"], ["y"])]
    out = helper.make_tensor_sequence_value_info("y", FLOAT, [1, 64])
    proto = model_of(nodes, outputs=[out], value_info=[sequence])
    after = round_trip(proto, tmp_path)
    assert_same_parts(proto, after)
    assert list(after.graph.value_info) == [sequence]


def test_a_copy_of_the_graph_can_be_saved(tmp_path: Path) -> None:
    model = load(stored(if_model(), tmp_path / "in.onnx"))
    copied = Model(model.graph.copy(), model.ir_version, model.path, model.metadata, model.shell, model.origin)
    assert to_bytes(copied) == to_bytes(model)


def test_a_model_made_in_memory_can_be_saved(tmp_path: Path) -> None:
    made = Model(gs.import_onnx(mlp()), ir_version=8)
    assert (made.sha256, made.nbytes) == ("", 0)
    save(made, tmp_path / "out.onnx")
    assert_same_outputs(mlp().SerializeToString(), tmp_path / "out.onnx")


def test_the_skeleton_has_shapes_but_no_large_data(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=weight("c", seed=2))
    long = numpy_helper.from_array(np.arange(600), "long")
    nodes = [
        constant,
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "c"], ["m"]),
        helper.make_node("Reshape", ["m", "shape"], ["y"]),
        helper.make_node("Identity", ["long"], ["l"]),
    ]
    shape = numpy_helper.from_array(np.array([8, 8]), "shape")
    outputs = [info("y", ("a", "b")), info("l", (600,), TensorProto.INT64)]
    proto = model_of(nodes, [weight("w"), shape, long], outputs=outputs)
    skeleton = load(stored(proto, tmp_path / "in.onnx")).skeleton()
    assert skeleton.ByteSize() < 6500
    assert [list(t.dims) for t in skeleton.graph.initializer] == [[64, 64], [2], [600]]
    assert list(skeleton.graph.initializer)[2] == long
    inferred = onnx.shape_inference.infer_shapes(skeleton, strict_mode=True)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.graph.value_info}
    assert shapes["m"] == [1, 64]
    assert [d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim] == [8, 8]


def test_weights_are_not_read_on_the_way_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(stored(mlp(), tmp_path / "in.onnx"))

    def read(self: StoredValues) -> None:
        raise AssertionError("a weight was read")

    with monkeypatch.context() as patched:
        patched.setattr(StoredValues, "load", read)
        save(model, tmp_path / "out.onnx")
        model.skeleton()
    want, got = (onnx.load(tmp_path / name).graph.initializer for name in ("in.onnx", "out.onnx"))
    for one, other in zip(want, got, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))


def test_hash_and_size_are_those_of_the_file(tmp_path: Path) -> None:
    content = mlp().SerializeToString()
    path = tmp_path / "in.onnx"
    path.write_bytes(content)
    for model in (load(path), load(content)):
        assert model.sha256 == hashlib.sha256(content).hexdigest()
        assert model.nbytes == len(content)
    first = load(path)
    save(load(Path(stored(mlp(opset=16), tmp_path / "other.onnx"))), path)
    assert first.sha256 == hashlib.sha256(content).hexdigest(), "of the file as it was read"


# External data --------------------------------------------------------------------------------------------------------


def external(tmp_path: Path, **options: Any) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return stored(mlp(), folder / "in.onnx", save_as_external_data=True, size_threshold=0, **options)


@pytest.mark.parametrize("one_file", [True, False])
def test_external_data_comes_back(tmp_path: Path, one_file: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    source = external(tmp_path, all_tensors_to_one_file=one_file, location="w.bin" if one_file else None)
    monkeypatch.chdir(tmp_path)  # names are relative to the model, not to the current folder
    model = load(source)
    assert model.has_external_data
    assert model.nbytes == sum(path.stat().st_size for path in source.parent.iterdir())
    target = save(model, tmp_path / "out.onnx")
    data = [path for path in tmp_path.iterdir() if path.suffix == ".data"]
    assert [path.name for path in data] == [f"out-{hashlib.sha256(data[0].read_bytes()).hexdigest()[:12]}.data"]
    assert_same_outputs(source, target)
    assert arrays(onnx.load(target).graph)["w"].tobytes() == arrays(mlp().graph)["w"].tobytes()
    assert save(load(target), tmp_path / "out.onnx").read_bytes() == target.read_bytes()
    assert_same_outputs(mlp().SerializeToString(), to_bytes(model))
    skeleton = model.skeleton()
    assert not any(tensor.external_data for tensor in skeleton.graph.initializer)


def test_a_model_over_the_limit_gets_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w2"], ["y"])],
        [weight("w"), weight("w2", (64, 65), 3)],
        outputs=[info("y", (1, 65))],
    )
    source = stored(proto, tmp_path / "in.onnx")
    monkeypatch.setattr(model_io.writing, "MAX_FILE_BYTES", 20_000)
    model = load(source)
    target = save(model, tmp_path / "big.onnx")
    offsets = [
        int(entry.value)
        for t in onnx.load(target, load_external_data=False).graph.initializer
        for entry in t.external_data
        if entry.key == "offset"
    ]
    assert len(offsets) == 2
    assert all(offset % external_data.ALIGNMENT == 0 for offset in offsets)
    assert_same_outputs(source, target)
    with pytest.raises(UsageError, match="2 GB"):
        write_stream(model, io.BytesIO())
    with pytest.raises(UsageError, match="2 GB"):
        to_bytes(model)


def with_entries(source: Path, **entries: str) -> Path:
    proto = onnx.load(source, load_external_data=False)
    for tensor in proto.graph.initializer:
        if tensor.name == "w":
            held = {entry.key: entry.value for entry in tensor.external_data} | entries
            del tensor.external_data[:]
            for key, value in held.items():
                if value:
                    tensor.external_data.add(key=key, value=value)
    source.write_bytes(proto.SerializeToString())
    return source


@pytest.mark.parametrize(
    ("entries", "fragment"),
    [
        ({"location": "../secret.bin"}, "escapes the model's folder"),
        ({"location": "/etc/hostname"}, "escapes the model's folder"),
        ({"location": "sub/../../secret.bin"}, "escapes the model's folder"),
        ({"location": "..\\secret.bin"}, "escapes the model's folder"),
        ({"location": "C:\\secret.bin"}, "escapes the model's folder"),
        ({"location": "link.bin"}, "escapes the model's folder"),
        ({"location": "linked/secret.bin"}, "escapes the model's folder"),
        ({"location": ""}, "escapes the model's folder"),
        ({"location": "missing.bin"}, "'missing.bin' is missing"),
        ({"location": "."}, "is missing"),
        ({"offset": "1000000"}, "lie outside"),
        ({"offset": "-4"}, "lie outside"),
        ({"offset": "many"}, "no valid offset"),
        ({"length": "16380"}, "16380 bytes of external data"),
        ({"length": "-1"}, "-1 bytes of external data"),
    ],
    ids=str,
)
def test_external_data_that_is_wrong_is_refused(tmp_path: Path, entries: dict[str, str], fragment: str) -> None:
    source = external(tmp_path, location="w.bin")
    (tmp_path / "secret.bin").write_bytes(bytes(64 * 64 * 4))
    (source.parent / "link.bin").symlink_to(tmp_path / "secret.bin")
    (source.parent / "linked").symlink_to(tmp_path)
    message = refusal(with_entries(source, **entries))
    assert fragment in message
    assert "tensor 'w'" in message


def test_a_link_inside_the_folder_and_a_missing_length_are_fine(tmp_path: Path) -> None:
    source = external(tmp_path, location="w.bin")
    (source.parent / "link.bin").symlink_to("w.bin")
    target = save(load(with_entries(source, location="link.bin", length="")), tmp_path / "out.onnx")
    assert_same_outputs(mlp().SerializeToString(), target)


def test_external_data_cannot_come_from_standard_input(tmp_path: Path) -> None:
    assert "standard input" in refusal(external(tmp_path).read_bytes())


# Writing --------------------------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_staged_file_runs_before_it_is_published(tmp_path: Path) -> None:
    model = load(mlp().SerializeToString())
    target = tmp_path / "out.onnx"
    with staged(model, target) as written:
        assert written.path.parent == tmp_path
        outputs_of(written.path)
        assert not target.exists()
    assert content(tmp_path) == {}
    with staged(model, target) as written:
        written.commit()
    assert list(content(tmp_path)) == ["out.onnx"]


def test_staged_data_goes_unless_it_is_published(tmp_path: Path) -> None:
    model = load(external(tmp_path))
    target = tmp_path / "out.onnx"
    with staged(model, target) as written:
        assert_same_outputs(written.path, mlp().SerializeToString())
    assert content(tmp_path) == {}
    save(model, target)
    before = content(tmp_path)
    with staged(load(target), target):
        pass
    assert content(tmp_path) == before, "the data file that was there before stays"


def test_input_and_output_may_be_one_path(tmp_path: Path) -> None:
    path = stored(mlp(), tmp_path / "model.onnx")
    before = path.read_bytes()
    model = load(path)
    with staged(model, path) as written:
        assert path.read_bytes() == before
        written.commit()
    assert list(content(tmp_path)) == ["model.onnx"]
    assert_same_outputs(before, path)
    assert_same_outputs(before, to_bytes(model))  # the replaced file can still be read from


def failing_replace(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if str(target).endswith(suffix):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)


@pytest.mark.parametrize("suffix", [".onnx", ".data"])
def test_a_failure_leaves_the_old_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    model = load(external(tmp_path))
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    failing_replace(monkeypatch, suffix)
    with pytest.raises(UsageError, match=r"cannot write .*out\.onnx: Input/output error"):
        save(model, target)
    assert content(tmp_path) == {"out.onnx": b"old"}


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(stored(mlp(), tmp_path / "in.onnx"))
    before = content(tmp_path)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        save(model, tmp_path / "out.onnx")
    with pytest.raises(UsageError, match="No space left on device"):
        copy_bytes(model, tmp_path / "out.onnx")
    assert content(tmp_path) == before


def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    model = load(mlp().SerializeToString())
    (tmp_path / "file").write_bytes(b"1")
    cases: dict[Path, str] = {
        tmp_path: "it is a folder",
        tmp_path / "missing" / "out.onnx": "No such file or directory",
        tmp_path / "file" / "out.onnx": "Not a directory",
        tmp_path / ("n" * 300 + ".onnx"): "File name too long",
        Path(os.devnull): "no regular file",
    }
    for target, fragment in cases.items():
        for write in (save, copy_bytes):
            with pytest.raises(UsageError, match=fragment) as caught:
                write(model, target)
            assert caught.value.exit_code == 2
    assert content(tmp_path) == {"file": b"1"}


def test_a_read_only_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(mlp().SerializeToString())

    def denied(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("builtins.open", denied)  # chmod would not stop root
    with pytest.raises(UsageError, match="Permission denied"):
        save(model, tmp_path / "out.onnx")


class ClosedPipe(io.BytesIO):
    def write(self, data: Any) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)


def test_a_model_goes_to_a_stream(tmp_path: Path) -> None:
    model = load(external(tmp_path))
    stream = io.BytesIO()
    write_stream(model, stream)
    assert stream.getvalue() == to_bytes(model)
    assert_same_outputs(stream.getvalue(), mlp().SerializeToString())
    with pytest.raises(UsageError, match="Broken pipe"):
        write_stream(model, ClosedPipe())


def test_a_file_is_copied_byte_for_byte(tmp_path: Path) -> None:
    odd = mlp().SerializeToString() + bytes([0xFA, 0x7F, 3]) + b"new"
    path = tmp_path / "in.onnx"
    path.write_bytes(odd)
    stream = io.BytesIO()
    copy_bytes(load(path), stream)
    assert stream.getvalue() == odd
    copy_bytes(load(odd), tmp_path / "out.onnx")
    copy_bytes(load(path), path)
    assert content(tmp_path) == {"in.onnx": odd, "out.onnx": odd}
    with pytest.raises(UsageError, match="not read from a file"):
        copy_bytes(Model(gs.import_onnx(mlp()), ir_version=8), path)


def test_a_copy_takes_its_external_data_along(tmp_path: Path) -> None:
    source = external(tmp_path, location="w.bin")
    model = load(source)
    target = tmp_path / "copy.onnx"
    for _ in range(2):
        copy_bytes(model, target)
        assert content(tmp_path) == {"copy.onnx": source.read_bytes(), "w.bin": (source.parent / "w.bin").read_bytes()}
    stream = io.BytesIO()
    copy_bytes(model, stream)
    assert stream.getvalue() == to_bytes(model)


def test_a_copy_does_not_overwrite_the_data_of_others(tmp_path: Path) -> None:
    model = load(external(tmp_path, location="w.bin"))
    (tmp_path / "w.bin").write_bytes(b"of another model")
    copy_bytes(model, tmp_path / "copy.onnx")
    assert (tmp_path / "w.bin").read_bytes() == b"of another model"
    assert_same_outputs(mlp().SerializeToString(), tmp_path / "copy.onnx")


def test_the_wire_format_is_put_back_as_it_was(tmp_path: Path) -> None:
    for proto in (mlp(), if_model()):
        data = proto.SerializeToString()
        skeleton, payloads = protofile.cut(protofile.Memory(data))
        assert len(skeleton) < 2500
        assert payloads
        assert b"".join(protofile.chunks(protofile.splice(skeleton, payloads))) == data
