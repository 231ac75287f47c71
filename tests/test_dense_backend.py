"""The onnx package's own backend cases through the passes that change the form, against ONNX Runtime before.

    dense                     own: every f-th cell of the new outputs are the old ones; strided: the case behind a
                              stride of 2 along the last two axes of its first input: its operator sees a denser map
    fc-to-conv, conv-to-fc    the outputs are the old ones; the second on what the first made
    upsample                  outputs that are maps, brought to the size of the first input, against numpy

A case that is not rewritten must be refused or declined with a known reason.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from test_backend_cases import cases, variants
from test_traded_backend import with_weights

from convrewrite import model_io
from convrewrite.engine.graph import infer_shapes
from convrewrite.engine.rewrite import Context, Density, Pass, PassResult, run_pass
from convrewrite.engine.windows import OutputGrid, Window
from convrewrite.errors import UsageError
from convrewrite.passes.conv_to_fc import ConvToFc
from convrewrite.passes.dense import Dense
from convrewrite.passes.fc_to_conv import FcToConv
from convrewrite.passes.upsample import Upsample
from helpers import Feeds, run
from oracles import pixels_by_hand

pytestmark = pytest.mark.slow

ROUNDING = 1e-4


def strided(model: onnx.ModelProto, feeds: Feeds) -> Iterator[tuple[onnx.ModelProto, Feeds]]:
    """The model with a stride of 2 ahead of its image, which is twice as large."""
    name, array = next(iter(feeds.items()), ("", np.zeros(0)))
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if array.dtype != np.float32 or array.ndim != 4 or min(array.shape[2:]) < 2 or opset < 10:
        return
    made = onnx.ModelProto()
    made.CopyFrom(model)
    larger = [*array.shape[:2], *(2 * extent - 1 for extent in array.shape[2:])]
    for index, info in enumerate(made.graph.input):
        if info.name == name:
            made.graph.input[index].CopyFrom(helper.make_tensor_value_info("the_image", TensorProto.FLOAT, larger))
    pool = helper.make_node("MaxPool", ["the_image"], [name], kernel_shape=[1, 1], strides=[2, 2], name="the_stride")
    made.graph.node.insert(0, pool)
    image = np.random.default_rng(0).permutation(np.resize(array.ravel(), np.prod(larger))).reshape(larger)
    image[:, :, ::2, ::2] = array
    others = {other: value for other, value in feeds.items() if other != name}
    yield made, {"the_image": image.astype(np.float32), **others}


@dataclass(frozen=True)
class Case:
    """A model that ONNX Runtime runs, read once for all passes: `run_pass` does not change the graph that it is given.

    Attributes:
        wanted: what ONNX Runtime gives. loaded, context: None where the reader refuses it.
    """

    label: str
    model: onnx.ModelProto
    feeds: Feeds
    wanted: Feeds
    loaded: model_io.Model | None
    context: Context | None


def case_of(label: str, model: onnx.ModelProto, feeds: Feeds) -> Case | None:
    """A model as a case; None where ONNX Runtime does not run it."""
    try:
        wanted = run(model, feeds)
    except Exception:  # the exception classes of ONNX Runtime share no base but Exception
        return None
    try:
        loaded = model_io.load(model.SerializeToString())
        given = {t.name: feeds[t.name].shape for t in loaded.graph.inputs if t.name in feeds}
        context = Context.of(loaded.graph, shapes=infer_shapes(loaded.graph, given))
        return Case(label, model, feeds, wanted, loaded, context)
    except (UsageError, onnx.shape_inference.InferenceError):
        return Case(label, model, feeds, wanted, None, None)


@functools.cache
def own_cases() -> tuple[Case | None, ...]:
    """Every case as it is, and with all inputs but the first as weights."""
    return tuple(case_of(*one) for one in models())


@pytest.fixture(scope="module", autouse=True)
def read() -> None:
    own_cases()


def models() -> Iterator[tuple[str, onnx.ModelProto, Feeds]]:
    for case in cases():
        for own, feeds in variants("own", case):
            for model, given in with_weights(own, feeds):
                yield f"{case.kind} {case.name}", model, given


def strided_cases() -> Iterator[Case | None]:
    for label, model, feeds in models():
        for made, larger in strided(model, feeds):
            yield case_of(label, made, larger)


def check_all(found: Iterable[Case | None], check: Callable[[Case], str], least: int) -> None:
    """Look at every case before the test fails; `least` of them must be rewritten."""
    counts: Counter[str] = Counter()
    failures = []
    for case in found:
        try:
            counts["does not run" if case is None else check(case)] += 1
        except Exception as error:
            failures.append(f"{case and case.label}: {type(error).__name__}: {str(error)[:300]}")
    assert not failures, f"{counts}\n" + "\n".join(failures)
    assert counts["rewritten"] >= least, counts


def rewritten(case: Case, pass_: Pass) -> tuple[PassResult, onnx.ModelProto] | str:
    """What a pass makes of a model; or what came of it instead."""
    if case.loaded is None:
        return "not read"
    try:
        result = run_pass(pass_, case.loaded.graph, context=case.context)
    except UsageError:
        return "not read"
    for site in result.sites:
        assert site.outcome == "rewritten" or site.reason in pass_.reasons
    if not result.changed:
        return "left alone"
    made = model_io.Model(result.graph, case.loaded.ir_version)
    return result, onnx.load_model_from_string(model_io.to_bytes(made))


def check_dense(case: Case) -> str:
    made = rewritten(case, Dense())
    if isinstance(made, str):
        return made
    result, new = made
    got = run(new, case.feeds)
    for name, values in case.wanted.items():
        steps = result.evidence_of(Density).factors.get(name, {})
        cells = got[name][tuple(slice(None, None, steps.get(dim, 1)) for dim in range(values.ndim))]
        same(cells, values, name)
    return "rewritten"


def same(got: Any, want: Any, name: str) -> None:
    assert (got.shape, got.dtype) == (want.shape, want.dtype), name
    if want.dtype.kind != "f":
        np.testing.assert_array_equal(got, want)
    else:
        finite = np.isfinite(want)
        peak = float(np.abs(want[finite]).max(initial=0))
        assert np.array_equal(np.isfinite(got), finite)
        assert float(np.abs(got[finite] - want[finite]).max(initial=0)) <= ROUNDING * max(peak, 1e-30), name


def check_same(case: Case, pass_: Pass) -> str:
    made = rewritten(case, pass_)
    if isinstance(made, str):
        return made
    got = run(made[1], case.feeds)
    for name, values in case.wanted.items():
        same(got[name], values, name)
    return "rewritten"


@pytest.mark.parametrize(("kind", "least"), [("own", 25), ("strided", 60)])
def test_dense(kind: str, least: int) -> None:
    check_all(own_cases() if kind == "own" else strided_cases(), check_dense, least)


def check_back(case: Case) -> str:
    """The convolutions of fc-to-conv as products again: its own cases are no convolutions of a whole map."""
    made = rewritten(case, FcToConv())
    if isinstance(made, str):
        return made
    convolutions = case_of(case.label, made[1], case.feeds)
    assert convolutions is not None
    return check_same(convolutions, ConvToFc())


def check_pixels(case: Case) -> str:
    name, image = next(iter(case.feeds.items()), ("", np.zeros(0)))
    cells = {
        output: values
        for output, values in case.wanted.items()
        if image.ndim == 4 == values.ndim
        and values.dtype == np.float32
        and np.isfinite(values).all()
        and all(0 < cell <= pixel <= 32 for cell, pixel in zip(values.shape[2:], image.shape[2:], strict=True))
    }
    if not cells:
        return "no map"
    output, values = next(iter(cells.items()))
    size = tuple(pixel - cell + 1 for cell, pixel in zip(values.shape[2:], image.shape[2:], strict=True))
    window = Window(name, "NCHW", size, (1, 1), (0, 0), size, "windows", outputs={output: OutputGrid((1, 1), (1, 1))})
    made = rewritten(case, Upsample("bilinear", window=window))
    if isinstance(made, str):
        return made
    got = run(made[1], case.feeds)[output]
    same(got, pixels_by_hand(values, window, image.shape[2:], "bilinear").astype(np.float32), output)
    return "rewritten"


PASSES: dict[str, tuple[Callable[[Case], str], int]] = {
    "fc-to-conv": (lambda case: check_same(case, FcToConv()), 15),
    "conv-to-fc": (check_back, 12),
    "upsample": (check_pixels, 20),
}
"""What checks a case, and how many are rewritten at the least."""


@pytest.mark.parametrize("name", PASSES)
def test_other_forms(name: str) -> None:
    check, least = PASSES[name]
    check_all(own_cases(), check, least)
