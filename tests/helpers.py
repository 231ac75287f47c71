"""Small nets to convert, and a check that nothing about a conversion can slip through.

`Net` builds a model node by node. `check_lifted` converts it with `Fcn` and compares every cell of the result with the
original model on its crop, which is plain slicing and ONNX Runtime on the original: nothing of the pass is used.

Integer nets (small-integer weights and inputs) are compared bit for bit: `assert_exact` makes sure, in float64, that
no sum of |terms| reaches 2**24, so that every float32 sum is exact in whatever order it is taken.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from convrewrite import model_io
from convrewrite.passes.fcn import Fcn
from convrewrite.rewrite import PassResult, run_pass
from convrewrite.windows import CutTensor, OutputGrid, Window

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

INPUT_BOUND = 3
EXACT_BELOW = 2.0**24
ROUNDING = 1e-5


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


# Exactness ----------------------------------------------------------------------------------------------------------

AVERAGES = frozenset("AveragePool GlobalAveragePool ReduceMean".split())
ABSOLUTE = {"Sub": "Add", "Neg": "Identity", "Min": "Max", "Relu": "Identity", "Clip": "Identity", "PRelu": "Identity"}
"""What bounds the size of an operator's result, given the sizes of its operands."""

EXACT_OPERATORS = (
    AVERAGES
    | frozenset(ABSOLUTE)
    | frozenset(
        """Abs Add ArgMax ArgMin Cast Concat Constant ConstantOfShape Conv ConvTranspose DepthToSpace DequantizeLinear
        Dropout Equal Expand Flatten Gather Gemm GlobalMaxPool Greater Identity Less MatMul Max MaxPool Mul Pad
        ReduceMax ReduceMin ReduceSum Reshape Shape Sign Slice SpaceToDepth Split Squeeze Sum Tile Transpose Unsqueeze
        Where""".split()
    )
)


def assert_exact(model: onnx.ModelProto) -> None:
    """Assert that every float32 sum of an integer net is exact: in float64, no sum of |terms| reaches 2**24."""
    values: dict[str, Array] = {t.name: _size_of(numpy_helper.to_array(t)) for t in model.graph.initializer}
    for info in image_and_vectors(model):
        values[info.name] = np.full(dims_of(info), float(INPUT_BOUND))
    unit = 1.0
    for node in model.graph.node:
        assert node.op_type in EXACT_OPERATORS, f"{node.op_type} rounds: call check_lifted with exact=False"
        if node.op_type in AVERAGES:
            area = _area(node, values)
            assert area & (area - 1) == 0, f"the mean of {area} cells rounds: call check_lifted with exact=False"
            unit *= area
        for name, result in zip(filter(None, node.output), _bound(node, values, model.opset_import), strict=False):
            values[name] = _size_of(np.asarray(result))
            top = values[name].max(initial=0.0) * unit if values[name].dtype == np.float64 else 0.0
            assert top < EXACT_BELOW, f"sums of |terms| at '{name}' reach {top}: not exact in float32"


def _size_of(values: Array) -> Array:
    return np.abs(values).astype(np.float64) if values.dtype.kind == "f" else values


