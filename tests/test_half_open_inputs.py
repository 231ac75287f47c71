"""Inputs of which some axes are open and others fixed: `[1, 3, 16, W]`, in every spelling of a size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from input_nets import lines, session

import convrewrite as cr
from convrewrite.errors import Refused, UsageError

HALF_OPEN = {
    "width": ((1, 3, 16, "W"), (16, 32), "NCHW"),
    "height": ((1, 3, "H", 16), (32, 16), "NCHW"),
    "both last": ((1, 16, "W", 3), (16, 32), "NHWC"),
    "first, last": ((1, "H", 16, 3), (32, 16), "NHWC"),
    "batch": (("N", 3, 16, "W"), (16, 32), "NCHW"),
}


@pytest.fixture(params=HALF_OPEN, ids=str)
def half_open(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, tuple[int, ...], str]:
    """A file, the size that its open axis of 32 makes, and its axes."""
    dims, size, axes = HALF_OPEN[request.param]
    path = tmp_path / "lines.onnx"
    onnx.save(lines(*dims), path)
    return path, size, axes


@pytest.mark.parametrize("dynamic_batch", [False, True])
@pytest.mark.parametrize("whole", [False, True], ids=["open axis", "whole image"])
def test_fcn_takes_a_window_in_each_spelling(
    half_open: tuple[Path, tuple[int, ...], str], whole: bool, dynamic_batch: bool
) -> None:
    path, size, axes = half_open
    target = path.with_name("any.onnx")
    result = cr.fcn(path, window=size if whole else 32, dynamic_batch=dynamic_batch)
    result.save(target)
    assert result.window is not None
    assert (result.window.size, result.window.axes) == (size, axes)
    shape = [{"N": 1, "C": 3, "H": size[0] + 2, "W": size[1] + 3}[letter] for letter in axes]
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    cells = session(target).run(None, {"x": image})[0]
    assert cells.shape == (1, 5, 3, 4)
    first = axes.index("H")
    crop = image[(slice(None),) * first + (slice(2, 2 + size[0]), slice(1, 1 + size[1]))]
    want = session(path).run(None, {"x": np.ascontiguousarray(crop)})[0]
    np.testing.assert_allclose(cells[:, :, 2, 1], want, rtol=1e-4, atol=1e-4)


def test_every_command_takes_a_size_in_each_spelling(half_open: tuple[Path, tuple[int, ...], str]) -> None:
    path, size, _ = half_open
    for given in (32, size):
        found = cr.inspect(path, size=given)
        conv = next(layer for layer in found.layers if layer.cost.op == "Conv")
        assert conv.input == (1, 3, *size)
        assert cr.verify(path, path, sizes=[given]).passed
        assert cr.bench(path, path, sizes=[given], seconds=0.01, memory=False, sets=1)
        opened = cr.transform(path, "open-batch", size=given)
        assert opened.verification is None or opened.verification.passed


def test_fixing_the_new_input_keeps_what_is_fixed(tmp_path: Path) -> None:
    source, target = tmp_path / "lines.onnx", tmp_path / "wide.onnx"
    onnx.save(lines(1, 3, 16, "W"), source)
    cr.fcn(source, window=32, size=64).save(target)
    assert session(target).get_inputs()[0].shape == [1, 3, 16, 64]
    cr.fcn(source, window=32, size=(20, 64)).save(target)
    assert session(target).get_inputs()[0].shape == [1, 3, 20, 64]


def test_what_contradicts_the_fixed_extent_is_named(half_open: tuple[Path, tuple[int, ...], str]) -> None:
    path, size, _ = half_open
    wrong = tuple(extent + (4 if extent == 16 else 0) for extent in size)
    own = "x".join("?" if extent == 32 else "16" for extent in size)
    for dynamic_batch in (False, True):
        with pytest.raises(UsageError, match=r"window=\(.*\) does not fit: input 'x' is fixed at") as error:
            cr.fcn(path, window=wrong, dynamic_batch=dynamic_batch)
        assert own in str(error.value)
        assert str(size) in str(error.value)
    with pytest.raises(UsageError, match=r"does not fit: input 'x' is fixed at \S*16"):
        cr.inspect(path, size=wrong)
    with pytest.raises(UsageError, match=r"does not fit: input 'x' is fixed at \S*16"):
        cr.verify(path, path, sizes=[wrong])


def test_channels_that_are_known_are_not_called_open(half_open: tuple[Path, tuple[int, ...], str]) -> None:
    path, _, _ = half_open
    with pytest.raises(Refused) as refused:
        cr.fcn(path)
    assert refused.value.reason == "fcn/window-needed"


@pytest.mark.parametrize("dims", [(1, "C", 16, 32), (1, "C", "H", "W")])
def test_channels_that_are_open_are_called_so(dims: tuple[int | str, ...], tmp_path: Path) -> None:
    model = lines(1, 3, 16, 32)
    for dim, extent in zip(model.graph.input[0].type.tensor_type.shape.dim, dims, strict=True):
        if isinstance(extent, str):
            dim.dim_param = extent
    onnx.save(model, tmp_path / "open.onnx")
    with pytest.raises(Refused, match="number of channels"):
        cr.fcn(tmp_path / "open.onnx")
