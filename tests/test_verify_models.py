"""Two models of one interface: what is compared, drawn, refused and called vacuous."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from convrewrite.errors import CheckFailed, UsageError
from convrewrite.running.sampling import InputSpec, cut_data, read_data
from convrewrite.verification.comparison import Ledger, floor, relative_error
from convrewrite.verification.verdicts import Verification
from exported import NETWORKS
from helpers import verify
from verified_pairs import EXACT, pair, swap_hw, with_weight


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
    with pytest.raises(UsageError, match="gives the open axes alone"):  # three numbers would be all but the batch
        verify(tmp_path / "b.onnx", tmp_path / "b.onnx", size=(20, 16, 3))
    with pytest.raises(UsageError, match="has 5 numbers"):
        verify(tmp_path / "b.onnx", tmp_path / "b.onnx", size=(20, 16, 3, 3, 3))


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
