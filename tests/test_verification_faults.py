"""Faults that are planted in a fully convolutional form, or in one of two models: each is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from convrewrite.cli.words import FLAGS
from convrewrite.engine.windows import Window
from convrewrite.errors import CheckFailed
from convrewrite.text import told
from helpers import verify
from verified_pairs import Pair, pair, swap_hw, weight, with_attribute, with_weight

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
    assert "seed=0" in str(caught.value)
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
    assert "'seed': 4" in result.message()


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
