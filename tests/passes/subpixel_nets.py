"""Networks of one ConvTranspose of whole numbers, and how the pass subpixel-conv is held against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from convrewrite.acceptance import accept_all
from convrewrite.engine.rewrite import PassResult
from convrewrite.passes.subpixel_conv import SubpixelConv
from nets import Array, Net, run
from rewriting import rewrite

SIZES = ((1, 1), (2, 5), (7, 4))
OPEN = ("N", "H", "W")


def net_of(
    kernel: Sequence[int] = (3, 3),
    size: Sequence[int | str] = OPEN,
    *,
    channels: tuple[int, int] = (2, 3),
    opset: int = 13,
    bias: bool = True,
    dtype: Any = np.float32,
    **attrs: Any,
) -> onnx.ModelProto:
    """One ConvTranspose of whole numbers. size: batch and map. channels: per group, of input and output."""
    group = attrs.get("group", 1)
    per, out = channels
    net = Net(size[0], per * group, *size[1:], opset=opset, dtype=dtype)
    more = [net.ints(out * group)] if bias else []
    return net.model(net.node("ConvTranspose", "x", net.ints(per * group, out, *kernel), *more, **attrs))


def changed(model: onnx.ModelProto, **known: Any) -> tuple[PassResult, onnx.ModelProto]:
    """The pass over it, which has to rewrite every ConvTranspose."""
    result, made = rewrite(model, SubpixelConv(), accept_all, **known)
    assert result.changed, result
    assert "ConvTranspose" not in operators(made)
    onnx.checker.check_model(made, full_check=True)
    return result, made


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def image_of(model: onnx.ModelProto, size: Sequence[int], batch: int = 2) -> Array:
    (info,) = [info for info in model.graph.input if info.name == "x"]
    kind = info.type.tensor_type
    shape = (batch, kind.shape.dim[1].dim_value, *size)
    numbers = np.random.default_rng(sum(size)).integers(-3, 4, shape)
    return numbers.astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def check_same(before: onnx.ModelProto, after: onnx.ModelProto, sizes: Sequence[Sequence[int]] = SIZES) -> int:
    """Bit for bit at all sizes at which ONNX Runtime takes the original; returns how many these are."""
    taken = 0
    for size in sizes:
        feeds = {"x": image_of(before, size)}
        try:
            wanted = run(before, feeds)
        except Exception:  # nothing is left of a small map behind its crop
            continue
        taken += 1
        for (name, want), got in zip(wanted.items(), run(after, feeds).values(), strict=True):
            np.testing.assert_array_equal(got, want, err_msg=f"{name} at {size}")
    return taken
