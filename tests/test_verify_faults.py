"""Planted faults: each must be found at the default tolerance, and the same network written differently must pass."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from faulty_nets import Weights, changed, check, network, scaled, weights
from onnx import TensorProto, helper, numpy_helper

from convrewrite.cli.words import FLAGS
from convrewrite.errors import CheckFailed, UsageError
from convrewrite.running.runtime import DeviceFailed, Session
from convrewrite.running.sampling import read_data
from convrewrite.text import told
from exported import NETWORKS
from helpers import verify


def swapped(array: np.ndarray) -> np.ndarray:
    """The flattened 3 x 2 map read as if it were 2 x 3."""
    return array.reshape(10, 8, 3, 2).transpose(0, 1, 3, 2).reshape(10, -1)


FAULTS: dict[str, dict] = {
    "a conv scaled by 1.001": {"w2": scaled},
    "the first conv scaled by 1.001": {"w1": scaled},
    "H and W swapped in the FC": {"w3": swapped},
    "H and W swapped in a kernel": {"w1": lambda w: w.transpose(0, 1, 3, 2)},
    "a bias dropped": {"b2": np.zeros_like},
    "the last bias dropped": {"b3": np.zeros_like},
    "NaN": {"w2": lambda w: np.where(np.arange(w.size).reshape(w.shape) == 5, np.nan, w)},
    "classes permuted": {"w3": lambda w: w[::-1], "b3": lambda b: b[::-1]},
}


@pytest.mark.parametrize("gain", [1.0, 300.0], ids=["plain", "saturated Softmax"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_is_found(tmp_path, fault, gain):
    values = weights(gain)
    result = check(tmp_path, network(values), network(changed(values, **fault)))
    assert result.verdict == "failed"
    with pytest.raises(CheckFailed):
        result.check()


@pytest.mark.parametrize("fault", [{"w2": scaled}, {"w1": scaled}])
@pytest.mark.parametrize("how", ["data", "uint8"])
def test_a_scaled_conv_is_found_on_pixels_with_a_saturated_softmax(tmp_path, fault, how):
    """The Softmax is 0 and 1 for both: only the scores ahead of it tell."""
    values = weights(300.0)
    kind = TensorProto.UINT8 if how == "uint8" else TensorProto.FLOAT
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 10, 8)).astype("u1" if how == "uint8" else "f4")
    data = {"image": pixels}
    result = check(tmp_path, network(values, kind=kind), network(changed(values, **fault), kind=kind), data=data)
    failed = {case.output: case for case in result.cases if case.status == "failed"}
    assert "prob (before Softmax)" in failed
    assert failed["prob (before Softmax)"].metrics.top1_agreement == 1.0
    assert "prob" not in failed


def test_a_wrong_softmax_axis_is_found(tmp_path):
    values = weights()
    result = check(tmp_path, network(values), network(values, axis=0), batch=2)
    assert result.verdict == "failed"
    assert [case.output for case in result.cases if case.status == "failed"] == ["prob"]


def folded(values: Weights) -> Weights:
    """BatchNormalization folded by hand, all in float32."""
    factor = values["gamma"] / np.sqrt(values["variance"] + np.float32(1e-5))
    new = {"w1": values["w1"] * factor[:, None, None, None]}
    new["b1"] = (values["b1"] - values["average"]) * factor + values["beta"]
    return values | new


@pytest.mark.parametrize("gain", [1.0, 300.0])
@pytest.mark.parametrize(
    "again",
    [
        network,
        lambda values: network(values, rename=True),
        lambda values: network(folded(values), bn=False),
        lambda values: network(folded(values), bn=False, rename=True),
    ],
    ids=["the same", "renamed", "BN folded", "BN folded and renamed"],
)
def test_the_same_network_written_differently_passes(tmp_path, again, gain):
    values = weights(gain)
    result = check(tmp_path, network(values), again(values))
    assert result.verdict == "verified", result.message()
    worst = result.worst
    assert worst.metrics.top1_agreement == 1.0
    assert worst.metrics.cosine == pytest.approx(1.0, abs=1e-9)


def test_the_same_network_optimized_by_onnx_runtime_passes(tmp_path):
    """Constant-folded and fused by another tool, written to a file again."""
    import onnxruntime as ort

    onnx.save(network(weights()), tmp_path / "a.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "b.onnx")
    ort.InferenceSession(str(tmp_path / "a.onnx"), options, providers=["CPUExecutionProvider"])
    assert len(onnx.load(tmp_path / "b.onnx").graph.node) < len(onnx.load(tmp_path / "a.onnx").graph.node)
    assert verify(tmp_path / "a.onnx", tmp_path / "b.onnx").passed


def test_weights_that_nodes_make_constant_are_vacuous(tmp_path):
    path = tmp_path / "alexnet.onnx"
    onnx.save(NETWORKS["caffe2-alexnet"].model(), path)
    result = verify(path, path)
    assert result.verdict == "vacuous"
    assert "--data" in told(result.message(), FLAGS)


@pytest.mark.parametrize("reference", ["onnxruntime", "onnx"])
def test_the_first_tensor_that_differs_is_named(tmp_path, reference):
    values = weights()
    options = {"where": True, "reference": reference}
    found = check(tmp_path, network(values), network(changed(values, w2=scaled)), **options).divergence
    assert (found.tensor, found.op, found.agreeing, found.compared) == ("c2", "Conv", 4, 9)
    assert found.error == pytest.approx(1e-3, rel=0.5)
    assert "'c2' (Conv" in str(found)
    found = check(tmp_path, network(values), network(folded(values), bn=False), **options).divergence
    assert found.tensor == "c1"  # BN is in its weights: the name stayed, the values did not
    found = check(tmp_path, network(values), network(values), **options).divergence
    assert found.tensor == ""
    assert found.agreeing == found.compared == 9


def test_a_mask_of_infinities_inside_is_no_divergence(tmp_path):
    def masked(scale: float) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Where", ["mask", "x", "low"], ["m"]),
            helper.make_node("Softmax", ["m"], ["p"], axis=1),
            helper.make_node("Mul", ["p", "scale"], ["y"]),
        ]
        initializers = {
            "mask": np.array([True, False, True]),
            "low": np.float32(-np.inf),
            "scale": np.float32(scale),
        }
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
            [numpy_helper.from_array(np.asarray(v), n) for n, v in initializers.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

    result = check(tmp_path, masked(1.0), masked(1.1), where=True)
    assert result.divergence.tensor == "y"


def test_the_failing_case_replays(tmp_path):
    values = weights()
    a, b = network(values), network(changed(values, w2=scaled))
    result = check(tmp_path, a, b, batch=2)
    result.failing.save(tmp_path / "case.npz")
    data = read_data(tmp_path / "case.npz")
    assert data["image"].shape == (2, 3, 10, 8)
    again = verify(tmp_path / "a.onnx", tmp_path / "b.onnx", data=data, batch=2)
    assert again.verdict == "failed"
    assert again.worst.error == result.worst.error
    assert np.abs(data["rewritten/prob (before Softmax)"] - data["original/prob (before Softmax)"]).max() > 0
    assert check(tmp_path, a, a).failing is None


def test_tolerances_by_output(tmp_path):
    values = weights()
    a, b = network(values), network(changed(values, w2=scaled))
    assert check(tmp_path, a, b, tolerance={"prob": 0.01}).passed
    assert not check(tmp_path, a, b, tolerance={"prob": 1e-7}).passed
    assert check(tmp_path, a, b, tolerance={"": 0.01}).passed
    with pytest.raises(UsageError, match="names 'nosuch', which is no output; there are prob"):
        check(tmp_path, a, b, tolerance={"nosuch": 1.0})


@pytest.mark.parametrize("message", ["CUDA failure 700: an illegal memory access", "Failed to allocate memory for 9"])
def test_a_provider_that_dies_is_no_difference_between_the_models(tmp_path, monkeypatch, message):
    """The rewritten model dies with its provider: that is exit code 2, and not "not equivalent"."""
    real = Session.run

    def run(self, feeds, outputs=None):
        if self.label.endswith("b.onnx") and "variant" not in self.label:
            with self._failing():
                raise RuntimeError(message)
        return real(self, feeds, outputs)

    monkeypatch.setattr(Session, "run", run)
    with pytest.raises(DeviceFailed, match="failed while running") as caught:
        check(tmp_path, network(weights()), network(weights()))
    assert caught.value.exit_code == 2
