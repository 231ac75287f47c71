"""upsample: the class map at the size of the image. The oracle is numpy: each pixel from the cells around it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from convrewrite import model_io
from convrewrite.engine.rewrite import run_pass
from convrewrite.engine.windows import OutputGrid, Window
from convrewrite.passes.upsample import Upsample
from nets import Net, run
from oracles import pixels_by_hand


def net_of(
    size: tuple[int, ...], stride: tuple[int, ...], opset: int = 13, softmax: bool = False
) -> tuple[Net, str, Window]:
    """One convolution as large as the window, which is a classifier of three classes."""
    letters = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}[len(size)]
    net = Net(1, 2, *letters, opset=opset)
    x = net.node("Conv", "x", net.const(net.rng.standard_normal((3, 2, *size))), strides=list(stride))
    x = net.Softmax(x, axis=1) if softmax else x
    axes = {1: "NCL", 2: "NCHW", 3: "NCDHW"}[len(size)]
    outputs = {x: OutputGrid(stride, (1,) * len(size))}
    zeros = (0,) * len(size)
    return net, x, Window("x", axes, size, stride, zeros, size, "windows", outputs=outputs)


def upsampled(net: Net, output: str, pass_: Upsample) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = net.model(output)
    loaded = model_io.load(model.SerializeToString())
    result = run_pass(pass_, loaded.graph)
    assert [site.outcome for site in result.sites] == ["rewritten"]
    return model, onnx.load_from_string(model_io.to_bytes(replace(loaded, graph=result.graph)))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    ("size", "stride"),
    [
        ((5, 7), (2, 3)),  # odd windows
        ((4, 8), (2, 4)),  # even ones, even strides
        ((6, 4), (3, 1)),  # even ones, odd strides: every second entry of a finer Resize
        ((5, 6), (2, 2)),  # one of each
        ((3, 3), (1, 1)),  # dense already: moved and held at the edges
        ((2, 2), (4, 5)),  # windows that leave pixels out
        ((7,), (3,)),
        ((8,), (4,)),
        ((3, 4, 5), (2, 2, 1)),
    ],
    ids=str,
)
def test_every_pixel_of_every_size(size: tuple[int, ...], stride: tuple[int, ...], mode: str) -> None:
    net, output, window = net_of(size, stride)
    before, after = upsampled(net, output, Upsample(mode, window=window))
    for more in range(max(stride) + 2):
        extents = tuple(2 * s + w + more + i for i, (w, s) in enumerate(zip(size, stride, strict=True)))
        x = np.random.default_rng(more).standard_normal((1, 2, *extents)).astype(np.float32)
        cells, pixels = run(before, {"x": x})[output], run(after, {"x": x})[output]
        assert pixels.shape[2:] == extents
        np.testing.assert_allclose(pixels, pixels_by_hand(cells, window, extents, mode), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", [11, 13, 18, 19, 21])
def test_opsets(opset: int) -> None:
    for size, stride in (((5, 4), (2, 2)), ((5,), (2,))):
        net, output, window = net_of(size, stride, opset)
        before, after = upsampled(net, output, Upsample(window=window))
        extents = tuple(11 + i for i in range(len(size)))
        x = np.random.default_rng(0).standard_normal((1, 2, *extents)).astype(np.float32)
        want = pixels_by_hand(run(before, {"x": x})[output], window, extents, "bilinear")
        np.testing.assert_allclose(run(after, {"x": x})[output], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", ["", "last", "none"])
def test_where_the_softmax_stands(where: str) -> None:
    net, output, window = net_of((4, 4), (2, 2), softmax=True)
    before, after = upsampled(net, output, Upsample(softmax=where, window=window))
    x = np.random.default_rng(0).standard_normal((1, 2, 11, 9)).astype(np.float32)
    probabilities = run(before, {"x": x})[output].astype(np.float64)
    scores = np.log(probabilities)  # up to a number for each cell, which a Softmax behind would not see
    got = run(after, {"x": x})[output]
    if where == "":
        np.testing.assert_allclose(
            got, pixels_by_hand(probabilities, window, (11, 9), "bilinear"), rtol=1e-4, atol=1e-5
        )
        return
    want = pixels_by_hand(scores, window, (11, 9), "bilinear")
    if where == "last":
        np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(got, np.exp(want) / np.exp(want).sum(axis=1, keepdims=True), rtol=1e-3, atol=1e-5)
    else:
        differences = (got - got[:, :1]) - (want - want[:, :1])
        np.testing.assert_allclose(differences, 0, atol=1e-4)
        assert not any(node.op_type == "Softmax" for node in after.graph.node)


def test_what_is_refused() -> None:
    net, output, window = net_of((4, 4), (2, 2), opset=10)
    graph = model_io.load(net.model(output).SerializeToString()).graph
    assert [s.reason for s in run_pass(Upsample(window=window), graph).sites] == ["upsample/opset"]
    assert [s.reason for s in run_pass(Upsample(), graph).sites] == ["upsample/no-window"]
    net, output, window = net_of((4, 4), (2, 2))
    classes = net.ArgMax(output, axis=1)
    graph = model_io.load(net.model(classes).SerializeToString()).graph
    on_classes = replace(window, outputs={classes: window.outputs[output]})
    assert [s.reason for s in run_pass(Upsample(window=on_classes), graph).sites] == ["upsample/classes"]
    assert run_pass(Upsample("nearest", window=on_classes), graph).changed
    as_map = replace(window, outputs={classes: OutputGrid((1, 1), (3, 3))})
    assert [s.reason for s in run_pass(Upsample("nearest", window=as_map), graph).sites] == ["upsample/not-a-map"]
