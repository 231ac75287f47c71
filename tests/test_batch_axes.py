"""Where the walk of open-batch says that the images go, against ONNX Runtime: operator by operator, axis by axis.

Images are put along each axis of an operator's input in turn. What the walk accepts must give each image the same as by
itself, along the axis that it names; what it refuses as mixed must not do so along any axis.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx.shape_inference import InferenceError
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, NotImplemented, RuntimeException

from convrewrite import model_io
from convrewrite.engine.graph import infer_shapes
from convrewrite.passes.open_batch import RULES
from convrewrite.passes.open_batch.counting import COUNTING, TAKES_COUNTS
from convrewrite.passes.open_batch.states import Each, Stop
from convrewrite.passes.open_batch.walk import Walk, images_for
from nets import Net, run

SIZES = (4, 3, 5)
"""Of the axes that have no images, in order."""

Build = Callable[[Net, str, list[int]], str]


def _axis_ops() -> dict[str, Build]:
    built: dict[str, Build] = {}
    for axis in range(4):
        for op in ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"):
            built[f"{op} {axis}"] = lambda net, x, d, op=op, axis=axis: net.node(op, x, axis=axis)
        built[f"CumSum {axis}"] = lambda net, x, d, axis=axis: net.CumSum(x, net.const(axis))
        built[f"ArgMax {axis}"] = lambda net, x, d, axis=axis: net.ArgMax(x, axis=axis, keepdims=axis % 2)
        built[f"TopK {axis}"] = lambda net, x, d, axis=axis: net.node("TopK", x, net.const([1]), outputs=2, axis=axis)[
            0
        ]
        built[f"ReduceMax {axis}"] = lambda net, x, d, axis=axis: net.reduce("ReduceMax", x, [axis], keepdims=axis % 2)
        built[f"ReduceSum {axis}"] = lambda net, x, d, axis=axis: net.reduce("ReduceSum", x, [axis, -1], keepdims=0)
        built[f"Gather {axis}"] = lambda net, x, d, axis=axis: net.Gather(x, net.const([[0, -1]]), axis=axis)
        built[f"Gather one {axis}"] = lambda net, x, d, axis=axis: net.Gather(x, net.const(0), axis=axis)
        built[f"LayerNormalization {axis}"] = lambda net, x, d, axis=axis: net.LayerNormalization(
            x, net.const(1.5, dtype=np.float32), axis=axis
        )
        built[f"Flatten {axis}"] = lambda net, x, d, axis=axis: net.Flatten(x, axis=axis)
        built[f"Slice {axis}"] = lambda net, x, d, axis=axis: net.Slice(
            x, net.const([0]), net.const([1]), net.const([axis])
        )
        built[f"Reverse {axis}"] = lambda net, x, d, axis=axis: net.Slice(
            x, net.const([-1]), net.const([-(2**62)]), net.const([axis]), net.const([-1])
        )
        built[f"Concat {axis}"] = lambda net, x, d, axis=axis: net.Concat(x, net.Neg(x), axis=axis)
        built[f"OneHot {axis}"] = lambda net, x, d, axis=axis: net.node(
            "OneHot", net.Cast(x, to=onnx.TensorProto.INT64), net.const(3), net.const([0.0, 1.0]), axis=axis
        )
    return built


def _products() -> dict[str, Build]:
    """Constants of every rank on either side, and the tensor with itself in all orders of its last axes."""

    def constant(rank: int, first: bool) -> Build:
        def build(net: Net, x: str, d: list[int]) -> str:
            summed = d[max(0, len(d) - 2)] if first else d[-1]
            shape = {1: [summed], 2: [2, summed] if first else [summed, 2]}.get(rank)
            shape = shape or [1, *([2, summed] if first else [summed, 2])]
            other = net.ints(*shape)
            return net.MatMul(other, x) if first else net.MatMul(x, other)

        return build

    built = {f"MatMul rank {r}{' first' * f}": constant(r, f) for r in (1, 2, 3) for f in (False, True)}

    def swapped(net: Net, x: str, d: list[int]) -> str:
        return net.Transpose(x, perm=[*range(len(d) - 2), len(d) - 1, len(d) - 2])

    built["MatMul x x^T"] = lambda net, x, d: net.MatMul(x, swapped(net, x, d))
    built["MatMul x^T x"] = lambda net, x, d: net.MatMul(swapped(net, x, d), x)
    built["Gemm"] = lambda net, x, d: net.node("Gemm", x, net.ints(d[-1], 2), net.ints(1, 2))
    built["Gemm transA"] = lambda net, x, d: net.node("Gemm", x, net.ints(d[0], 2), net.ints(2), transA=1)
    built["Gemm second"] = lambda net, x, d: net.node("Gemm", net.ints(2, d[0]), x)
    built["Gemm second transB"] = lambda net, x, d: net.node("Gemm", net.ints(2, d[-1]), x, net.ints(2, 1), transB=1)
    return built


def _maps() -> dict[str, Build]:
    def kernel(net: Net, d: list[int]) -> str:
        return net.ints(2, d[1], *[2] * (len(d) - 2))

    return {
        "Conv": lambda net, x, d: net.node("Conv", x, kernel(net, d), pads=[1] * (2 * len(d) - 4)),
        "MaxPool": lambda net, x, d: net.MaxPool(x, kernel_shape=[2] * (len(d) - 2), pads=[1] * (2 * len(d) - 4)),
        "AveragePool": lambda net, x, d: net.AveragePool(
            x, kernel_shape=[2] * (len(d) - 2), pads=[1] * (2 * len(d) - 4)
        ),
        "GlobalAveragePool": lambda net, x, d: net.GlobalAveragePool(x),
        "LRN": lambda net, x, d: net.LRN(x, size=3, alpha=1.0),
        "BatchNormalization": lambda net, x, d: net.BatchNormalization(x, *[net.const(np.full(d[1], 0.5))] * 4),
        "InstanceNormalization": lambda net, x, d: net.InstanceNormalization(x, *[net.const(np.full(d[1], 0.5))] * 2),
        "MeanVariance": lambda net, x, d: net.MeanVarianceNormalization(x, axes=[0, 2]),
        "Trilu": lambda net, x, d: net.Trilu(x),
        "LSTM": lambda net, x, d: net.node(
            "LSTM", x, net.ints(1, 8, d[2]), net.ints(1, 8, 2), outputs=3, hidden_size=2
        )[0],
        "GRU, last": lambda net, x, d: net.node(
            "GRU", x, net.ints(1, 6, d[2]), net.ints(1, 6, 2), outputs=2, hidden_size=2
        )[1],
        "Einsum keeps": lambda net, x, d: net.node("Einsum", x, net.ints(d[-1], 2), equation="abc,cd->adb"),
        "Einsum with itself": lambda net, x, d: net.node("Einsum", x, x, equation="abc,abd->acd"),
        "Einsum crosses": lambda net, x, d: net.node("Einsum", x, x, equation="abc,dbc->ad"),
    }


def _shapes() -> dict[str, Build]:
    return {
        "Transpose": lambda net, x, d: net.Transpose(x),
        "rows": lambda net, x, d: net.Reshape(x, net.const([-1, d[-1]])),
        "columns": lambda net, x, d: net.Reshape(x, net.const([d[0], -1])),
        "a list": lambda net, x, d: net.Reshape(x, net.const([-1])),
        "Tile": lambda net, x, d: net.Tile(x, net.const([1] * (len(d) - 1) + [2])),
        "Unsqueeze": lambda net, x, d: net.Unsqueeze(x, net.const([0, 2])),
        "Pad": lambda net, x, d: net.Pad(x, net.const([0] * (2 * len(d) - 1) + [1])),
        "broadcast": lambda net, x, d: net.Add(x, net.ints(*[1] * (len(d) - 1), d[-1])),
        "added to its transpose": lambda net, x, d: net.Add(
            net.Unsqueeze(x, net.const([0])), net.Unsqueeze(x, net.const([1]))
        ),
        "ReduceMax all": lambda net, x, d: net.node("ReduceMax", x),
        "Split": lambda net, x, d: net.node("Split", x, net.const([1, d[1] - 1]), outputs=2, axis=1)[0],
        "GatherND": lambda net, x, d: net.GatherND(x, net.const([[0]])),
        "GatherElements": lambda net, x, d: net.GatherElements(
            x, net.Cast(net.Relu(net.Sign(x)), to=onnx.TensorProto.INT64), axis=1
        ),
        "ScatterElements": lambda net, x, d: net.ScatterElements(
            x, net.Cast(net.Relu(net.Sign(x)), to=onnx.TensorProto.INT64), net.Neg(x), axis=1
        ),
        "embedding": lambda net, x, d: net.Gather(
            net.ints(3, 2), net.Cast(net.Relu(net.Sign(x)), to=onnx.TensorProto.INT64)
        ),
    }


OPERATORS: dict[str, Build] = {**_axis_ops(), **_products(), **_maps(), **_shapes()}


def walked(model: onnx.ModelProto, place: int) -> Each | str:
    """What the walk says of the output, or the code of its refusal; the images are along `place` of the input."""
    graph = model_io.load(model.SerializeToString()).graph
    shape = tuple(graph.inputs[0].shape)
    try:
        native = infer_shapes(graph, {"x": shape})
    except InferenceError:
        return "no shapes"
    walk = Walk(graph, native, [], images_for(1, native))
    walk.states["x"] = Each(shape, place)
    walk._check_output = lambda output: None  # an output may have its images anywhere here
    try:
        walk.run(RULES, COUNTING, TAKES_COUNTS)
    except Stop as stop:
        return stop.code
    state = walk.state(graph.outputs[0])
    assert isinstance(state, Each)
    return "edited" if walk.edits else state


def separable(many: np.ndarray, each: list[np.ndarray], axis: int, before: int = 1) -> bool:
    """Whether the entries of an axis are (before) images (after), each image as it is by itself."""
    if many.ndim != each[0].ndim:
        return False
    one = each[0].shape[axis]
    want = list(each[0].shape)
    want[axis] = one * len(each)
    if list(many.shape) != want or one % before:
        return False
    split = [*many.shape[:axis], before, len(each), one // before, *many.shape[axis + 1 :]]
    parts = np.moveaxis(many.reshape(split), axis + 1, 0)
    return all(np.allclose(p.reshape(e.shape), e, rtol=1e-4, atol=1e-4) for p, e in zip(parts, each, strict=True))


@pytest.mark.parametrize("name", OPERATORS)
def test_images_along_every_axis(name: str) -> None:
    tried = 0
    for rank in (2, 3, 4):
        for place in range(rank):
            shape = [*SIZES[: rank - 1]]
            shape.insert(place, 1)
            models = []
            try:
                for count in (1, 3):
                    net = Net(*[count if i == place else d for i, d in enumerate(shape)], opset=17)
                    y = OPERATORS[name](net, "x", shape)
                    models.append(net.model(y))
                x = np.random.default_rng(rank).standard_normal([3 if i == place else d for i, d in enumerate(shape)])
                x = x.astype(np.float32)
                parts = np.split(x, 3, axis=place)
                each = [next(iter(run(models[0], {"x": part}).values())) for part in parts]
            except (Fail, InvalidArgument, NotImplemented, RuntimeException, InferenceError, IndexError, ValueError):
                continue  # no such operator at that rank
            found = walked(models[0], place)
            try:
                many = next(iter(run(models[1], {"x": x}).values()))
            except (Fail, InvalidArgument, RuntimeException):
                many = np.zeros(())
            tried += 1
            if isinstance(found, Each):
                assert separable(many, each, found.place, found.before), (rank, place, found)
            elif found in ("open-batch/mixed", "open-batch/counted"):
                fits = [a for a in range(many.ndim) for b in (1, *shape) if separable(many, each, a, b)]
                assert not fits, (rank, place, found, fits)
    assert tried, name
