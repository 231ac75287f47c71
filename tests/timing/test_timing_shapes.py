"""What is timed: sizes, batches and windows of two models, and those that do not fit."""

from __future__ import annotations

import math

import onnx
import pytest
from onnx import TensorProto
from timed_nets import LENET, conv_net, convert

from convrewrite.errors import UsageError
from convrewrite.models import build
from convrewrite.timing.subjects import Candidate, extents, shapes_at, sliding
from helpers import bench


def test_sizes_and_batches_fill_what_is_open(tmp_path, any_size):
    one = Candidate.read(any_size)
    fixed = Candidate.read(conv_net(tmp_path / "fixed.onnx", side=8, channels=4))
    assert shapes_at(one, one, (7,), 3) == {"x": (3, 4, 7, 7)}
    assert shapes_at(one, one, (7, 9), None) == {"x": (1, 4, 7, 9)}
    assert shapes_at(one, fixed, None, None) == {"x": (1, 4, 8, 8)}, "the open one runs at the size of the other"
    assert shapes_at(fixed, fixed, (8,), None) == {"x": (1, 4, 8, 8)}


@pytest.mark.parametrize(
    ("sizes", "batches", "message"),
    [
        ([], [], "give size="),
        ([(8,)], [], "sizes=8 does not fit: input 'x' of .*fixed.onnx is fixed at 1x4x16x16"),
        ([(16,)], [2], "batch(es)?=2 does not fit"),
        ([(16, 16, 16)], [], r"size has 3 numbers|sizes=\(16, 16, 16\) does not fit"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path, any_size, sizes, batches, message):
    fixed = conv_net(tmp_path / "fixed.onnx", side=16, channels=4)
    other = any_size if not sizes else fixed
    with pytest.raises(UsageError, match=message):
        bench(other, other, sizes=sizes, batches=batches)


def test_models_whose_inputs_differ(tmp_path, any_size):
    renamed = conv_net(tmp_path / "renamed.onnx", side="s", channels=4, name="z")
    with pytest.raises(UsageError, match=r"different inputs: .*any.onnx takes x; .*renamed.onnx takes z"):
        bench(any_size, renamed, sizes=[(8,)])
    small, large = (conv_net(tmp_path / f"{n}.onnx", side=n, channels=4) for n in (8, 16))
    with pytest.raises(UsageError, match=r"input 'x' is 1x4x8x8 in .*, and 1x4x16x16 in .*windows compares"):
        bench(small, large)
    model = onnx.load(any_size)
    for end in (model.graph.input[0], model.graph.output[0]):
        end.type.tensor_type.elem_type = TensorProto.UINT8
    onnx.save(model, tmp_path / "bytes.onnx")
    with pytest.raises(UsageError, match=r"input 'x' is float32 \?x4x\?x\? in .*, and uint8"):
        bench(any_size, tmp_path / "bytes.onnx", sizes=[(8,)])


def test_an_image_of_which_nothing_is_left(tmp_path):
    onnx.save(build("resnet18", width=0.0625, size=64), tmp_path / "m.onnx")
    fcn = convert(tmp_path / "m.onnx", tmp_path / "fcn.onnx")
    with pytest.raises(UsageError, match=r"does not run at 1x3x5x5: .*give a larger sizes"):
        bench(fcn, fcn, sizes=[(5,)])


def test_bad_input(tmp_path, any_size):
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    for wrong in (tmp_path / "junk.onnx", tmp_path / "none.onnx", "-"):
        with pytest.raises(UsageError):
            bench(any_size, wrong, sizes=[(8,)])
    for seconds in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="seconds is"):
            bench(any_size, any_size, sizes=[(8,)], seconds=seconds)


def test_a_provider_that_is_not_obtained(any_size):
    import onnxruntime

    if (
        "CUDAExecutionProvider"
        in onnxruntime.InferenceSession(
            str(any_size), providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
        ).get_providers()
    ):
        pytest.skip("CUDA works here")
    with pytest.raises(UsageError, match="provider 'cuda' cannot be used here"):
        bench(any_size, any_size, sizes=[(8,)], provider="cuda")


def test_extents_of_an_image():
    assert extents((8, 3, 224, 192)) == ((224, 192), 8)
    assert extents((8, 224, 192, 3)) == ((224, 192), 8)
    assert extents((8, 224, 192, 64), "NHWC") == ((224, 192), 8)
    assert extents((224, 192), "HW") == ((224, 192), 1)
    assert extents((5, 10)) == ((10,), 5)


def test_batches_of_the_windows(tmp_path):
    fcn = convert(LENET, tmp_path / "fcn.onnx")
    original, converted = Candidate.read(LENET), Candidate.read(fcn)
    work = sliding(original, converted, None, ())
    assert (work.size, work.windows, work.batches) == ((64, 64), 81, (1,)), "9 x 9 windows; the batch of LeNet is fixed"
    model = onnx.load(LENET)
    for end in (model.graph.input[0], model.graph.output[0]):
        end.type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(model, tmp_path / "open.onnx")
    work = sliding(Candidate.read(tmp_path / "open.onnx"), converted, (48, 40), ())
    assert work.windows == 15
    assert work.batches == (1, 8)
    counts = [[(part.shapes["image"][0], part.count) for part in way] for way in work.original.ways]
    assert counts == [[(1, 15)], [(8, 1), (7, 1)]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [(20,)]}, r"sizes=\(20, 20\) is smaller than the window, 32x32"),
        ({"sizes": [(64, 64, 64)]}, r"sizes=\(64, 64, 64\) has 3 numbers"),
        ({"batches": [4]}, "has the fixed batch 1"),
    ],
)
def test_windows_that_do_not_fit(tmp_path, options, message):
    fcn = convert(LENET, tmp_path / "fcn.onnx")
    with pytest.raises(UsageError, match=message):
        bench(LENET, fcn, windows=True, **options)


def test_windows_want_the_fcn_model_second(tmp_path):
    fcn = convert(LENET, tmp_path / "fcn.onnx")
    with pytest.raises(UsageError, match="swap them"):
        bench(fcn, LENET, windows=True)
    with pytest.raises(UsageError, match=r"make it with 'convrewrite\.fcn'"):
        bench(LENET, LENET, windows=True)