def _bound(node: onnx.NodeProto, values: Mapping[str, Array], opsets: Any) -> Sequence[Any]:
    proto = onnx.NodeProto()
    proto.CopyFrom(node)
    proto.op_type = ABSOLUTE.get(node.op_type, node.op_type)
    if proto.op_type == "Identity":
        del proto.input[1:]
        del proto.attribute[:]
    feeds = {name: values[name] for name in proto.input if name}
    infos = [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), None) for k, v in feeds.items()]
    results = [helper.make_empty_tensor_value_info(name) for name in proto.output if name]
    graph = helper.make_graph([proto], "node", infos, results)
    if node.op_type == "MaxPool":  # it picks, and the reference evaluator has faults with pads
        opsets = [helper.make_opsetid("", 13)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    if node.op_type == "MaxPool":
        return list(run(model, feeds).values())
    return list(ReferenceEvaluator(model).run(None, feeds))


def _area(node: onnx.NodeProto, values: Mapping[str, Array]) -> int:
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    shape = values[node.input[0]].shape
    if node.op_type == "AveragePool":
        return math.prod(attrs["kernel_shape"])
    if node.op_type == "GlobalAveragePool":
        return math.prod(shape[2:])
    axes = attrs.get("axes") or (values[node.input[1]].tolist() if len(node.input) > 1 else range(len(shape)))
    return math.prod(shape[axis] for axis in axes)


# Running ------------------------------------------------------------------------------------------------------------


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


def submodel(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """The nodes between some tensors and others, as a model whose inputs have types but no shapes."""
    made = {name: node for node in model.graph.node for name in node.output}
    needed: set[int] = set()
    pending, given = list(outputs), set(inputs)
    while pending:
        name = pending.pop()
        if name in made and name not in given and id(made[name]) not in needed:
            needed.add(id(made[name]))
            pending += made[name].input
    nodes = [node for node in model.graph.node if id(node) in needed]
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {i.name: i.type.tensor_type.elem_type for i in (*inferred.value_info, *inferred.input, *inferred.output)}
    read = {name for node in nodes for name in node.input}
    outer = [i.name for i in image_and_vectors(model) if i.name in read and i.name not in inputs]
    infos = [helper.make_tensor_value_info(name, kinds[name], None) for name in (*inputs, *outer)]
    results = [helper.make_tensor_value_info(name, kinds[name], None) for name in outputs]
    graph = helper.make_graph(nodes, "part", infos, results, list(model.graph.initializer))
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=max(model.ir_version, 4))


# Lifting ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conversion:
    """What `check_lifted` made and checked."""

    result: PassResult
    window: Window
    cut: tuple[CutTensor, ...]
    model: onnx.ModelProto

    @property
    def operators(self) -> list[str]:
        """Operators of the converted model, in order."""
        return [node.op_type for node in self.model.graph.node]


def convert(model: onnx.ModelProto, pass_: Fcn = Fcn()) -> tuple[PassResult, onnx.ModelProto]:
    """Run the pass and check its purity: neither plan nor run_pass changes the graph that they are given."""
    onnx.checker.check_model(model)
    loaded = model_io.load(model.SerializeToString())
    before = _contents(loaded)
    for node in pass_.candidates(loaded.graph):
        pass_.plan(loaded.graph, node)
    assert _contents(loaded) == before, "plan changed the graph"
    result = run_pass(pass_, loaded.graph)
    assert _contents(loaded) == before, "run_pass changed its input"
    new = replace(loaded, graph=result.graph, metadata={**loaded.metadata, **result.metadata})
    return result, onnx.load_from_string(model_io.to_bytes(new))


def _contents(model: model_io.Model) -> bytes:
    """What a save would write, with every tensor stored in one way (a weight that was read is stored as raw data)."""
    proto = onnx.load_from_string(model_io.to_bytes(model))
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return proto.SerializeToString(deterministic=True)


def check_lifted(
    model: onnx.ModelProto,
    *,
    equivalence: str = "windows",
    exact: bool = True,
    window: tuple[int, ...] | None = None,
    size: tuple[int, ...] | None = None,
    oracle: bool = True,
    aligned: int = 1,
    seed: int = 0,
) -> Conversion:
    """Convert a model and compare every cell of every output with the original.

    Args:
        equivalence: the claim that is expected. exact: an integer net, compared bit for bit.
        window, size: options of the pass.
        oracle: a native-size model is compared on larger images with its own trunk, then its own head; False where
            its trunk does not run on them. aligned: larger images grow by multiples of this many strides.
    """
    if exact:
        assert_exact(model)
    result, new = convert(model, Fcn(window=window, size=size))
    assert result.changed, f"not rewritten: {result}"
    conversion = Conversion(result, result.evidence["window"], result.evidence["cut"], new)
    onnx.checker.check_model(new)
    claim = conversion.window
    assert claim == Window.from_json(result.metadata["convrewrite.window"])
    assert claim.equivalence == equivalence, claim
    assert bool(claim.why) == (equivalence == "native-size"), claim
    again, _ = convert(new)
    assert not again.changed, f"converted twice: {again}"
    for case in _cases(model, conversion, size, aligned if oracle else 0, seed):
        _compare(case, exact)
    return conversion


@dataclass(frozen=True)
class _Case:
    """One image: what the converted model gave, and for each window what the original says."""

    window: Window
    label: str
    values: Feeds
    wanted: Mapping[tuple[int, ...], Feeds]
    positions: tuple[int, ...]


def _cases(model: onnx.ModelProto, made: Conversion, size: Any, aligned: int, seed: int) -> Iterator[_Case]:
    claim = made.window
    old, new = session(model), session(made.model)
    rank = len(claim.size)
    counts = [(1,) * rank]
    if claim.equivalence == "windows" or aligned:
        counts += [tuple((n - 1) * aligned + 1 for n in more[:rank]) for more in ((3, 2, 2), (1, 4, 1))]
    if size:
        counts = [claim.positions(size)]
    for index, positions in enumerate(counts):
        image_size = size or claim.image_size(positions)
        feeds = _feeds(model, claim, image_size, seed + index)
        label = f"image {image_size}, {positions} windows, seed {seed + index}"
        values = run(new, feeds)
        everywhere = list(np.ndindex(*positions))
        if claim.equivalence == "windows" or image_size == claim.size:
            wanted = {p: run(old, feeds | {claim.input: _crop(claim, feeds[claim.input], p)}) for p in everywhere}
        else:
            wanted = _trunk_then_head(model, made, feeds, everywhere)
        yield _Case(claim, label, values, wanted, tuple(positions))


def _feeds(model: onnx.ModelProto, claim: Window, image_size: Sequence[int], seed: int) -> Feeds:
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for info in image_and_vectors(model):
        kind = info.type.tensor_type
        dims = dims_of(info)
        if info.name == claim.input:
            for letter, extent in zip(claim.letters, image_size, strict=True):
                dims[claim.axes.index(letter)] = extent
        values = rng.integers(-INPUT_BOUND, INPUT_BOUND + 1, dims)
        feeds[info.name] = values.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feeds


def _crop(claim: Window, image: Array, position: Sequence[int]) -> Array:
    cut = [slice(None)] * image.ndim
    for letter, at, stride, size, first in zip(
        claim.letters, position, claim.stride, claim.size, claim.offset, strict=True
    ):
        cut[claim.axes.index(letter)] = slice(first + at * stride, first + at * stride + size)
    return image[tuple(cut)]


def _trunk_then_head(
    model: onnx.ModelProto, made: Conversion, feeds: Feeds, positions: Sequence[tuple[int, ...]]
) -> dict[tuple[int, ...], Feeds]:
    """The original's trunk on the whole image, then the original's head on every window of its feature maps."""
    assert made.cut, "no cut is given, so nothing can be compared on larger images"
    names = [tensor.name for tensor in made.cut]
    features = run(submodel(model, [made.window.input], names), feeds)
    head = session(submodel(model, names, [info.name for info in model.graph.output]))
    native = feeds | {made.window.input: _crop(made.window, feeds[made.window.input], (0,) * len(made.window.size))}
    wanted = {}
    for position in positions:
        parts: Feeds = {}
        for tensor in made.cut:
            cut = [slice(None)] * features[tensor.name].ndim
            for axis, letter in enumerate(tensor.layout):
                if letter in made.window.letters:
                    place = made.window.letters.index(letter)
                    start = position[place] * made.window.stride[place] // tensor.stride[place]
                    cut[axis] = slice(start, start + tensor.size[place])
            parts[tensor.name] = features[tensor.name][tuple(cut)]
        wanted[position] = run(head, native | parts)
    return wanted


def _as_cells(values: Array, grid: OutputGrid, letters: str) -> Array:
    """The original's output as [N, K, *spatial]: its axes taken apart, put in order, channels joined."""
    spatial = dict(zip(letters, grid.size, strict=True))
    names: list[str] = []
    dims: list[int] = []
    for text, extent in zip(grid.layout, values.shape, strict=True):
        own = {letter: spatial[letter] for letter in text if letter in spatial}
        rest = [letter for letter in text if letter not in spatial]
        assert len(rest) <= 1, f"axis {text!r} cannot be taken apart"
        for letter in text:
            names.append(letter)
            dims.append(own.get(letter, extent // math.prod(own.values())))
    apart = values.reshape(dims or (1,))
    names = names or ["C"]
    order = [i for letter in ("N", "C", *letters) for i, name in enumerate(names) if name == letter]
    apart = apart.transpose(order)
    batch = dims[names.index("N")] if "N" in names else 1
    return apart.reshape(batch, -1, *grid.size)


def _compare(case: _Case, exact: bool) -> None:
    window = case.window
    for name, values in case.values.items():
        if name not in window.outputs:
            want = next(iter(case.wanted.values()))[name]
            np.testing.assert_array_equal(values, want, err_msg=f"output '{name}', {case.label}")
            continue
        grid = window.outputs[name]
        steps = [whole // own for whole, own in zip(window.stride, grid.stride, strict=True)]
        extents = [n + (count - 1) * s for n, count, s in zip(grid.size, case.positions, steps, strict=True)]
        assert list(values.shape[2:]) == extents, f"output '{name}' is {values.shape}, {case.label}"
        for position, outputs in case.wanted.items():
            want = _as_cells(outputs[name], grid, window.letters)
            cut = tuple(slice(p * s, p * s + n) for p, s, n in zip(position, steps, grid.size, strict=True))
            got = values[(slice(None), slice(None), *cut)]
            text = f"output '{name}' at window {position}, {case.label}"
            assert got.shape == want.shape and got.dtype == want.dtype, f"{text}: {got.shape} {want.shape}"
            if exact or got.dtype.kind != "f":
                np.testing.assert_array_equal(got, want, err_msg=text)
            else:
                tolerance = ROUNDING * max(1e-30, float(np.abs(want).max(initial=0)))
                np.testing.assert_allclose(got, want, rtol=0, atol=tolerance, err_msg=text)
