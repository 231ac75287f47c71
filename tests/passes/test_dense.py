"""dense: strides removed, what follows dilated. The oracle is the coarse model in ONNX Runtime, run twice over:

every f-th cell of the new map equals the old map, on any size of the image, bit for bit on whole numbers
where nothing sees padding, cell f i + j of the new map equals cell i of the old one for the image from pixel j on
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from convrewrite import model_io
from convrewrite.engine.graph import infer_shapes, skeleton
from convrewrite.engine.rewrite import Context, Density, PassResult, run_pass
from convrewrite.errors import UsageError
from convrewrite.passes.dense import Dense
from nets import Net, run

SIZE = (37, 42)


def dense(model: onnx.ModelProto, stride: Sequence[int] | None, size: Sequence[int] = SIZE) -> PassResult:
    """The pass, with the shapes of an image of that size."""
    graph = model_io.load(model.SerializeToString()).graph
    image = graph.inputs[0]
    spatial = iter(size)
    dims = [d if isinstance(d, int) else next(spatial) for d in image.shape]
    shapes = infer_shapes(graph, {image.name: dims})
    pass_ = Dense(None if stride is None else tuple(stride))
    return run_pass(pass_, graph, context=Context.of(graph, shapes=shapes))


def made(result: PassResult, model: onnx.ModelProto) -> onnx.ModelProto:
    """The new model with its weights."""
    loaded = model_io.load(model.SerializeToString())
    return onnx.load_from_string(model_io.to_bytes(replace(loaded, graph=result.graph)))


def image(model: onnx.ModelProto, size: Sequence[int], seed: int = 0) -> np.ndarray[Any, Any]:
    spatial = iter(size)
    dims = [d.dim_value or next(spatial) for d in model.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(seed).integers(-3, 4, dims).astype(np.float32)


def assert_dense(
    model: onnx.ModelProto,
    stride: Sequence[int] | None,
    *,
    size: Sequence[int] = SIZE,
    exact: bool = True,
    shifts: bool = False,
    layout: str = "NCHW",
) -> PassResult:
    """Both oracles; `shifts`: nothing sees padding."""
    result = dense(model, stride, size)
    assert result.changed, result
    new = made(result, model)
    ((output, steps),) = result.evidence_of(Density).factors.items()
    name = model.graph.input[0].name
    places = [i for i, letter in enumerate(layout) if letter not in "NC"]
    for more in (0, 1, 3):
        x = image(model, [extent + more for extent in size], seed=more)
        try:
            want = run(model, {name: x})[output]
        except Exception:
            if more:
                continue  # branches of the coarse model may disagree at sizes in between
            raise
        got = run(new, {name: x})[output]
        index = tuple(slice(None, None, steps.get(dim, 1)) for dim in range(want.ndim))
        same(got[index], want, exact)
        for shift in itertools.product(*(range(min(steps.get(p, 1), 3)) for p in places)) if shifts else ():
            unit = [result.evidence_of(Density).strides[output][i] for i in range(len(places))]
            cut = [slice(None)] * x.ndim
            for p, s, u in zip(places, shift, unit, strict=True):
                cut[p] = slice(s * u, None)
            want = run(model, {name: np.ascontiguousarray(x[tuple(cut)])})[output]
            starts = dict(zip(places, shift, strict=True))
            index = tuple(slice(starts.get(d, 0), None, steps.get(d, 1)) for d in range(want.ndim))
            same(got[index], want, exact)
    return result


def same(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], exact: bool) -> None:
    assert got.shape == want.shape
    assert np.abs(want).max() > 0
    if exact:
        np.testing.assert_array_equal(got, want)
    else:
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * float(np.abs(want).max()))


def open_net(opset: int = 19, channels: int = 2) -> Net:
    return Net(1, channels, "height", "width", opset=opset)


# Nets without padding: every new cell is the old one of a shifted image ----------------------------------------------


def plain(net: Net) -> str:
    x = net.Relu(net.node("Conv", "x", net.ints(4, 2, 3, 5), strides=[2, 3]))
    x = net.MaxPool(x, kernel_shape=[2, 2], strides=[2, 1])
    return net.node("Conv", x, net.ints(3, 4, 3, 2), dilations=[1, 2])


def inception(net: Net) -> str:
    x = net.node("Conv", "x", net.ints(4, 2, 3, 3), strides=[2, 2])
    a = net.node("Conv", x, net.ints(3, 4, 3, 3), strides=[2, 2])
    b = net.MaxPool(x, kernel_shape=[3, 3], strides=[2, 2])
    return net.node("Conv", net.Concat(a, b, axis=1), net.ints(2, 7, 2, 2))


def depthwise(net: Net) -> str:
    x = net.node("Conv", "x", net.ints(4, 1, 3, 3), strides=[2, 2], group=2)
    x = net.node("Conv", x, net.ints(4, 1, 3, 3), strides=[2, 2], group=4)
    return net.node("Conv", x, net.ints(3, 4, 1, 1))


def subsampled(net: Net) -> str:
    x = net.node("Conv", "x", net.ints(4, 2, 1, 1), strides=[2, 2])
    ends = net.const([2**31 - 1] * 2, dtype=np.int64)
    x = net.Slice(
        x, net.const([1, 0], dtype=np.int64), ends, net.const([2, 3], dtype=np.int64), net.const([2, 2], dtype=np.int64)
    )
    return net.node("Conv", x, net.ints(2, 4, 2, 2))


@pytest.mark.parametrize("stride", [None, (2, 3), (4, 1)], ids=str)
def test_a_plain_net(stride: tuple[int, int] | None) -> None:
    net = open_net()
    assert_dense(net.model(plain(net)), stride, shifts=True)


@pytest.mark.parametrize("build", [inception, depthwise, subsampled], ids=lambda build: build.__name__)
@pytest.mark.parametrize("stride", [None, (2, 2), (1, 4)], ids=str)
def test_nets_without_padding(build: Callable[[Net], str], stride: tuple[int, int] | None) -> None:
    net = open_net()
    assert_dense(net.model(build(net)), stride, shifts=True)


@pytest.mark.parametrize("opset", [10, 13, 18, 19, 21])
@pytest.mark.parametrize("pool", ["AveragePool", "LpPool"])
def test_pools_that_sum(pool: str, opset: int) -> None:
    net = open_net(opset)
    x = net.MaxPool("x", kernel_shape=[2, 2], strides=[2, 2])
    x = net.node(pool, x, kernel_shape=[3, 2], strides=[2, 2])
    assert_dense(net.model(x), None, shifts=True, exact=False)


@pytest.mark.parametrize("p", [1, 3])
def test_an_lp_pool_of_another_power(p: int) -> None:
    net = open_net(13)
    x = net.MaxPool("x", kernel_shape=[2, 2], strides=[2, 2])
    assert_dense(net.model(net.LpPool(x, kernel_shape=[2, 2], strides=[2, 2], p=p)), None, shifts=True, exact=False)


@pytest.mark.parametrize(
    ("letters", "shape", "size"), [("NCL", ("length",), (61,)), ("NCDHW", ("d", "h", "w"), (19, 21, 22))]
)
def test_one_and_three_dimensions(letters: str, shape: tuple[str, ...], size: tuple[int, ...]) -> None:
    net = Net(1, 2, *shape, opset=19)
    rank = len(shape)
    x = net.Relu(net.node("Conv", "x", net.ints(3, 2, *[3] * rank), strides=[2] * rank))
    x = net.MaxPool(x, kernel_shape=[2] * rank, strides=[2] * rank)
    assert_dense(
        net.model(net.node("Conv", x, net.ints(2, 3, *[2] * rank))), None, size=size, shifts=True, layout=letters
    )


def test_channels_last() -> None:
    net = Net(1, "height", "width", 2, opset=19)
    x = net.Transpose("x", perm=[0, 3, 1, 2])
    x = net.MaxPool(net.node("Conv", x, net.ints(3, 2, 3, 3), strides=[2, 2]), kernel_shape=[2, 2], strides=[2, 2])
    x = net.Transpose(x, perm=[0, 2, 3, 1])
    x = net.MatMul(x, net.ints(3, 4))
    assert_dense(net.model(x), None, shifts=True, layout="NHWC")


# Padded nets: every f-th cell is the old one -------------------------------------------------------------------------


def residual(net: Net) -> str:
    x = net.Relu(net.node("Conv", "x", net.ints(4, 2, 7, 7), strides=[2, 2], pads=[3] * 4))
    x = net.MaxPool(x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for _ in range(2):
        a = net.Relu(net.node("Conv", x, net.ints(4, 4, 3, 3, bound=1), strides=[2, 2], pads=[1] * 4))
        a = net.node("Conv", a, net.ints(4, 4, 3, 3, bound=1), pads=[1] * 4)
        x = net.Relu(net.Add(a, net.node("Conv", x, net.ints(4, 4, 1, 1, bound=1), strides=[2, 2])))
    return x


def densenet(net: Net) -> str:
    x = net.node("Conv", "x", net.ints(4, 2, 3, 3), strides=[2, 2], pads=[1] * 4)
    for channels in (4, 7):
        x = net.Concat(x, net.node("Conv", net.Relu(x), net.ints(3, channels, 3, 3, bound=1), pads=[1] * 4), axis=1)
    return net.MaxPool(x, kernel_shape=[2, 2], strides=[2, 2])


def squeezed(net: Net) -> str:
    """A block that weighs channels by the mean of the whole map: the mean is of the old cells."""
    x = net.node("Conv", "x", net.ints(4, 2, 3, 3), strides=[2, 2], pads=[1] * 4)
    x = net.Mul(x, net.Relu(net.GlobalMaxPool(x)))
    x = net.MaxPool(x, kernel_shape=[2, 2], strides=[2, 2])
    return net.Mul(x, net.reduce("ReduceMax", x, [2, 3]))


def explicit_pad(net: Net) -> str:
    x = net.node("Conv", "x", net.ints(3, 2, 3, 3), strides=[2, 2])
    x = net.Pad(x, net.const([0, 0, 1, 2, 0, 0, 2, 1], dtype=np.int64))
    return net.node("Conv", x, net.ints(2, 3, 3, 3), strides=[2, 2])


def ceiling(net: Net) -> str:
    x = net.node("Conv", "x", net.ints(3, 2, 3, 3), strides=[2, 2])
    return net.MaxPool(x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)


@pytest.mark.parametrize(
    "build", [residual, densenet, squeezed, explicit_pad, ceiling], ids=lambda build: build.__name__
)
@pytest.mark.parametrize("stride", [None, (2, 4)], ids=str)
def test_padded_nets(build: Callable[[Net], str], stride: tuple[int, int] | None) -> None:
    net = open_net()
    assert_dense(net.model(build(net)), stride)


@pytest.mark.parametrize("opset", [10, 12, 19])
@pytest.mark.parametrize("counted", [0, 1])
def test_a_mean_over_padding(opset: int, counted: int) -> None:
    """Counted or not, at the border too; below opset 19 by convolutions."""
    net = open_net(opset)
    x = net.MaxPool("x", kernel_shape=[2, 2], strides=[2, 2])
    x = net.AveragePool(x, kernel_shape=[3, 3], strides=[1, 2], pads=[1, 0, 1, 1], count_include_pad=counted)
    assert_dense(net.model(x), None, exact=False)


def test_pads_that_reach_a_dilated_kernel() -> None:
    """ONNX Runtime refuses pads of the kernel's own extent: they become a Pad of minus infinity."""
    net = open_net()
    x = net.MaxPool("x", kernel_shape=[2, 2], strides=[2, 2])
    x = net.MaxPool(x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    x = net.MaxPool(x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    result = assert_dense(net.model(x), None)
    assert sum(node.op == "Pad" for node in result.graph.nodes) == 1
    assert np.isneginf(next(node.inputs[2].values for node in result.graph.nodes if node.op == "Pad"))


def test_what_need_not_change_stays() -> None:
    net = open_net()
    x = net.node("Conv", "x", net.ints(3, 2, 3, 3), strides=[2, 2])
    x = net.node("Conv", x, net.ints(3, 3, 1, 1))
    x = net.node("Conv", x, net.ints(3, 3, 3, 3), strides=[2, 2])
    result = dense(net.model(net.Relu(x)), (2, 2))
    assert [site.op for site in result.sites] == ["Conv"]
    assert [node.attrs.get("strides") for node in result.graph.nodes][:2] == [[2, 2], None]
    assert not dense(net.model(net.Relu(x)), (4, 4)).changed


def test_a_fixed_size_is_told_at_the_output() -> None:
    net = Net(1, 2, *SIZE, opset=19)
    x = net.MaxPool(net.node("Conv", "x", net.ints(3, 2, 3, 3), strides=[2, 2]), kernel_shape=[2, 2], strides=[2, 2])
    model = net.model(x)
    result = run_pass(Dense(), model_io.load(model.SerializeToString()).graph)
    new = made(result, model)
    shape = [dim.dim_value for dim in new.graph.output[0].type.tensor_type.shape.dim]
    (value,) = run(new, {"x": image(model, SIZE)}).values()
    assert tuple(shape) == value.shape
    onnx.checker.check_model(skeleton(result.graph), full_check=True)


# What is refused -----------------------------------------------------------------------------------------------------


def pooled(net: Net) -> str:
    return str(
        net.MaxPool(net.node("Conv", "x", net.ints(4, 2, 3, 3), strides=[2, 2]), kernel_shape=[2, 2], strides=[2, 2])
    )


def disagreeing(net: Net) -> str:
    """At the old stride both have floor(n / 2) cells; at stride 1 one has n - 1 and the other n."""
    a = net.MaxPool("x", kernel_shape=[2, 2], strides=[2, 2])
    b = net.node("Conv", "x", net.ints(2, 2, 3, 3), strides=[2, 2], pads=[1] * 4)
    return str(net.Add(a, b))


REFUSED: dict[str, tuple[Callable[[Net], str], str, int]] = {
    "ConvTranspose": (
        lambda n: n.ConvTranspose(pooled(n), n.ints(4, 2, 2, 2), strides=[2, 2]), "dense/lowers-stride", 19,
    ),
    "DepthToSpace": (lambda n: n.DepthToSpace(pooled(n), blocksize=2), "dense/lowers-stride", 19),
    "SpaceToDepth": (lambda n: n.SpaceToDepth("x", blocksize=2), "dense/lowers-stride", 19),
    "InstanceNormalization": (
        lambda n: n.InstanceNormalization(pooled(n), n.ints(4), n.ints(4)), "dense/no-rule", 19,
    ),
    "reflecting Pad": (
        lambda n: n.Pad(pooled(n), n.const([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect"), "dense/no-rule", 19,
    ),
    "old MaxPool": (pooled, "dense/opset", 9),
    "branches": (disagreeing, "dense/branches", 19),
    "ceil_mode of a mean": (
        lambda n: n.AveragePool(pooled(n), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), "dense/ceil-mode", 19,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    build, code, opset = REFUSED[name]
    net = open_net(opset)
    model = net.model(build(net))
    size = (38, 42) if name == "branches" else (36, 44)
    result = dense(model, (1, 2) if name == "old MaxPool" else None, size)
    if name == "old MaxPool":  # one pool of stride 2 needs no dilation; two of them do
        net = open_net(opset)
        model = net.model(net.MaxPool(pooled(net), kernel_shape=[2, 2], strides=[2, 2]))
        result = dense(model, None, size)
    assert [(site.outcome, site.reason) for site in result.sites] == [("refused", code)]
    assert not result.changed


def test_an_operator_that_lowers_the_stride_may_stand_where_nothing_is_denser() -> None:
    """The map of stride 4 stays as it is; what reads it may be anything."""
    net = open_net()
    trunk = pooled(net)
    x = net.ConvTranspose(trunk, net.ints(4, 2, 2, 2), strides=[2, 2])
    assert [site.reason for site in dense(net.model(x, trunk), (4, 4), (36, 44)).sites] == ["dense/dense-already"]


@pytest.mark.parametrize(("stride", "says"), [((3, 3), "does not divide"), ((1, 1, 1), "has 2 spatial axes")])
def test_a_stride_that_does_not_fit(stride: tuple[int, ...], says: str) -> None:
    net = open_net()
    model = net.model(pooled(net))
    with pytest.raises(UsageError, match=says):
        dense(model, stride)
