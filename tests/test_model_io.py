"""What is read comes back unchanged when it is written."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from convrewrite.model_io import Model, load, save, to_bytes
from convrewrite.model_io.stored import StoredValues
from stored_models import (
    FLOAT,
    arrays,
    assert_same_outputs,
    assert_same_parts,
    if_model,
    info,
    mlp,
    model_of,
    outputs_of,
    round_trip,
    stored,
    weight,
)

pytestmark = pytest.mark.usefixtures("small_chunks")

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
