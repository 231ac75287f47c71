"""What the tests of passes that trade something share: a pass over a model, and how its result is compared.

ONNX Runtime runs both models, without graph optimizations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from convrewrite import model_io
from convrewrite.acceptance import smaller, with_kernels
from convrewrite.engine import costs
from convrewrite.engine.graph import infer_shapes
from convrewrite.engine.rewrite import Context, Kernels, Pass, PassResult, run_pass
from helpers import Array, Feeds, run

ROUNDING = 2e-6
OPEN = 13
"""What an open extent is fed with."""


def rewrite(
    model: onnx.ModelProto, pass_: Pass, judge: Any = smaller, **known: Any
) -> tuple[PassResult, onnx.ModelProto]:
    """The pass over a model, written and read again; the input is checked to be untouched. known: of `Context.of`."""
    loaded = model_io.load(model.SerializeToString())
    before = model_io.to_bytes(loaded)
    result = run_pass(pass_, loaded.graph, judge=judge, context=Context.of(loaded.graph, **known))
    assert model_io.to_bytes(loaded) == before, "the input was changed"
    made = model_io.Model(result.graph, model.ir_version)
    return result, onnx.load_model_from_string(model_io.to_bytes(made))


def reference_of(model: onnx.ModelProto, result: PassResult) -> onnx.ModelProto:
    """The original with the kernels that a rewrite amounts to."""
    graph = with_kernels(model_io.load(model.SerializeToString()).graph, result.evidence_of(Kernels))
    return onnx.load_model_from_string(model_io.to_bytes(model_io.Model(graph, model.ir_version)))


def macs_of(model: onnx.ModelProto) -> int:
    """Counted by `costs`, which is checked against hand-counted layers elsewhere."""
    graph = model_io.load(model.SerializeToString()).graph
    return costs.graph_macs(graph, infer_shapes(graph, {t.name: t.shape for t in graph.inputs}))


def feeds_of(model: onnx.ModelProto, seed: int = 0) -> Feeds:
    """Standard normal numbers for every input."""
    rng = np.random.default_rng(seed)
    constants = {tensor.name for tensor in model.graph.initializer}
    feeds: Feeds = {}
    for info in model.graph.input:
        if info.name not in constants:
            dims = [d.dim_value or OPEN for d in info.type.tensor_type.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            feeds[info.name] = np.asarray(rng.standard_normal(dims)).astype(dtype)
    return feeds


def assert_same(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    error: float = ROUNDING,
    seed: int = 0,
    feeds: Feeds | None = None,
) -> None:
    """Both give the same in ONNX Runtime."""
    feeds = feeds_of(before, seed) if feeds is None else feeds
    wanted, found = run(before, feeds), run(after, feeds)
    assert list(found) == list(wanted)
    for name, want in wanted.items():
        assert_close(found[name], want, error, name)


def assert_close(got: Array, want: Array, error: float, name: str = "") -> None:
    """The same to a share of the largest entry; what is no number is at the same places; integers are equal."""
    assert (got.shape, got.dtype) == (want.shape, want.dtype), name
    if want.dtype.kind != "f":
        np.testing.assert_array_equal(got, want, err_msg=name)
        return
    wide = want.astype(np.float64)
    peak = float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0))
    np.testing.assert_allclose(got.astype(np.float64), wide, rtol=0, atol=error * peak, err_msg=name)
