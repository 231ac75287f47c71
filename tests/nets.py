"""A small net, built node by node, and how it is run: ONNX Runtime on the CPU, without graph optimizations."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]


class Net:
    """A model under construction: `net.Relu(x)` adds a node, `net.model(y)` ends it.

    Args:
        shape: of the image input "x"; strings are symbols.
        opset: also chooses the IR version, the lowest that the opset needs. ir: another one.
    """

    def __init__(
        self, *shape: int | str, opset: int = 13, seed: int = 0, ir: int | None = None, dtype: Any = np.float32
    ):
        self.opset = opset
        self.ir = ir or helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
        self.rng = np.random.default_rng(seed)
        self.dtype = np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.numbers = itertools.count()
        if shape:
            self.input("x", *shape)

    def input(self, name: str, *shape: int | str, dtype: Any = None) -> str:
        """Add an input."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def const(self, values: Any, name: str = "", dtype: Any = None) -> str:
        """Add an initializer; integers given as a Python list are int64, all else is the net's float type."""
        if dtype is None:
            ints = isinstance(values, list | tuple | int) and np.asarray(values).dtype.kind == "i"
            dtype = np.int64 if ints or np.size(values) == 0 else self.dtype
        name = name or f"c{next(self.numbers)}"
        self.initializers[name] = numpy_helper.from_array(np.asarray(values, dtype), name)
        return name

    def numbers_of(self, *shape: int, bound: int = 2) -> Array:
        """Integers in [-bound, bound]."""
        return self.rng.integers(-bound, bound + 1, shape).astype(self.dtype)

    def ints(self, *shape: int, bound: int = 2, name: str = "") -> str:
        """An initializer of integers in [-bound, bound]."""
        return self.const(self.numbers_of(*shape, bound=bound), name)

    def node(self, op: str, *inputs: str, outputs: int | Sequence[str] = 1, name: str = "", **attrs: Any) -> Any:
        """Add a node; returns the name of its output, or a tuple of names."""
        names = [f"t{next(self.numbers)}" for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name or f"{op}_{names[0]}", **attrs))
        return names[0] if len(names) == 1 else tuple(names)

    def __getattr__(self, op: str) -> Any:
        if not op[:1].isupper():
            raise AttributeError(op)
        return functools.partial(self.node, op)

    def conv(
        self, x: str, outputs: int, *kernel: int, group: int = 1, bias: bool = True, bound: int = 2, **attrs: Any
    ) -> str:
        """A Conv; the number of input channels is inferred."""
        weight = self.ints(outputs, self.shape(x)[1] // group, *kernel, bound=bound)
        more = {"group": group} if group > 1 else {}
        return str(self.node("Conv", x, weight, *([self.ints(outputs)] if bias else []), **more, **attrs))

    def fc(self, x: str, outputs: int, **attrs: Any) -> str:
        """A Gemm with transB=1 and a bias on [N, F]."""
        weight = self.ints(outputs, math.prod(self.shape(x)[1:]))
        return str(self.node("Gemm", x, weight, self.ints(outputs), transB=1, **attrs))

    def with_axes(self, op: str, x: str, axes: Sequence[int], *, since: int = 13, **attrs: Any) -> str:
        """An operator whose axes are an attribute below the opset `since` and an input from there on."""
        if self.opset < since:
            return str(self.node(op, x, axes=list(axes), **attrs))
        return str(self.node(op, x, self.const(list(axes)), **attrs))

    def reduce(self, op: str, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        """A reduction over axes."""
        return self.with_axes(op, x, axes, since=13 if op == "ReduceSum" else 18, keepdims=keepdims)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that a tensor has in ONNX Runtime (symbols are 3)."""
        part = self._proto([helper.make_empty_tensor_value_info(name)])
        feeds = {info.name: np.zeros(dims_of(info), self.dtype) for info in self.inputs}
        return tuple(run(part, feeds)[name].shape) if name not in feeds else feeds[name].shape

    def model(self, *outputs: str, shapes: Mapping[str, Sequence[int | str]] | None = None) -> onnx.ModelProto:
        """The finished model; `shapes` are those that its outputs declare, where inference does not find them."""
        inferred = onnx.shape_inference.infer_shapes(self._proto([]), data_prop=True).graph
        found = {info.name: info for info in (*self.inputs, *inferred.value_info)}
        infos = []
        for name in outputs:
            if name not in found:  # behind an operator that onnx has no shape inference for
                found[name] = helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shape(name))
            kind = found[name].type.tensor_type
            known = kind.HasField("shape")
            dims = [d.dim_value or d.dim_param or None for d in kind.shape.dim] if known else self.shape(name)
            infos.append(helper.make_tensor_value_info(name, kind.elem_type, (shapes or {}).get(name, dims)))
        return self._proto(infos)

    def _proto(self, outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        inputs = list(self.inputs)
        if self.ir < 4:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.initializers.values()]
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, list(self.initializers.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=self.ir)


def dims_of(info: onnx.ValueInfoProto) -> list[int]:
    """The shape of an input, with 3 for every symbol."""
    return [d.dim_value or 3 for d in info.type.tensor_type.shape.dim]


def image_and_vectors(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that must be fed."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [info for info in model.graph.input if info.name not in constants]


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """ONNX Runtime on the CPU, without graph optimizations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto | ort.InferenceSession, feeds: Feeds) -> Feeds:
    """All outputs by name."""
    opened = session(model) if isinstance(model, onnx.ModelProto) else model
    wanted = {info.name for info in opened.get_inputs()}
    names = [info.name for info in opened.get_outputs()]
    return dict(zip(names, opened.run(names, {k: v for k, v in feeds.items() if k in wanted}), strict=True))
