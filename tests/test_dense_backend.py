"""The onnx package's own backend cases through the passes that change the form, against ONNX Runtime before.

    dense                     own: every f-th cell of the new outputs are the old ones; strided: the case behind a
                              stride of 2 along the last two axes of its first input: its operator sees a denser map
    fc-to-conv, conv-to-fc    the outputs are the old ones; the second on what the first made
    upsample                  outputs that are maps, brought to the size of the first input, against numpy

A case that is not rewritten must be refused or declined with a known reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
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


def rewritten(model: onnx.ModelProto, pass_: Pass, feeds: Feeds) -> tuple[PassResult, onnx.ModelProto] | str:
    """What a pass makes of a model; or what came of it instead."""
    try:
        loaded = model_io.load(model.SerializeToString())
        shapes = infer_shapes(
            loaded.graph, {t.name: feeds[t.name].shape for t in loaded.graph.inputs if t.name in feeds}
        )
    except (UsageError, onnx.shape_inference.InferenceError):
        return "not read"
    try:
        result = run_pass(pass_, loaded.graph, context=Context.of(loaded.graph, shapes=shapes))
    except UsageError:
        return "not read"
    for site in result.sites:
        assert site.outcome == "rewritten" or site.reason in pass_.reasons
    if not result.changed:
        return "left alone"
    return result, onnx.load_model_from_string(model_io.to_bytes(model_io.Model(result.graph, loaded.ir_version)))


def check_dense(model: onnx.ModelProto, feeds: Feeds) -> str:
    made = rewritten(model, Dense(), feeds)
    if isinstance(made, str):
        return made
    result, new = made
    want, got = run(model, feeds), run(new, feeds)
    for name, values in want.items():
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


def check_same(model: onnx.ModelProto, feeds: Feeds, pass_: Pass) -> str:
    made = rewritten(model, pass_, feeds)
    if isinstance(made, str):
        return made
    want, got = run(model, feeds), run(made[1], feeds)
    for name, values in want.items():
        same(got[name], values, name)
    return "rewritten"


@pytest.mark.parametrize(("kind", "least"), [("own", 25), ("strided", 60)])
def test_dense(kind: str, least: int) -> None:
    counts: Counter[str] = Counter()
    failures = []
    for case in cases():
        for own, feeds in variants("own", case):
            for model, given in with_weights(own, feeds):
                for made, larger in strided(model, given) if kind == "strided" else [(model, given)]:
                    try:
                        run(made, larger)
                    except Exception:
                        counts["does not run"] += 1
                        continue
                    try:
                        counts[check_dense(made, larger)] += 1
                    except Exception as error:  # every case is looked at before the test fails
                        failures.append(f"{case.kind} {case.name}: {type(error).__name__}: {str(error)[:300]}")
    assert not failures, f"{counts}\n" + "\n".join(failures)
    assert counts["rewritten"] >= least, counts


def check_back(model: onnx.ModelProto, feeds: Feeds) -> str:
    """The convolutions of fc-to-conv as products again: its own cases are no convolutions of a whole map."""
    made = rewritten(model, FcToConv(), feeds)
    return made if isinstance(made, str) else check_same(made[1], feeds, ConvToFc)


def check_pixels(model: onnx.ModelProto, feeds: Feeds) -> str:
    name, image = next(iter(feeds.items()), ("", np.zeros(0)))
    want = run(model, feeds)
    cells = {
        output: values
        for output, values in want.items()
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
    made = rewritten(model, lambda shapes: Upsample("bilinear", window=window), feeds)
    if isinstance(made, str):
        return made
    got = run(made[1], feeds)[output]
    same(got, pixels_by_hand(values, window, image.shape[2:], "bilinear").astype(np.float32), output)
    return "rewritten"


PASSES: dict[str, tuple[Callable[[onnx.ModelProto, Feeds], str], int]] = {
    "fc-to-conv": (lambda model, feeds: check_same(model, feeds, FcToConv()), 15),
    "conv-to-fc": (check_back, 12),
    "upsample": (check_pixels, 20),
}
"""What checks a case, and how many are rewritten at the least."""


@pytest.mark.parametrize("name", PASSES)
def test_other_forms(name: str) -> None:
    check, least = PASSES[name]
    counts: Counter[str] = Counter()
    failures = []
    for case in cases():
        for own, feeds in variants("own", case):
            for model, given in with_weights(own, feeds):
                try:
                    run(model, given)
                except Exception:
                    counts["does not run"] += 1
                    continue
                try:
                    counts[check(model, given)] += 1
                except Exception as error:  # every case is looked at before the test fails
                    failures.append(f"{case.kind} {case.name}: {type(error).__name__}: {str(error)[:300]}")
    assert not failures, f"{counts}\n" + "\n".join(failures)
    assert counts["rewritten"] >= least, counts
