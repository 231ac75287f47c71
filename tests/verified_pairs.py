"""Classifiers beside their fully convolutional forms, written down twice by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from convrewrite.engine.windows import CutTensor, OutputGrid, Window
from convrewrite.options import VerifyOptions
from convrewrite.verification import verify_fcn
from convrewrite.verification.verdicts import Verification

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def make_model(nodes, inputs, outputs, weights, opset=13) -> onnx.ModelProto:
    """A model from (op, inputs, outputs, attributes) tuples, {name: shape}, {name: type} and {name: array}."""
    graph = helper.make_graph(
        [helper.make_node(op, i, o, name=f"n{n}", **attributes) for n, (op, i, o, attributes) in enumerate(nodes)],
        "g",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@dataclass(frozen=True)
class Pair:
    """A classifier, its fully convolutional form, and what the metadata says."""

    original: onnx.ModelProto
    converted: onnx.ModelProto
    window: Window
    cut: tuple[CutTensor, ...]

    def verify(self, folder: Path, **options) -> Verification:
        """Write both and verify them; the window goes through its JSON text."""
        onnx.save(self.original, folder / "a.onnx")
        onnx.save(self.converted, folder / "b.onnx")
        window = Window.from_json(self.window.to_json())
        cut, limit = options.pop("cut", self.cut), options.pop("tolerance", None)
        how = VerifyOptions(max_output_error=limit, **options)
        return verify_fcn(folder / "a.onnx", folder / "b.onnx", window, how, cut=cut)


def pair(  # noqa: PLR0915 - one builder, read from top to bottom
    *,
    dims: int = 2,
    pad: int = 0,
    slack: int = 0,
    batch: int | str = "N",
    nhwc: bool = False,
    gap: bool = False,
    second: bool = False,
    final: str = "Softmax",
    gain: float = 1.0,
    fixed: Sequence[int] | None = None,
    baked: bool = False,
) -> Pair:
    """Conv, Relu, MaxPool, Conv, then Flatten + Gemm (or a global average) + `final`, and its convolutional form.

    Args:
        pad: of the first convolution. slack: pixels at the far edge that no convolution reaches.
        gain: factor on the scores (100 saturates the Softmax). fixed: the converted model's one input size.
        baked: a Reshape in the trunk knows the native extents.
    """
    rng = np.random.default_rng(3)
    letters = {1: "L", 2: "HW"}[dims]
    image = tuple(e + slack for e in {1: (24,), 2: (12, 10)}[dims])
    pooled = tuple((e - 2 + 2 * pad) // 2 for e in image)
    cells = tuple(e - 1 for e in pooled)
    weights = {
        "w1": rng.standard_normal((4, 2, *(3,) * dims)) * 0.4,
        "b1": rng.standard_normal(4) * 0.2,
        "w2": rng.standard_normal((5, 4, *(2,) * dims)) * 0.3,
        "b2": rng.standard_normal(5) * 0.2,
        "b3": rng.standard_normal(6) * gain,
        "b4": rng.standard_normal(3),
    }
    fc = rng.standard_normal((6, 5, *((1,) * dims if gap else cells))) * 0.3 * gain
    fc2 = rng.standard_normal((3, 5, *((1,) * dims if gap else cells))) * 0.1
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    fc, fc2 = fc.astype(np.float32), fc2.astype(np.float32)
    channels_last = [0, *range(2, 2 + dims), 1]
    trunk = [("Transpose", ["image"], ["x"], {"perm": [0, dims + 1, *range(1, dims + 1)]})] if nhwc else []
    trunk += [
        ("Conv", ["x" if nhwc else "image", "w1", "b1"], ["c1"], {"pads": [pad] * 2 * dims}),
        ("Relu", ["c1"], ["r1"], {}),
        ("MaxPool", ["r1"], ["p1"], {"kernel_shape": [2] * dims, "strides": [2] * dims}),
    ]
    shuffled = [("Reshape", ["p1", "shape"], ["p2"], {})] if baked else []
    last = [("Conv", ["p2" if baked else "p1", "w2", "b2"], ["features"], {})]
    score = "score" if final else "prob"
    if gap:
        pool = [("GlobalAveragePool", ["features"], ["pooled"], {}), ("Flatten", ["pooled"], ["flat"], {})]
        new_pool = [("AveragePool", ["features"], ["pooled"], {"kernel_shape": cells})]
    elif nhwc:
        pool = [("Transpose", ["features"], ["t"], {"perm": channels_last}), ("Flatten", ["t"], ["flat"], {})]
        new_pool = []
    else:
        pool, new_pool = [("Flatten", ["features"], ["flat"], {})], []
    source = "pooled" if gap else "features"
    matrix = fc.transpose(channels_last) if nhwc and not gap else fc
    matrix2 = fc2.transpose(channels_last) if nhwc and not gap else fc2
    head = [("Gemm", ["flat", "w3", "b3"], [score], {"transB": 1})]
    new_head = [("Conv", [source, "w3", "b3"], [score], {})]
    outputs = {"prob": FLOAT}
    if final == "ArgMax":
        head.append(("ArgMax", [score], ["prob"], {"axis": 1, "keepdims": 0}))
        new_head.append(("ArgMax", [score], ["prob"], {"axis": 1, "keepdims": 1}))
        outputs = {"prob": INT64}
    elif final:
        axis = {} if final == "Sigmoid" else {"axis": 1}
        head.append((final, [score], ["prob"], axis))
        new_head.append((final, [score], ["prob"], axis))
    if second:
        head.append(("Gemm", ["flat", "w4", "b4"], ["box"], {"transB": 1}))
        new_head.append(("Conv", [source, "w4", "b4"], ["box"], {}))
        outputs["box"] = FLOAT
    grid = OutputGrid((2,) * dims, (1,) * dims, ("N",) if final == "ArgMax" else ("N", "C"))
    grids = {"prob": grid} | ({"box": replace(grid, layout=("N", "C"))} if second else {})

    def shape(size: Sequence[int | str]) -> list[int | str]:
        return [batch, *size, 2] if nhwc else [batch, 2, *size]

    def constants(first: np.ndarray, other: np.ndarray, extra: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        used = dict(weights) | {"w3": first} | ({"w4": other} if second else {}) | extra
        return {name: array for name, array in used.items() if second or name != "b4"}

    extra = {"shape": np.array([-1, 4, *pooled])} if baked else {}
    original = make_model(
        trunk + shuffled + last + pool + head,
        {"image": shape(image)},
        outputs,
        constants(matrix.reshape(6, -1), matrix2.reshape(3, -1), extra),
    )
    converted = make_model(
        trunk + ([("Identity", ["p1"], ["p2"], {})] if baked else []) + last + new_pool + new_head,
        {"image": shape(fixed or list(letters))},
        outputs,
        constants(fc, fc2, {}),
    )
    field = tuple(6 + 2 * (c - 1) for c in cells)
    window = Window(
        input="image",
        axes=f"N{letters}C" if nhwc else f"NC{letters}",
        size=image,
        stride=(2,) * dims,
        offset=(0,) * dims,
        receptive_field=field,
        equivalence="native-size" if pad else "windows",
        why="Conv sees zero padding" if pad else "",
        outputs=grids,
    )
    return Pair(original, converted, window, (CutTensor("features", ("N", "C", *letters), cells, (2,) * dims),))


def weight(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)).copy()


def with_weight(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """A copy of a model with one weight changed."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(weight(model, name))), name))
    return result


