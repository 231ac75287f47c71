"""Outputs that do not move, and originals that give NaN or an error on plain random inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_models import call
from onnx import TensorProto

from convrewrite.running.sampling import InputSpec
from convrewrite.verification import Verification
from convrewrite.verification.suggested import by_name, suggested
from helpers import Net, verify

Array = np.ndarray[Any, Any]


def check(folder: Path, a: onnx.ModelProto, b: onnx.ModelProto, **options: Any) -> Verification:
    onnx.save(a, folder / "a.onnx")
    onnx.save(b, folder / "b.onnx")
    return verify(folder / "a.onnx", folder / "b.onnx", **options)


def detector(*, moves: float = 1.0, still: float = 0.0, alone: bool = False) -> onnx.ModelProto:
    """Scores that move, and detections above a threshold that no random input reaches. moves, still: faults."""
    net = Net("N", 3, 4, 4)
    x = net.Tanh("x")
    scores = net.Mul(x, net.const(np.full((1, 3, 1, 1), moves)))
    found = net.Relu(net.Sub(x, net.const(2.0)))
    found = net.Add(found, net.const(still))
    net.node("Identity", scores, outputs=["scores"])
    net.node("Identity", found, outputs=["found"])
    net.node("Clip", found, net.const(0.0), net.const(9.0), outputs=["clipped"])
    return net.model("found") if alone else net.model("scores", "found", "clipped")


def test_outputs_that_are_constant_by_nature_do_not_hide_the_others(tmp_path: Path) -> None:
    found = check(tmp_path, detector(), detector())
    assert found.verdict == "verified"
    assert found.constant == ("found", "clipped")
    assert found.vacuous == ()
    assert "found, clipped did not move" in str(found)
    assert check(tmp_path, detector(), detector(moves=1.001)).verdict == "failed"


def test_one_that_is_not_bit_equal_is_no_proof(tmp_path: Path) -> None:
    """It did not move, and differs by less than any tolerance."""
    found = check(tmp_path, detector(still=1.0), detector(still=1.0 + 2e-7))
    assert found.verdict == "vacuous"
    assert found.vacuous == ("found", "clipped")
    assert found.constant == ()


def test_a_model_of_which_nothing_moves_is_vacuous(tmp_path: Path) -> None:
    found = check(tmp_path, detector(alone=True), detector(alone=True))
    assert (found.verdict, found.vacuous, found.constant) == ("vacuous", ("found",), ())


def test_text_report_and_page_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(detector(), tmp_path / "a.onnx")
    report, page = tmp_path / "r.json", tmp_path / "p.html"
    pair = (tmp_path / "a.onnx", tmp_path / "a.onnx")
    assert call(monkeypatch, "verify", *pair, "--report", report, "--html", page) == 0
    assert json.loads(report.read_text())["verify"]["constant"] == ["found", "clipped"]
    assert "outputs found, clipped did not move" in " ".join(capsys.readouterr().out.split())
    assert "<code>found</code>" in page.read_text()


# Originals that give NaN --------------------------------------------------------------------------------------------


def above_one(factor: float = 1.0) -> onnx.ModelProto:
    """Acosh: NaN below 1."""
    net = Net("N", 3, 4)
    net.Mul(net.Acosh("x"), net.const(factor))
    net.nodes[-1].output[0] = "y"
    return net.model("y")


def with_length(factor: float = 1.0) -> onnx.ModelProto:
    """The sum over time divided by a length: NaN or Inf where that is 0."""
    net = Net("N", 3, 50)
    net.input("lengths", "N", dtype=np.int64)
    total = net.reduce("ReduceSum", net.Tanh("x"), [1, 2], keepdims=0)
    inside = net.Sqrt(net.Sub(net.Cast("lengths", to=TensorProto.FLOAT), net.const(9.0)))
    net.Mul(net.Div(total, inside), net.const(factor))
    net.nodes[-1].output[0] = "y"
    return net.model("y", shapes={"y": ["N"]})


def with_rate(factor: float = 1.0) -> onnx.ModelProto:
    """A filter that is known for one sample rate."""
    net = Net("N", 60)
    net.input("sr", dtype=np.int64)
    rate = net.Cast("sr", to=TensorProto.FLOAT)
    net.Mul(net.Mul("x", net.const(factor)), net.Sqrt(net.Sub(rate, net.const(15999.0))))
    net.nodes[-1].output[0] = "y"
    return net.model("y", shapes={"y": ["N", 60]})


def with_mask(factor: float = 1.0) -> onnx.ModelProto:
    """The mean over what a mask lets through: 0/0 where it is empty."""
    net = Net(1, 2)
    net.input("attention_mask", 1, 2, dtype=np.int64)
    mask = net.Cast("attention_mask", to=TensorProto.FLOAT)
    held = net.Log(net.Sub(mask, net.const(0.5)))
    net.Mul(net.Add("x", held), net.const(factor))
    net.nodes[-1].output[0] = "y"
    return net.model("y")


MAKERS = {"range": above_one, "length": with_length, "rate": with_rate, "mask": with_mask}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_a_nan_on_random_inputs_is_not_the_end(tmp_path: Path, make: Any) -> None:
    honest = check(tmp_path, make(), make())
    assert honest.verdict == "verified", honest.message()
    again = check(tmp_path, make(), make())
    assert [case.note for case in again.cases] == [case.note for case in honest.cases], "the same seed, the same inputs"
    found = check(tmp_path, make(), make(1.001))
    assert found.verdict == "failed"
    assert np.isfinite(found.worst.error if found.worst and found.worst.error is not None else np.nan)


def test_a_nan_everywhere_still_is(tmp_path: Path) -> None:
    net = Net("N", 3)
    net.Log(net.Sub(net.Neg(net.Abs("x")), net.const(1.0)))
    net.nodes[-1].output[0] = "y"
    model = net.model("y")
    found = check(tmp_path, model, model)
    assert found.verdict == "failed"
    assert "the original itself gives nan" in found.message()


IMAGE = InputSpec("image", np.dtype(np.float32), (1, 3, 20, 30))
NAMES: dict[str, tuple[InputSpec, float]] = {
    "rate": (InputSpec("sample_rate", np.dtype(np.int64), ()), 16000),
    "length": (InputSpec("xLengths", np.dtype(np.int32), (1,)), 30),
    "mask": (InputSpec("input_mask", np.dtype(np.float32), (1, 4)), 1),
    "scale": (InputSpec("scale_factor", np.dtype(np.float32), (1, 2)), 1),
    "integer": (InputSpec("n", np.dtype(np.int64), (2,)), 1),
}


@pytest.mark.parametrize(("spec", "value"), NAMES.values(), ids=NAMES.keys())
def test_what_a_name_suggests(spec: InputSpec, value: float) -> None:
    for sample in suggested([IMAGE, spec], 7):
        got = sample.feeds[spec.name]
        assert (got.dtype, got.shape) == (spec.dtype, spec.shape)
        assert (got == value).all()


def test_what_names_leave_alone() -> None:
    rng = np.random.default_rng(0)
    assert by_name(IMAGE, [IMAGE], rng) is None
    assert by_name(InputSpec("ids", np.dtype(np.int64), (4,), below=9), [IMAGE], rng) is None
    shape = by_name(InputSpec("im_shape", np.dtype(np.float32), (1, 2)), [IMAGE], rng)
    assert shape is not None
    assert shape.tolist() == [[20.0, 30.0]]
    state = by_name(InputSpec("state", np.dtype(np.float32), (2, 1, 64)), [IMAGE], rng)
    assert state is not None
    assert 0 < np.abs(state).max() < 1
