"""Verification: exact rewrites pass, each planted fault fails, and what says nothing is called vacuous.

The pairs are built by hand: a classifier and the fully convolutional form that a person would write for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from convrewrite.cli.words import FLAGS
from convrewrite.engine.windows import CutTensor, OutputGrid, Window
from convrewrite.errors import CheckFailed, UsageError
from convrewrite.options import VerifyOptions
from convrewrite.running.sampling import InputSpec, cut_data, read_data
from convrewrite.text import told
from convrewrite.verification import verify_fcn
from convrewrite.verification.comparison import Ledger, floor, relative_error
from convrewrite.verification.verdicts import Verification
from exported import NETWORKS
from helpers import verify

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


@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT.keys())
def test_an_exact_conversion_is_verified(tmp_path, options):
    result = pair(**options).verify(tmp_path)
    assert result.verdict == "verified", result.message()
    assert result.passed
    assert result.message() == ""
    result.check()
    names = " | ".join(case.name for case in result.cases if case.status == "passed")
    assert ("native size" in names) == ("fixed" not in options)
    assert ("original's trunk and head at" if options.get("pad") else "every window of") in names
    assert (result.deviation is not None) == bool(options.get("pad"))
    if options.get("final", "Softmax"):
        assert any("(before " in case.output and case.status == "passed" for case in result.cases)
    assert ("cells past the last window" in names) == bool(options.get("slack"))
    skipped = [case for case in result.cases if case.status == "skipped"]
    assert len(skipped) == ("fixed" in options), skipped
    assert all(case.note for case in skipped)


def test_the_report_is_json_and_the_summary_readable(tmp_path):
    result = pair(pad=1).verify(tmp_path, samples=2, seed=5)
    report = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert report["verdict"] == "verified"
    assert report["passed"] is True
    assert {"name", "output", "error", "tolerance", "noise", "place", "figures", "status", "seed"} <= set(
        report["cases"][0]
    )
    assert report["cases"][0]["seed"] == 5
    text = str(result)
    assert "native size" in text
    assert "max error" in text
    assert "tolerance 1.0e-05" in text
    assert "a difference in meaning, not an error" in text
    assert result.deviation is not None
    assert result.deviation.error > 0.001
    assert 0.0 <= result.deviation.top1_agreement <= 1.0
    assert result.deviation.positions == 6


def test_padded_with_a_trunk_that_cannot_grow_uses_the_converted_features(tmp_path):
    result = pair(pad=1, baked=True).verify(tmp_path)
    assert result.passed, result.message()
    assert any("features of the converted model" in case.note for case in result.cases)


def test_a_check_that_cannot_run_is_skipped_with_its_reason(tmp_path):
    both = pair(pad=1, baked=True)
    for node in both.converted.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = "renamed" if name == "features" else name
    result = both.verify(tmp_path)
    skipped = [case for case in result.cases if case.status == "skipped"]
    assert skipped
    assert all("no tensor 'features'" in case.note for case in skipped)
    assert "skipped" in str(result)
    result = pair(pad=1).verify(tmp_path, cut=())
    assert any(case.status == "skipped" and "cut" in case.note for case in result.cases)


def swap_hw(w: np.ndarray) -> np.ndarray:
    return w.reshape(*w.shape[:2], w.shape[3], w.shape[2]).transpose(0, 1, 3, 2)


FAULTS: dict[str, tuple[dict, Callable[[Pair], Pair]]] = {
    "H and W swapped in the FC kernel": ({}, lambda p: replace(p, converted=with_weight(p.converted, "w3", swap_hw))),
    "H and W swapped, padded": ({"pad": 1}, lambda p: replace(p, converted=with_weight(p.converted, "w3", swap_hw))),
    "NHWC order ignored": (
        {"nhwc": True},
        lambda p: replace(
            p, converted=with_weight(p.converted, "w3", lambda w: weight(p.original, "w3").reshape(w.shape))
        ),
    ),
    "a conv scaled by 1.001": (
        {},
        lambda p: replace(p, converted=with_weight(p.converted, "w2", lambda w: w * np.float32(1.001))),
    ),
    "a conv scaled by 1.001 ahead of a saturated Softmax": (
        {"gain": 100.0},
        lambda p: replace(p, converted=with_weight(p.converted, "w1", lambda w: w * np.float32(1.001))),
    ),
    "bias dropped": ({}, lambda p: replace(p, converted=with_weight(p.converted, "b3", lambda b: b * 0))),
    "NaN weight": (
        {},
        lambda p: replace(p, converted=with_weight(p.converted, "w2", lambda w: w * np.float32(np.nan))),
    ),
    "NaN weight in both": (
        {},
        lambda p: replace(
            p,
            original=with_weight(p.original, "w2", lambda w: w * np.float32(np.nan)),
            converted=with_weight(p.converted, "w2", lambda w: w * np.float32(np.nan)),
        ),
    ),
    "Softmax over the width": ({}, lambda p: replace(p, converted=with_attribute(p.converted, "Softmax", axis=3))),
    "Softmax over the width, padded": (
        {"pad": 1},
        lambda p: replace(p, converted=with_attribute(p.converted, "Softmax", axis=3)),
    ),
    "outputs permuted": (
        {},
        lambda p: replace(
            p,
            converted=with_weight(with_weight(p.converted, "w3", lambda w: w[::-1]), "b3", lambda b: b[::-1]),
        ),
    ),
    "wrong classes under ArgMax": (
        {"final": "ArgMax"},
        lambda p: replace(p, converted=with_weight(p.converted, "b3", lambda b: b + np.arange(6, dtype=np.float32))),
    ),
    "stride doubled in the metadata": ({}, lambda p: replace(p, window=doubled(p.window))),
    "stride doubled in metadata and cut, padded": (
        {"pad": 1},
        lambda p: replace(p, window=doubled(p.window), cut=(replace(p.cut[0], stride=(4, 4)),)),
    ),
    "windows claimed for a padded net": (
        {"pad": 1},
        lambda p: replace(p, window=replace(p.window, equivalence="windows", why="")),
    ),
    "receptive field too small": (
        {"slack": 1},
        lambda p: replace(p, window=replace(p.window, receptive_field=(4, 4)), converted=padded_end(p.converted)),
    ),
    "second output forgotten": ({"second": True}, lambda p: replace(p, converted=without_output(p.converted, "box"))),
    "full-map pool with a kernel of its own": (
        {"gap": True},
        lambda p: replace(p, converted=with_attribute(p.converted, "AveragePool", kernel_shape=[3, 3])),
    ),
    "full-map pool grows with the image, padded": (
        {"gap": True, "pad": 1},
        lambda p: replace(p, converted=global_pool(p.converted)),
    ),
}


def doubled(window: Window) -> Window:
    grids = {n: replace(g, stride=tuple(2 * s for s in g.stride)) for n, g in window.outputs.items()}
    return replace(window, stride=tuple(2 * s for s in window.stride), outputs=grids)


def without_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.output[[value.name for value in result.graph.output].index(name)]
    return result


def global_pool(model: onnx.ModelProto) -> onnx.ModelProto:
    result = with_attribute(model, "AveragePool")
    for node in result.graph.node:
        if node.op_type == "AveragePool":
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]
    return result


def padded_end(model: onnx.ModelProto) -> onnx.ModelProto:
    """The last convolution pads at the far edge: cells appear that look past the image."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in result.graph.node:
        if node.op_type == "Conv" and node.input[1] == "w3":
            node.attribute.append(helper.make_attribute("pads", [0, 0, 1, 1]))
    return result


