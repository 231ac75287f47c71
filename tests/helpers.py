"""Small nets to convert, and a check that nothing about a conversion can slip through.

`Net` builds a model node by node. `check_lifted` converts it with `Fcn` and compares every cell of the result with the
original model on its crop, which is plain slicing and ONNX Runtime on the original: nothing of the pass is used.

Integer nets (small-integer weights and inputs) are compared bit for bit: `assert_exact` makes sure, in float64, that
no sum of |terms| reaches 2**24, so that every float32 sum is exact in whatever order it is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from convrewrite import model_io, timing, verification
from convrewrite.engine.rewrite import Context, Lifting, Pass, PassResult, run_pass
from convrewrite.engine.windows import CutTensor, OutputGrid, Window
from convrewrite.options import BenchOptions, VerifyOptions
from convrewrite.passes.fcn import Fcn
from nets import Array, Feeds, Net, dims_of, image_and_vectors, run, session

__all__ = [
    "Array",
    "Conversion",
    "Feeds",
    "Net",
    "assert_exact",
    "bench",
    "check_lifted",
    "convert",
    "run",
    "session",
    "submodel",
    "verify",
]


def verify(a, b, *, fixed=None, twins=False, least=(0.0, 0.0), tolerance=None, **options):
    """Compare two models; the options by name."""
    how = VerifyOptions(max_output_error=tolerance, **options)
    return verification.verify(a, b, how, fixed=fixed, twins=twins, least=least)


def bench(a, b, **options):
    """Time two models; the options by name."""
    return timing.bench(a, b, BenchOptions(**options))


FCN = Fcn()
INPUT_BOUND = 3
EXACT_BELOW = 2.0**24
ROUNDING = 1e-5


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
        ReduceMax ReduceMin ReduceSum Reshape Shape Sign Slice SpaceToDepth Split Squeeze Sum Tile TopK Transpose
        Unsqueeze Where""".split()
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
    infos = [
        helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None) for name in (*inputs, *outer)
    ]
    results = [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None) for name in outputs]
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


def convert(model: onnx.ModelProto, pass_: Pass = FCN) -> tuple[PassResult, onnx.ModelProto]:
    """Run the pass and check its purity: neither plan nor run_pass changes the graph that they are given."""
    onnx.checker.check_model(model)
    loaded = model_io.load(model.SerializeToString())
    before = _contents(loaded)
    for node in pass_.candidates(loaded.graph):
        pass_.plan(Context.of(loaded.graph), node)
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
    conversion = Conversion(result, result.evidence_of(Lifting).window, result.evidence_of(Lifting).cut, new)
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
            assert (got.shape, got.dtype) == (want.shape, want.dtype), text
            if exact or got.dtype.kind != "f":
                np.testing.assert_array_equal(got, want, err_msg=text)
            else:
                tolerance = ROUNDING * max(1e-30, float(np.abs(want).max(initial=0)))
                np.testing.assert_allclose(got, want, rtol=0, atol=tolerance, err_msg=text)
