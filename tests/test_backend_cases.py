"""The onnx package's own backend cases through the pass: what ONNX Runtime passes before must pass after.

    own        the case as it is; below opset 7 also brought to opset 13
    head       the case with a fully connected layer behind its first output, so that its operator is a trunk; all
               inputs but the first become weights

Each is converted twice, with graphsurgeon alone and through the project's reader and writer. It must be rewritten to
the same function (on larger images too), declined or refused with a known reason; the reader may refuse it as input.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, version_converter

import oracles
from convrewrite.engine.rewrite import Site, run_pass
from convrewrite.errors import UsageError
from convrewrite.passes.fcn import Fcn
from helpers import Array, Feeds, run

pytestmark = pytest.mark.slow

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
CHUNKS = 4
ROUNDING = 1e-5
IR_VERSION = 10
CLASSES = 3

COUNTED = ("seen", "passing", "rewritten", "declined", "refused", "not read")
EXPECTED = {
    ("own", 0): (506, 395, 2, 154, 239, 12),
    ("own", 1): (506, 387, 3, 170, 214, 11),
    ("own", 2): (506, 388, 3, 158, 226, 10),
    ("own", 3): (506, 390, 3, 179, 208, 10),
    ("head", 0): (506, 200, 97, 0, 103, 2),
    ("head", 1): (506, 196, 95, 0, 101, 3),
    ("head", 2): (506, 197, 90, 0, 107, 4),
    ("head", 3): (506, 205, 94, 0, 111, 2),
}
"""Counts with onnx 1.23.2 and ONNX Runtime 1.31."""


@functools.cache
def cases() -> tuple[Any, ...]:
    """All cases whose model and data come with the onnx package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        found = [case for kind in KINDS for case in load_model_tests(kind=kind)]
    return tuple(sorted(found, key=lambda case: (case.kind, case.name)))


def model_of(case: Any) -> onnx.ModelProto:
    """The model of a case, with an IR version that ONNX Runtime reads."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model if case.model is not None else onnx.load(Path(case.model_dir) / "model.onnx"))
    model.ir_version = max(4, min(model.ir_version, IR_VERSION))
    return model


def data_of(case: Any, model: onnx.ModelProto) -> tuple[Feeds, list[Array]] | None:
    """Inputs by name and the expected outputs, or None where they are not all tensors."""
    constants = {tensor.name for tensor in model.graph.initializer}
    infos = [info for info in model.graph.input if info.name not in constants]
    if any(not info.type.HasField("tensor_type") for info in (*infos, *model.graph.output)):
        return None
    if case.data_sets is not None:
        inputs, outputs = case.data_sets[0]
    else:
        inputs, outputs = _read(Path(case.model_dir) / "test_data_set_0")
    if len(inputs) != len(infos):
        return None
    feeds = {info.name: np.asarray(value) for info, value in zip(infos, inputs, strict=True)}
    return feeds, [np.asarray(value) for value in outputs]


def _read(folder: Path) -> tuple[list[Array], list[Array]]:
    found: list[list[Array]] = []
    for kind in ("input", "output"):
        tensors = [
            TensorProto.FromString((folder / f"{kind}_{i}.pb").read_bytes()) for i in range(_count(folder, kind))
        ]
        found.append([numpy_helper.to_array(tensor) for tensor in tensors])
    return found[0], found[1]


def _count(folder: Path, kind: str) -> int:
    return len(list(folder.glob(f"{kind}_*.pb")))


def outputs_before(model: onnx.ModelProto, feeds: Feeds) -> Feeds | None:
    """What ONNX Runtime gives for the original; None where it does not run it."""
    try:
        return run(model, feeds)
    except Exception:  # the exception classes of ONNX Runtime share no base but Exception
        return None


def passes_before(case: Any, values: Feeds | None, expected: list[Array]) -> bool:
    """Whether ONNX Runtime gives what the case expects."""
    if values is None or len(values) != len(expected):
        return False
    try:
        for got, want in zip(values.values(), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=case.rtol, atol=case.atol)
    except (AssertionError, TypeError, ValueError):
        return False
    return True


def upgraded(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model at opset 13, or None where the converter of the onnx package does not take it there."""
    try:
        return version_converter.convert_version(model, 13)
    except (RuntimeError, ValueError):
        return None