@pytest.mark.parametrize(("options", "plant"), FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_fails(tmp_path, options, plant):
    sound = pair(**options)
    faulty = plant(sound)
    assert faulty != sound
    result = faulty.verify(tmp_path)
    assert result.verdict == "failed"
    assert not result.passed
    with pytest.raises(CheckFailed) as caught:
        result.check()
    assert caught.value.exit_code == 1
    assert "seed 0" in str(caught.value)
    assert "convrewrite.verify(a, b, seed=0, samples=3" in str(caught.value)
    assert "--seed 0 --samples 3" in told(caught.value.text, FLAGS)
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_failure_names_output_place_and_figures(tmp_path):
    sound = pair(final="")
    changed = with_weight(sound.converted, "b3", lambda b: b + np.array([0, 0, 0, 9, 0, 0], np.float32))
    result = replace(sound, converted=changed).verify(tmp_path, seed=4)
    worst = result.worst
    assert worst is not None
    assert worst.place[-1] == 3
    assert worst.figures is not None
    assert worst.figures[0] - worst.figures[1] == pytest.approx(9, abs=1e-4)
    assert "output prob is" in result.message()
    assert "seed 4" in result.message()


def same_interface(options: dict, plant: Callable[[onnx.ModelProto], onnx.ModelProto]) -> tuple:
    original = pair(**options).original
    return original, plant(original)


PLAIN_FAULTS = {
    "scaled by 1.001": ({}, lambda m: with_weight(m, "w1", lambda w: w * np.float32(1.001))),
    "scaled by 1.001, saturated": ({"gain": 100.0}, lambda m: with_weight(m, "w2", lambda w: w * np.float32(1.001))),
    "bias dropped": ({}, lambda m: with_weight(m, "b3", lambda b: b * 0)),
    "bias dropped ahead of ArgMax": ({"final": "ArgMax"}, lambda m: with_weight(m, "b3", lambda b: b * 0)),
    "NaN": ({}, lambda m: with_weight(m, "w2", lambda w: w * np.float32(np.nan))),
    "Inf": ({"final": ""}, lambda m: with_weight(m, "b3", lambda b: b + np.float32(np.inf))),
    "wrong Softmax axis": ({}, lambda m: with_attribute(m, "Softmax", axis=0)),
    "output permuted": ({}, lambda m: with_weight(m, "w3", lambda w: w[::-1])),
    "H and W swapped": (
        {},
        lambda m: with_weight(m, "w3", lambda w: w.reshape(6, 5, 4, 3).transpose(0, 1, 3, 2).reshape(6, -1)),
    ),
}


@pytest.mark.parametrize(("options", "plant"), PLAIN_FAULTS.values(), ids=PLAIN_FAULTS.keys())
def test_verify_finds_a_planted_fault(tmp_path, options, plant):
    original, faulty = same_interface(options, plant)
    onnx.save(original, tmp_path / "a.onnx")
    onnx.save(faulty, tmp_path / "b.onnx")
    result = verify(tmp_path / "a.onnx", tmp_path / "b.onnx", size=(12, 10))
    assert result.verdict == "failed"


@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT.keys())
def test_a_model_equals_itself(tmp_path, options):
    onnx.save(pair(**options).original, tmp_path / "a.onnx")
    result = verify(tmp_path / "a.onnx", tmp_path / "a.onnx")
    assert result.passed, result.message()
    assert result.worst is not None
    assert result.worst.error == 0.0


