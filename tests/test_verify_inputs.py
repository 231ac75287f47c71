"""What `verify` and `bench` make of a user's inputs: their types, ranks and numbers, and data that does not fit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from convrewrite import pipeline, timing
from convrewrite.cli.words import FLAGS
from convrewrite.errors import CheckFailed, ConvrewriteError, UsageError
from convrewrite.models import lenet5_path
from convrewrite.options import FcnOptions, VerifyOptions
from convrewrite.running.sampling import Images, InputSpec, read_data
from convrewrite.text import told
from convrewrite.verification import Verification
from helpers import bench, verify

HEADER = '<ir_version: 8, opset_import: ["": 13]>'

BESIDE = f"""{HEADER} net (float[N, 3, H, W] image, int64[N] ids, bool[N, 4] mask) => (float[N, 4] y) {{
    c = Conv (image, w)
    p = GlobalAveragePool (c)
    f = Flatten (p)
    e = Gather (table, ids)
    y = Where (mask, e, f)
}}"""
"""An image, and a vector and a matrix of the same batch beside it."""

SCORES = f"""{HEADER} net (float[N, 3, H, W] image) => (float[N, 4] y) {{
    c = Conv (image, w)
    p = GlobalAveragePool (c)
    y = Flatten (p)
}}"""


def save(path: Path, text: str, gain: float = 1.0) -> Path:
    """A model from its text; `w` and `table` are its weights."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(text)
    weights = {"w": rng.standard_normal((4, 3, 3, 3)) * gain, "table": rng.standard_normal((50, 4))}
    for name, values in weights.items():
        if any(name in node.input for node in model.graph.node):
            model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    return save(tmp_path / "scores.onnx", SCORES)