def with_attribute(model: onnx.ModelProto, op: str, **attributes) -> onnx.ModelProto:
    """A copy of a model with attributes of every `op` changed."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in result.graph.node:
        if node.op_type == op:
            kept = [a for a in node.attribute if a.name not in attributes]
            del node.attribute[:]
            node.attribute.extend(kept)
            node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    return result


EXACT = {
    "valid": {},
    "fixed batch": {"batch": 1},
    "no softmax": {"final": ""},
    "sigmoid": {"final": "Sigmoid"},
    "log-softmax": {"final": "LogSoftmax"},
    "argmax": {"final": "ArgMax"},
    "slack": {"slack": 1},
    "nhwc": {"nhwc": True},
    "two outputs": {"second": True},
    "1-D": {"dims": 1},
    "gap": {"gap": True},
    "saturated": {"gain": 100.0},
    "fixed size": {"fixed": (20, 14)},
    "padded": {"pad": 1},
    "padded gap": {"pad": 1, "gap": True},
    "padded nhwc, two outputs": {"pad": 1, "nhwc": True, "second": True},
    "padded 1-D": {"pad": 1, "dims": 1},
    "padded argmax": {"pad": 1, "final": "ArgMax"},
    "padded, fixed batch and size": {"pad": 1, "batch": 1, "fixed": (16, 18)},
}


def swap_hw(w: np.ndarray) -> np.ndarray:
    return w.reshape(*w.shape[:2], w.shape[3], w.shape[2]).transpose(0, 1, 3, 2)