def test_external_data_is_probed_without_writing_a_file(tmp_path):
    onnx.save(pair().original, tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    before = sorted(tmp_path.iterdir())
    result = verify(tmp_path / "a.onnx", tmp_path / "a.onnx")
    assert result.passed
    assert any("before Softmax" in case.output for case in result.cases)
    assert sorted(tmp_path.iterdir()) == before


def constant_model(fill: float) -> onnx.ModelProto:
    original = pair().original
    for tensor in list(original.graph.initializer):
        original = with_weight(original, tensor.name, lambda w: np.full_like(w, fill))
    return original


@pytest.mark.parametrize("fill", [0.0, 0.02])
def test_constant_weights_are_vacuous(tmp_path, fill):
    onnx.save(constant_model(fill), tmp_path / "a.onnx")
    result = verify(tmp_path / "a.onnx", tmp_path / "a.onnx")
    assert result.verdict == "vacuous"
    assert not result.passed
    with pytest.raises(CheckFailed, match=r"give real inputs with data$"):
        result.check()


def test_alexnet_with_constant_weights_is_vacuous(tmp_path):
    path = tmp_path / "alexnet.onnx"
    onnx.save(NETWORKS["caffe2-alexnet"].model(), path)
    assert verify(path, path, samples=1).verdict == "vacuous"


def test_a_vacuous_fcn_verification(tmp_path):
    both = pair()
    zero = both.converted
    for tensor in list(zero.graph.initializer):
        zero = with_weight(zero, tensor.name, lambda w: w * 0)
    assert replace(both, original=constant_model(0.0), converted=zero).verify(tmp_path).verdict == "vacuous"


def test_one_sample_is_enough(tmp_path):
    assert pair().verify(tmp_path, samples=1).passed


def test_the_tolerance_of_the_user_counts(tmp_path):
    sound = pair(final="")
    scaled = replace(sound, converted=with_weight(sound.converted, "w2", lambda w: w * np.float32(1.001)))
    assert not scaled.verify(tmp_path).passed
    assert scaled.verify(tmp_path, tolerance=0.05).passed
    assert not sound.verify(tmp_path, tolerance=1e-12).passed


def test_a_wrong_batch_is_not_hidden_by_batching(tmp_path):
    """An original whose reshape bakes batch 1 is run crop by crop."""
    both = pair()
    for node in both.original.graph.node:
        if node.op_type == "Flatten":
            node.op_type = "Reshape"
            del node.attribute[:]
            node.input.append("baked")
    both.original.graph.initializer.append(numpy_helper.from_array(np.array([1, 60]), "baked"))
    assert both.verify(tmp_path).passed


def test_inputs_and_outputs_must_match(tmp_path):
    a, b = pair(second=True).original, pair().original
    onnx.save(a, tmp_path / "a.onnx")
    onnx.save(b, tmp_path / "b.onnx")
    with pytest.raises(UsageError, match="output 'box' is only in"):
        verify(tmp_path / "a.onnx", tmp_path / "b.onnx")
    with pytest.raises(UsageError, match="output 'box' is only in"):
        verify(tmp_path / "b.onnx", tmp_path / "a.onnx")
    onnx.save(pair(slack=1).original, tmp_path / "c.onnx")
    with pytest.raises(UsageError, match="input 'image' has shape"):
        verify(tmp_path / "b.onnx", tmp_path / "c.onnx")
    onnx.save(pair().original, tmp_path / "d.onnx")
    b.graph.input[0].name = "picture"
    b.graph.node[0].input[0] = "picture"
    onnx.save(b, tmp_path / "c.onnx")
    with pytest.raises(UsageError, match="'image' is only in"):
        verify(tmp_path / "d.onnx", tmp_path / "c.onnx")


def test_open_dimensions_ask_for_a_size(tmp_path):
    onnx.save(pair().converted, tmp_path / "b.onnx")
    with pytest.raises(UsageError, match="give size="):
        verify(tmp_path / "b.onnx", tmp_path / "b.onnx")
    assert verify(tmp_path / "b.onnx", tmp_path / "b.onnx", size=(20, 16)).passed
    with pytest.raises(UsageError, match="has 3 numbers"):
        verify(tmp_path / "b.onnx", tmp_path / "b.onnx", size=(20, 16, 3))


def test_data(tmp_path):
    both = pair()
    rng = np.random.default_rng(0)
    data = {"image": rng.uniform(size=(4, 2, 12, 10))}
    result = both.verify(tmp_path, data=data)
    assert result.passed
    assert "data" in result.cases[0].note
    swapped = replace(both, converted=with_weight(both.converted, "w3", swap_hw))
    assert swapped.verify(tmp_path, data=data).verdict == "failed"
    with pytest.raises(UsageError, match="no array 'image'"):
        both.verify(tmp_path, data={"x": data["image"]})
    with pytest.raises(UsageError, match="shape"):
        both.verify(tmp_path, data={"image": data["image"][:, :1]})


def test_data_is_cut_into_the_models_batch():
    spec = InputSpec("x", np.dtype(np.float32), (2, 3))
    data = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert [s.feeds["x"][0, 0] for s in cut_data({"x": data}, [spec])] == [0, 6]
    with pytest.raises(UsageError, match="no multiple of the batch 2"):
        cut_data({"x": data[:3]}, [spec])
    with pytest.raises(UsageError, match="is int64"):
        cut_data({"x": data.astype(np.int64)}, [spec])
    with pytest.raises(UsageError, match="no sample"):
        cut_data({"x": data[:0]}, [spec])


def test_read_data(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.ones(3))
    assert read_data(tmp_path / "d.npz")["x"].tolist() == [1, 1, 1]
    np.save(tmp_path / "d.npy", np.ones(3))
    (tmp_path / "t.npz").write_text("hello")
    np.savez(tmp_path / "o.npz", x=np.array([{}], object))
    for name in ("d.npy", "t.npz", "o.npz", "none.npz"):
        with pytest.raises(UsageError, match=r"\.np"):
            read_data(tmp_path / name)


def test_argmax_ties_do_not_count_but_mismatches_do(tmp_path):
    """Two classes with one and the same score: either may win."""
    tie = with_weight(
        with_weight(pair(final="ArgMax").original, "w3", lambda w: np.concatenate([w[:1], w[:1], w[2:] * 0])),
        "b3",
        lambda b: np.array([5, 5, 0, 0, 0, 0], np.float32),
    )
    other = with_weight(tie, "b3", lambda b: np.array([5, 5 + 5e-6, 0, 0, 0, 0], np.float32))
    onnx.save(tie, tmp_path / "a.onnx")
    onnx.save(other, tmp_path / "b.onnx")
    result = verify(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert result.passed, result.message()
    assert any("undecided" in case.note for case in result.cases)


def test_the_metric():
    a = np.array([1.0, 2.0, 4.0], np.float32)
    assert relative_error(a, a) == 0
    assert relative_error(a + np.float32(0.4), a) == pytest.approx(0.1)
    assert relative_error(a, a * np.nan) == np.inf
    assert relative_error(a, a[:2]) == np.inf
    assert relative_error(a * 0, a * 0) == 0
    assert relative_error(a, a * 0) == np.inf
    assert floor(np.dtype(np.float16)) == pytest.approx(8 * 2**-10)
    assert floor(np.dtype(np.float32)) == 1e-5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_are_never_equal(bad):
    ledger = Ledger()
    array = np.array([1.0, bad], np.float32)
    assert not ledger.compare("c", "y", array, array)
    assert ledger.cases[0].status == "failed"
    assert "both" in ledger.cases[0].note or "original and the rewritten" in ledger.cases[0].note


def test_types_and_shapes_must_be_the_same():
    ledger = Ledger()
    a = np.ones((2, 3), np.float32)
    assert not ledger.compare("type", "y", a.astype(np.float64), a)
    assert not ledger.compare("shape", "y", a[:1], a)
    assert ledger.compare("same", "y", a, a)


def test_not_run_is_not_verified():
    result = Verification.not_run("not wanted")
    assert result.verdict == "skipped"
    assert not result.passed
    assert "not wanted" in str(result)
    assert Verification(()).verdict == "skipped"


def with_vector(pad: int) -> Pair:
    """Beside the image a vector enters the head; one output depends on the vector alone, one is a flattened map."""
    base = pair(pad=pad, final="")
    window, (height, width) = base.window, base.cut[0].size
    rng = np.random.default_rng(9)
    extra = {"v3": rng.standard_normal((3, 6)).astype(np.float32)}

    def extend(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(model)
        batch = "N"
        result.graph.input.append(helper.make_tensor_value_info("vector", FLOAT, [batch, 3]))
        result.graph.node.extend(nodes)
        for name in ("sum", "twice", "map"):
            result.graph.output.append(onnx.ValueInfoProto(name=name))
        result.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in extra.items())
        result.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
        return result

    node = helper.make_node
    shared = [node("MatMul", ["vector", "v3"], ["mv"]), node("Add", ["vector", "vector"], ["twice"])]
    original = [*shared, node("Add", ["prob", "mv"], ["sum"]), node("Flatten", ["features"], ["map"])]
    converted = [
        *shared,
        node("Unsqueeze", ["mv", "axes"], ["mv4"]),
        node("Add", ["prob", "mv4"], ["sum"]),
        node("Identity", ["features"], ["map"]),
    ]
    grids = {
        **window.outputs,
        "sum": window.outputs["prob"],
        "map": OutputGrid((2, 2), (height, width), ("N", "CHW")),
    }
    return Pair(
        extend(base.original, original),
        extend(base.converted, converted),
        replace(window, outputs=grids),
        base.cut,
    )


@pytest.mark.parametrize("pad", [0, 1])
def test_a_vector_input_and_outputs_of_other_kinds(tmp_path, pad):
    both = with_vector(pad)
    result = both.verify(tmp_path)
    assert result.passed, result.message()
    assert {case.output for case in result.cases if case.status == "passed"} == {"prob", "sum", "twice", "map"}
    for name, change in (("v3", lambda w: w[:, ::-1]), ("w3", swap_hw)):
        faulty = replace(both, converted=with_weight(both.converted, name, change))
        assert faulty.verify(tmp_path).verdict == "failed"


def test_a_map_in_a_wrong_layout_fails(tmp_path):
    both = with_vector(0)
    grids = {**both.window.outputs, "map": replace(both.window.outputs["map"], layout=("N", "HWC"))}
    assert replace(both, window=replace(both.window, outputs=grids)).verify(tmp_path).verdict == "failed"


@pytest.mark.parametrize("pad", [0, 1])
def test_an_unbatched_image(tmp_path, pad):
    both = pair(pad=pad, final="")

    def unbatch(model: onnx.ModelProto, squeeze: bool) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(model)
        del result.graph.input[0].type.tensor_type.shape.dim[0]
        result.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
        result.graph.node[0].input[0] = "batched"
        result.graph.node.insert(0, helper.make_node("Unsqueeze", ["image", "zero"], ["batched"]))
        if squeeze:
            result.graph.node[-1].output[0] = "scores"
            result.graph.node.append(helper.make_node("Squeeze", ["scores", "zero"], ["prob"]))
        return result

    grid = replace(both.window.outputs["prob"], layout=("C",))
    window = replace(both.window, axes="CHW", outputs={"prob": grid})
    result = replace(
        both, original=unbatch(both.original, True), converted=unbatch(both.converted, False), window=window
    ).verify(tmp_path)
    assert result.passed, result.message()


@pytest.mark.parametrize("pad", [0, 1])
def test_float16(tmp_path, pad):
    def halve(model: onnx.ModelProto) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(model)
        for tensor in result.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
        for value in [*result.graph.input, *result.graph.output]:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        return result

    both = pair(pad=pad)
    half = replace(both, original=halve(both.original), converted=halve(both.converted))
    result = half.verify(tmp_path)
    assert result.passed, result.message()
    swapped = replace(half, converted=with_weight(half.converted, "w3", swap_hw))
    assert swapped.verify(tmp_path).verdict == "failed"


def test_a_scale_that_overflows_the_original_is_left_out(tmp_path):
    """Exp of pixels in 0..255 is Inf in the original itself: that scale proves nothing, the others do."""
    model = make_model(
        [("Mul", ["image", "w"], ["m"], {}), ("Exp", ["m"], ["prob"], {})],
        {"image": [1, 4]},
        {"prob": FLOAT},
        {"w": np.array([1, 2, 3, 4], np.float32)},
    )
    onnx.save(model, tmp_path / "a.onnx")
    result = verify(tmp_path / "a.onnx", tmp_path / "a.onnx")
    assert result.passed
    onnx.save(with_weight(model, "w", lambda w: w * np.float32(1.001)), tmp_path / "b.onnx")
    assert verify(tmp_path / "a.onnx", tmp_path / "b.onnx").verdict == "failed"


def test_progress_is_told(tmp_path):
    calls: list[tuple[str, int, int]] = []
    pair().verify(tmp_path, progress=lambda *call: calls.append(call))
    assert calls
    assert all(0 <= done <= total for _, done, total in calls)


def test_verify_knows_a_fully_convolutional_form_by_its_metadata(tmp_path):
    both = pair(batch=1)
    entry = both.converted.metadata_props.add()
    entry.key, entry.value = "convrewrite.window", both.window.to_json()
    onnx.save(both.original, tmp_path / "a.onnx")
    onnx.save(both.converted, tmp_path / "b.onnx")
    result = verify(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert result.passed
    assert any("every window of" in case.name for case in result.cases)
    assert verify(tmp_path / "b.onnx", tmp_path / "b.onnx", size=(20, 20)).passed


@pytest.mark.parametrize("pad", [0, 1])
def test_a_converted_model_of_the_native_size_alone(tmp_path, pad):
    result = pair(pad=pad, fixed=(12, 10)).verify(tmp_path)
    assert result.passed
    assert [case.name for case in result.cases if case.status == "skipped"] == ["larger images"]


@pytest.mark.parametrize("pad", [0, 1])
def test_a_large_map_is_compared_on_a_part_of_its_windows(tmp_path, monkeypatch, pad):
    monkeypatch.setattr("convrewrite.verification.subjects.CROP_PIXELS", 12 * 10 * 20)
    result = pair(pad=pad, fixed=(100, 90)).verify(tmp_path)
    assert result.passed
    assert any("of 1,845 windows" in case.note for case in result.cases)


@pytest.mark.parametrize("content", [b"", b"hello world", None])
def test_a_file_that_is_no_model_is_a_usage_error(tmp_path, content):
    if content is not None:
        (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(UsageError):
        verify(tmp_path / "a.onnx", tmp_path / "a.onnx")
