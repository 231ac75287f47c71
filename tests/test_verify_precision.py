"""Two precisions of one network: both see the same numbers, and the coarser type says what is close."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_models import call
from onnx import TensorProto, helper, numpy_helper

from convrewrite.errors import ConvrewriteError, UsageError
from convrewrite.options import VerifyOptions
from convrewrite.pipeline import compare
from convrewrite.running.sampling import cut_data
from convrewrite.verification.interface import InputSpec
from convrewrite.verification.twins import computed_in
from helpers import Net, bench, run, verify

Array = np.ndarray[Any, Any]


def network(
    dtype: Any = np.float32, *, keep_ends: bool = False, scale: float = 1.0, gain: float = 1.0
) -> onnx.ModelProto:
    """Conv, Relu, Flatten, MatMul, Add in that type; `keep_ends`: float32 ends. scale: a fault. gain: of weights."""
    net = Net("N", 3, 6, 5, dtype=np.float32 if keep_ends else dtype)
    rng = np.random.default_rng(3)

    def const(*shape: int) -> str:
        return net.const((gain * 0.3 * rng.standard_normal(shape)).astype(np.float32), dtype=dtype)

    x = net.Cast("x", to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))) if keep_ends else "x"
    x = net.Flatten(net.Relu(net.Conv(x, const(4, 3, 3, 3), const(4))))
    y = net.MatMul(x, const(48, 5))
    y = net.Mul(net.Add(y, const(5)), net.const(np.asarray([1.0, 1.0, scale, 1.0, 1.0]), dtype=dtype))
    end = net.Cast(y, to=TensorProto.FLOAT) if keep_ends else net.Identity(y)
    net.nodes[-1].output[0] = "y"
    assert end
    return net.model("y")


TWINS: dict[str, dict[str, Any]] = {
    "float16": {"dtype": np.float16},
    "float16 inside": {"dtype": np.float16, "keep_ends": True},
}


def files(folder: Path, a: onnx.ModelProto, b: onnx.ModelProto) -> tuple[str, str]:
    onnx.save(a, folder / "a.onnx")
    onnx.save(b, folder / "b.onnx")
    return str(folder / "a.onnx"), str(folder / "b.onnx")


@pytest.mark.parametrize("turned", [False, True], ids=["float32 first", "float16 first"])
@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS.keys())
def test_a_twin_is_the_same_function(tmp_path: Path, twin: dict[str, Any], turned: bool) -> None:
    pair = (network(), network(**twin))
    outcome = compare(*files(tmp_path, *(pair[::-1] if turned else pair)), VerifyOptions())
    assert outcome.exit_code == 0, outcome.error
    found = outcome.verification
    assert found is not None
    assert any("float16" in line and "float32" in line for line in found.warnings)
    case = found.cases[0]
    assert case.error is not None
    assert case.tolerance is not None
    assert 1e-5 < case.error < 8 * float(np.finfo(np.float16).eps) <= case.tolerance <= 1e-2


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS.keys())
def test_a_wrong_twin_is_found(tmp_path: Path, twin: dict[str, Any]) -> None:
    """One class of five is off by a twentieth."""
    outcome = compare(*files(tmp_path, network(), network(**twin, scale=1.05)), VerifyOptions())
    assert outcome.exit_code == 1


def test_ends_alone_may_differ(tmp_path: Path) -> None:
    """Both compute in float16; one takes float32."""
    twin = network(np.float16, keep_ends=True)
    outcome = compare(*files(tmp_path, network(np.float16), twin), VerifyOptions())
    assert outcome.exit_code == 0, outcome.error
    assert computed_in(twin) == computed_in(network(np.float16)) == "float16"


def test_float64(tmp_path: Path) -> None:
    """ONNX Runtime has no convolution in float64; a fully connected layer is compared as float32."""

    def model(dtype: Any, factor: float = 1.0) -> onnx.ModelProto:
        net = Net("N", 20, dtype=dtype)
        weight = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
        net.MatMul("x", net.const(factor * weight))
        net.nodes[-1].output[0] = "y"
        return net.model("y")

    outcome = compare(*files(tmp_path, model(np.float32), model(np.float64)), VerifyOptions())
    assert outcome.exit_code == 0, outcome.error
    assert outcome.verification is not None
    assert outcome.verification.cases[0].tolerance == pytest.approx(1e-5, rel=0.5)
    assert compare(*files(tmp_path, model(np.float32), model(np.float64, 1.001)), VerifyOptions()).exit_code == 1


def test_what_overflows_in_the_twin_is_left_out(tmp_path: Path) -> None:
    """float16 ends at 65504: pixels of 255 go beyond it here, numbers of 0..1 do not."""
    pair = files(tmp_path, network(gain=20.0), network(np.float16, gain=20.0))
    bright = {"x": np.full((1, 3, 6, 5), 255.0, np.float16)}
    assert not np.isfinite(run(network(np.float16, gain=20.0), bright)["y"]).all()
    outcome = compare(*pair, VerifyOptions())
    assert outcome.exit_code == 0, outcome.error
    assert outcome.verification is not None
    assert outcome.verification.passed


def integers(dtype: Any, least: int = 0) -> onnx.ModelProto:
    net = Net()
    net.input("ids", "N", 4, dtype=dtype)
    net.Gather(net.const(np.arange(40.0).reshape(10, 4) + least), net.Cast("ids", to=TensorProto.INT64), axis=0)
    net.nodes[-1].output[0] = "y"
    return net.model("y", shapes={"y": ["N", 4, 4]})


def test_integers_of_two_widths(tmp_path: Path) -> None:
    pair = files(tmp_path, integers(np.int64), integers(np.int32))
    assert compare(*pair, VerifyOptions()).exit_code == 0
    data = {"ids": np.array([[0, 3, 9, 1]], np.int64)}
    assert compare(*pair, VerifyOptions(data=data)).exit_code == 0
    assert compare(*files(tmp_path, integers(np.int64), integers(np.int32, 1)), VerifyOptions()).exit_code == 1


def test_an_integer_that_the_narrower_type_lacks_is_refused() -> None:
    spec = InputSpec("ids", np.dtype(np.int32), (1, 2), wide=True)
    (sample,) = cut_data({"ids": np.array([[5, -7]], np.int64)}, [spec])
    assert sample.feeds["ids"].dtype == np.int32
    with pytest.raises(UsageError, match="is int64, the input is int32"):
        cut_data({"ids": np.array([[5, 2**40]], np.int64)}, [spec])


def test_other_types_are_refused_with_a_remedy(tmp_path: Path) -> None:
    pair = files(tmp_path, integers(np.int64), integers(np.uint8))
    signed = files(tmp_path, integers(np.int8), integers(np.uint8))
    outcome = compare(*signed, VerifyOptions())
    assert outcome.exit_code == 2
    assert isinstance(outcome.error, ConvrewriteError)
    assert "is tensor(int8) in one model and tensor(uint8) in the other" in str(outcome.error)
    assert "Cast" in (outcome.error.remedy or "")
    assert pair


def test_a_rewrite_may_not_change_the_precision(tmp_path: Path) -> None:
    """What holds for two files of a user does not hold for what a pass wrote."""
    with pytest.raises(UsageError, match="in one model and"):
        verify(*files(tmp_path, network(), network(np.float16)))
    found = verify(*files(tmp_path, network(), network(np.float16, keep_ends=True)))
    assert found.verdict == "failed"


def test_bench_takes_both(tmp_path: Path) -> None:
    found = bench(*files(tmp_path, network(), network(np.float16)), seconds=0.2, min_speedup=1e-6, memory=False)
    found.check()
    assert any("float32" in line and "float16" in line for line in found.warnings)


def test_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "r.json"
    assert call(monkeypatch, "verify", *files(tmp_path, network(), network(np.float16)), "--report", report) == 0
    assert "the tolerance is that of float16" in capsys.readouterr().out
    assert any("float16" in line for line in json.loads(report.read_text())["verify"]["warnings"])


def test_the_same_numbers_for_both(tmp_path: Path) -> None:
    """A float32 input that float16 lacks would be a difference of the inputs, not of the models."""

    def model(dtype: Any) -> onnx.ModelProto:
        net = Net("N", 6, dtype=dtype)
        net.Identity("x")
        net.nodes[-1].output[0] = "y"
        return net.model("y")

    outcome = compare(*files(tmp_path, model(np.float32), model(np.float16)), VerifyOptions())
    assert outcome.verification is not None
    assert outcome.verification.cases[0].error == 0.0
    assert numpy_helper is not None
