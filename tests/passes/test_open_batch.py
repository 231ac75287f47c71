"""open-batch: two images at once against ONNX Runtime on the original, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest

from convrewrite import model_io
from convrewrite.engine.rewrite import PassResult, run_pass
from convrewrite.passes.open_batch import REASONS, OpenBatch
from nets import Net, run


def opened(model: onnx.ModelProto) -> tuple[PassResult, onnx.ModelProto]:
    loaded = model_io.load(model.SerializeToString())
    result = run_pass(OpenBatch(), loaded.graph)
    made = onnx.load_from_string(model_io.to_bytes(replace(loaded, graph=result.graph)))
    onnx.checker.check_model(made, full_check=True)
    return result, made


def images(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


def flatten_by(*told: int) -> Callable[[Net, str], str]:
    return lambda net, x: net.fc(net.Reshape(x, net.const(list(told))), 5)


def flatten_axis_0(net: Net, x: str) -> str:
    return net.fc(net.Flatten(x, axis=0), 5)


def attention(net: Net, x: str) -> str:
    """Heads are told apart by a Reshape whose first extent is the batch, and it is merged into one of positions."""
    rows = net.Transpose(net.Reshape(x, net.const([1, 4, 36])), perm=[0, 2, 1])
    split = net.Transpose(net.Reshape(rows, net.const([1, 36, 2, 2])), perm=[0, 2, 1, 3])
    merged = net.Reshape(net.Transpose(split, perm=[0, 2, 1, 3]), net.const([36, 4]))
    return net.Reshape(net.fc(merged, 3), net.const([1, 36, 3]))


def expand(net: Net, x: str) -> str:
    mean = net.GlobalAveragePool(x)
    return net.Sub(x, net.Expand(mean, net.const([1, 4, 6, 6])))


def resize(net: Net, x: str) -> str:
    return net.Resize(x, "", "", net.const([1, 4, 12, 9]), mode="nearest")


def shuffle(net: Net, x: str) -> str:
    five = net.Transpose(net.Reshape(x, net.const([1, 2, 2, 6, 6])), perm=[0, 2, 1, 3, 4])
    return net.Reshape(five, net.const([1, 4, 6, 6]))


def classes(net: Net, x: str) -> str:
    return net.ArgMax(net.fc(net.Reshape(x, net.const([1, -1])), 5), axis=1, keepdims=0)


def class_token(net: Net, x: str) -> str:
    """A learned vector ahead of the positions, once per image."""
    rows = net.Transpose(net.Reshape(x, net.const([1, 4, 36])), perm=[0, 2, 1])
    token = net.Reshape(net.ints(4), net.const([1, 1, 4]))
    return net.MatMul(net.Concat(token, rows, axis=1), net.ints(4, 3))


HEADS = {
    "0": flatten_by(0, -1),
    "1": flatten_by(1, -1),
    "1-and-the-rest": flatten_by(1, 144),
    "-1": flatten_by(-1, 144),
    "flatten-axis-0": flatten_axis_0,
    "attention": attention,
    "expand": expand,
    "resize": resize,
    "shuffle": shuffle,
    "int64": classes,
    "class-token": class_token,
}
FIXED = set(HEADS) - {"0", "-1", "expand", "resize"}
"""Heads that take one batch alone: they fail with two. (A Resize would drop one.)"""


@pytest.mark.parametrize("name", HEADS)
def test_two_at_once_are_each_by_itself(name: str) -> None:
    net = Net(1, 2, 6, 6)
    model = net.model(HEADS[name](net, net.Relu(net.conv("x", 4, 3, 3, pads=[1, 1, 1, 1]))))
    if name in FIXED:  # the test could fail: opening the input alone is not enough
        wide = onnx.ModelProto()
        wide.CopyFrom(model)
        wide.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        with pytest.raises(Exception, match=r"ORT|ONNXRuntimeError"):
            run(wide, {"x": images((2, 2, 6, 6), 0)})
    result, made = opened(model)
    assert [site.outcome for site in result.sites] == ["rewritten"]
    assert [dim.dim_param for dim in made.graph.input[0].type.tensor_type.shape.dim][:1] == ["batch"]
    assert made.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    one, other = images((1, 2, 6, 6), 0), images((1, 2, 6, 6), 1)
    want = [next(iter(run(model, {"x": x}).values())) for x in (one, other)]
    got = next(iter(run(made, {"x": np.concatenate([one, other])}).values()))
    np.testing.assert_array_equal(got, np.concatenate(want))
    assert not np.array_equal(want[0], want[1])


@pytest.mark.parametrize("opset", [7, 11, 13, 21, 23])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_of_several(batch: int, opset: int) -> None:
    """A model for three images takes any number too, by Reshapes that say 3."""
    net = Net(batch, 2, 6, 6, opset=opset)
    head = net.Reshape(net.conv("x", 4, 3, 3), net.const([batch, 64]))
    model = net.model(net.fc(head, 5))
    _, made = opened(model)
    x = images((6, 2, 6, 6), 0)
    want = np.concatenate([next(iter(run(model, {"x": x[i : i + batch]}).values())) for i in range(0, 6, batch)])
    np.testing.assert_array_equal(next(iter(run(made, {"x": x}).values())), want)


def test_every_input_of_the_batch_is_opened_and_no_other() -> None:
    net = Net(1, 2, 6, 6)
    net.input("features", 1, 4)
    net.input("temperature", 1)
    pooled = net.Reshape(net.GlobalAveragePool(net.conv("x", 4, 3, 3)), net.const([1, 4]))
    model = net.model(net.Mul(net.Add(pooled, "features"), "temperature"))
    _, made = opened(model)
    dims = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in made.graph.input}
    assert dims == {"x": ["batch", 2, 6, 6], "features": ["batch", 4], "temperature": [1]}
    x, f, t = images((2, 2, 6, 6), 0), images((2, 4), 1), np.array([2.0], np.float32)
    got = next(iter(run(made, {"x": x, "features": f, "temperature": t}).values()))
    for i in range(2):
        one = run(model, {"x": x[i : i + 1], "features": f[i : i + 1], "temperature": t})
        np.testing.assert_array_equal(got[i : i + 1], next(iter(one.values())))


# One model per reason


def already_open() -> onnx.ModelProto:
    net = Net("N", 2, 6, 6)
    return net.model(net.fc(net.Flatten(net.Relu("x")), 5), shapes={})


def no_input() -> onnx.ModelProto:
    net = Net(6)
    return net.model(net.Relu("x"))


def open_size() -> onnx.ModelProto:
    net = Net(1, 2, "H", "W")
    return net.model(net.conv("x", 4, 3, 3))


def baked() -> onnx.ModelProto:
    """A Split into one part per image."""
    net = Net(2, 2, 6, 6)
    parts = net.node("Split", net.Relu("x"), net.const([1, 1]), outputs=2, axis=0)
    return net.model(net.Concat(*parts, axis=0))


def mixed() -> onnx.ModelProto:
    net = Net(1, 2, 6, 6)
    return net.model(net.reduce("ReduceMean", net.conv("x", 4, 3, 3), [0]))


def counted() -> onnx.ModelProto:
    """Each number is multiplied by how many images there are."""
    net = Net(1, 2, 6, 6)
    count = net.Cast(net.Gather(net.Shape("x"), net.const(0), axis=0), to=onnx.TensorProto.FLOAT)
    return net.model(net.Mul(net.conv("x", 4, 3, 3), count))


def no_rule() -> onnx.ModelProto:
    """MaxUnpool counts its places over all images."""
    net = Net(1, 2, 6, 6)
    pooled, places = net.node("MaxPool", "x", outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    return net.model(net.MaxUnpool(pooled, places, kernel_shape=[2, 2], strides=[2, 2]))


def no_shape() -> onnx.ModelProto:
    """A layer of ONNX Runtime's own, which onnx has no shape inference for."""
    net = Net(1, 6)
    scale, zero = net.const(0.1), net.const(0, dtype=np.uint8)
    weight, bias = net.const(np.ones((6, 4)), dtype=np.int8), net.const(np.zeros(4), dtype=np.int32)
    words = [net.QuantizeLinear("x", scale, zero), scale, zero, weight, scale, net.const(0, dtype=np.int8), bias]
    y = net.node("QGemm", *words, scale, zero, domain="com.microsoft")
    made = net.DequantizeLinear(y, scale, zero)
    model = net._proto([onnx.helper.make_tensor_value_info(made, onnx.TensorProto.FLOAT, [1, 4])])
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return model


BUILT = {
    f"open-batch/{f.__name__.replace('_', '-')}": f
    for f in (already_open, no_input, open_size, baked, mixed, counted, no_rule, no_shape)
}


@pytest.mark.parametrize("code", REASONS)
def test_reasons(code: str) -> None:
    result, _ = opened(BUILT[code]())
    assert [site.reason for site in result.sites] == [code]
    assert not result.changed
    assert all(site.detail for site in result.sites)


def test_it_does_nothing_twice() -> None:
    net = Net(1, 2, 6, 6)
    _, made = opened(net.model(attention(net, net.conv("x", 4, 3, 3, pads=[1, 1, 1, 1]))))
    again, same = opened(made)
    assert not again.changed
    assert [site.reason for site in again.sites] == ["open-batch/already-open"]
    assert [n.op_type for n in same.graph.node] == [n.op_type for n in made.graph.node]
