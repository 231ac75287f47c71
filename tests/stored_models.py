"""Small models and their files, and what two of them have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from convrewrite.errors import UsageError
from convrewrite.model_io import load, save, to_bytes

FLOAT = TensorProto.FLOAT


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


# External data --------------------------------------------------------------------------------------------------------


def external(tmp_path: Path, **options: Any) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return stored(mlp(), folder / "in.onnx", save_as_external_data=True, size_threshold=0, **options)


# Writing --------------------------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