def image(count: int = 1, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(1).random((count, 3, 8, 9)).astype(dtype)


def stopped(path: Path, **how: Any) -> str:
    """The message of the usage error that a verification of a model with itself ends with."""
    with pytest.raises(UsageError) as caught:
        verify(path, path, **how)
    return str(caught.value)


def test_a_vector_of_the_batch_is_not_taken_for_an_image(tmp_path: Path) -> None:
    """`--size 20 --batch 3` gave ids [20] beside 3 images: the axes have one name, so they have one extent."""
    path = save(tmp_path / "beside.onnx", BESIDE)
    assert verify(path, path, size=(20, 20), batch=3).passed
    assert verify(path, path, size=(20,)).passed
    assert verify(path, path, shapes={"image": (3, 3, 20, 20)}).passed
    found = bench(path, path, sizes=[(20,)], batches=[3], seconds=0.01, sets=1, memory=False, provider="cpu")
    assert found.error is None, found.error


def test_a_scalar_input_is_drawn(tmp_path: Path) -> None:
    """numpy gives a number and not an array, which ONNX Runtime cannot take."""
    for kind in ("float", "int64"):
        path = save(tmp_path / f"{kind}.onnx", f"{HEADER} net ({kind} x) => ({kind} y) {{ y = Neg (x) }}")
        assert verify(path, path).passed


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"img": image()}, "the data has no array 'image' (it has: img)"),
        ({}, "the data has no array 'image' (it has: nothing)"),
        ({"image": np.float32(3)}, "array 'image' of the data is a scalar, the input is Nx3xHxW"),
        ({"image": image()[0, 0]}, "array 'image' of the data has shape 8x9, the input is Nx3xHxW"),
        ({"image": image(dtype=np.float64) * 1e300}, "array 'image' of the data is float64 and too large for float32"),
    ],
)
def test_data_that_does_not_fit_an_open_input(scores: Path, arrays: dict[str, Any], text: str) -> None:
    """It said "give --size", as if no data had been given; or ran on infinities, after a warning of numpy's."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert text in stopped(scores, data=arrays)


def test_an_archive_of_python_objects_is_one(tmp_path: Path) -> None:
    path = tmp_path / "objects.npz"
    np.savez(path, image=np.array([{}, 1], dtype=object))
    with pytest.raises(UsageError, match="it holds Python objects"):
        read_data(path)


def test_numbers_that_are_none_in_the_data_are_named(scores: Path) -> None:
    """It told the user to repair the weights."""
    values = image(2)
    values[1, 0, 0, 0] = np.nan
    found = verify(scores, scores, data={"image": values})
    assert found.verdict == "failed"
    assert "data 1, which holds NaN or Inf in 'image'" in found.message()


def test_one_sample_can_verify(tmp_path: Path, scores: Path) -> None:
    """One sample cannot move; that its outputs would is seen on others. The failing case, fixed, is one sample."""
    assert verify(scores, scores, data={"image": image()}).verdict == "verified"
    other = save(tmp_path / "other.onnx", SCORES, gain=1.001)
    assert verify(scores, other, data={"image": image()}).verdict == "failed"
    nothing = verify(scores, other, data={"image": np.zeros_like(image())})
    assert nothing.verdict == "vacuous", "a black image says nothing of weights"
    still = save(tmp_path / "still.onnx", SCORES, gain=0.0)
    assert verify(still, still, data={"image": image()}).verdict == "vacuous"


def test_what_says_nothing_says_what_helps_here(tmp_path: Path, scores: Path) -> None:
    """`verify` has no --no-verify, and whoever gave --data is not told to give it."""
    same = np.zeros((2, 3, 8, 9), np.float32)
    message = verify(scores, scores, data={"image": same}).message()
    assert message.endswith("did not move between samples of the data; give others")
    assert told(Verification((), vacuous=("y",)).message(), FLAGS).endswith("give real inputs with --data F.npz")
    fixed = SCORES.replace("N, 3, H, W", "1, 3, 8, 9").replace("N, 4", "1, 4")
    path = save(tmp_path / "still.onnx", fixed, gain=0.0)
    with pytest.raises(ConvrewriteError) as caught:
        pipeline.fcn(str(path), str(tmp_path / "out.onnx"), FcnOptions(provider="cpu")).check()
    assert isinstance(caught.value, CheckFailed)
    assert "verify=False" in str(caught.value)


def test_sixteen_bits_are_not_cut_off(tmp_path: Path) -> None:
    """Pillow made nearly all pixels of a 16-bit image white, without a word."""
    pil = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 65536, (8, 9)).astype(np.uint16)
    folder = tmp_path / "images"
    folder.mkdir()
    pil.fromarray(pixels).save(folder / "deep.png")
    spec = InputSpec("image", np.dtype(np.uint8), (1, 1, 8, 9))
    np.testing.assert_array_equal(Images(folder).samples([spec])[0].feeds["image"][0, 0], pixels >> 8)
    pil.fromarray(pixels.astype(np.float32)).save(folder / "deep.tif")
    with pytest.raises(UsageError, match=r"deep\.tif have 32 bits and no known range"):
        Images(folder).samples([spec])


def test_bench_names_only_options_that_it_has(tmp_path: Path, scores: Path) -> None:
    with pytest.raises(UsageError) as caught:
        bench(scores, scores)
    assert str(caught.value).endswith("give size=(H, W)")
    assert "shapes={'image': ...}" in stopped(scores)
    words = save(tmp_path / "words.onnx", f"{HEADER} net (string[N] x) => (string[N] y) {{ y = Identity (x) }}")
    with pytest.raises(UsageError, match="no numbers can be drawn for it"):
        bench(words, words)


def test_a_comparison_of_two_converted_models_claims_no_windows(tmp_path: Path) -> None:
    """It printed "every output equals the original on its window", which it had not looked at."""
    original, converted = lenet5_path(), tmp_path / "out.onnx"
    pipeline.fcn(str(original), str(converted), FcnOptions(provider="cpu")).check()
    both = pipeline.compare(str(converted), str(converted), VerifyOptions(provider="cpu", sizes=[(40, 40)])).check()
    assert both.window is None
    assert pipeline.compare(str(original), str(converted), VerifyOptions(provider="cpu")).check().window is not None


def test_a_size_that_was_cut_short_says_so() -> None:
    found = timing.compare([timing.Rounds((1.0,), (1.0,), (2.0,))] * 6)
    costs = timing.Cost(1.0, 1, None, None), timing.Cost(2.0, 1, None, None)
    cell = timing.Cell((64, 64), 1, *costs, found, complete=False)
    text = str(timing.Bench("a.onnx", "b.onnx", "cpu", False, 1, 1.0, (cell,)))
    assert "64x64, batch 1: stopped after 6 sets" in text
    assert "not just the quotient" in text