def with_head(model: onnx.ModelProto, feeds: Feeds, values: Feeds) -> onnx.ModelProto | None:
    """The model with Flatten and MatMul behind its first output; None where that is no batch of float maps.

    Args:
        feeds: its inputs; all but the first become weights. values: its outputs.
    """
    name, first = next(iter(values.items()))
    if first.dtype != np.float32 or first.ndim < 3 or first.size == 0:
        return None
    features = math.prod(first.shape[1:])
    weight = np.random.default_rng(0).standard_normal((features, CLASSES)).astype(np.float32)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {name: numpy_helper.from_array(feeds[name], name) for name in list(feeds)[1:]}
    kept = [info for info in graph.input if info.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)
    graph.initializer.extend(weights.values())
    graph.node.append(helper.make_node("Flatten", [name], ["head/flat"], name="head/flat", axis=1))
    graph.node.append(helper.make_node("MatMul", ["head/flat", "head/weight"], ["head/classes"], name="head/fc"))
    graph.initializer.append(numpy_helper.from_array(weight, "head/weight"))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("head/classes", TensorProto.FLOAT, [first.shape[0], CLASSES]))
    return result


def variants(form: str, case: Any) -> Iterator[tuple[onnx.ModelProto, Feeds]]:
    """The models of a case that ONNX Runtime passes before, with inputs."""
    model = model_of(case)
    data = data_of(case, model)
    if data is None:
        return
    feeds, expected = data
    old = next((o.version for o in model.opset_import if o.domain == ""), 7) < 7
    for candidate in (model, upgraded(model) if old else None):
        values = outputs_before(candidate, feeds) if candidate is not None else None
        if candidate is None or not passes_before(case, values, expected):
            continue
        if form == "own":
            yield candidate, feeds
        elif not (old and candidate is model):
            headed = with_head(candidate, feeds, values or {})
            image = dict(list(feeds.items())[:1])
            if headed is not None and outputs_before(headed, image) is not None:
                yield headed, image


def check(model: onnx.ModelProto, feeds: Feeds) -> list[str]:
    """Convert a model both ways; returns what it counts as."""
    result = run_pass(Fcn(), oracles.import_graph(model))
    if not feeds:
        assert not result.sites
        return []
    try:
        made = oracles.lift(model)
    except UsageError:
        made = None
    if not result.changed:
        site = oracles.left_alone(result)
        assert made is None or (isinstance(made, Site) and made.outcome == site.outcome), (made, site)
        return [site.outcome] + ["not read"] * (made is None)
    for one in (oracles.opened(model, oracles.export_graph(result, model), result), made):
        if one is None:
            continue
        assert not isinstance(one, Site), one
        oracles.check_native(one, feeds, ROUNDING)
        if "N" in one.window.axes or len(feeds) == 1:
            check_larger(one, feeds)
    return ["rewritten"] + ["not read"] * (made is None)


def check_larger(made: oracles.Lift, feeds: Feeds) -> None:
    """Compare on a larger image: with the crops where `windows` is claimed, else with trunk and head."""
    positions = (2, 3, 2)[: len(made.window.size)]
    native = feeds[made.window.input]
    shape = oracles.image_shape(made.window, native.shape, made.window.image_size(positions))
    rng = np.random.default_rng(1)

    def numbers(shape: tuple[int, ...]) -> Array:
        return rng.choice(native.reshape(-1), shape)

    larger = oracles.resized(made, feeds, numbers(shape))
    if made.window.equivalence == "windows":
        oracles.check_windows(made, larger, positions, ROUNDING, numbers)
    elif made.cut:
        try:
            oracles.check_trunk_and_head(made, larger, positions, ROUNDING)
        except oracles.NoTrunk:
            return  # the original's own trunk does not run there, so that it says nothing


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("form", ["own", "head"])
def test_backend_cases(form: str, chunk: int) -> None:
    """Rewritten to the same function, or left alone with a reason; and as many of each as there were."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for case in cases()[chunk::CHUNKS]:
        counts["seen"] += 1
        for model, feeds in variants(form, case):
            counts["passing"] += 1
            try:
                counts.update(check(model, feeds))
            except Exception as error:  # every case is looked at before the test fails
                failures.append(f"{case.kind} {case.name}: {type(error).__name__}: {error}")
    found = tuple(counts[name] for name in COUNTED)
    assert not failures, "\n".join(failures)
    expected = EXPECTED[form, chunk]
    if (onnx.__version__, ort.__version__[:4]) == ("1.23.2", "1.31"):
        assert dict(zip(COUNTED, found, strict=True)) == dict(zip(COUNTED, expected, strict=True))
    assert counts["seen"] >= 300, counts
    assert counts["passing"] >= 0.5 * expected[1], counts
    assert counts["rewritten"] >= 0.5 * expected[2], counts
