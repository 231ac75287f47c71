"""`separable` on planted kernels: found, exact, at the cost that was promised; and left alone where it should be.

The oracle is ONNX Runtime on the original model; ranks are planted by building kernels from factors by hand.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from convrewrite.acceptance import smaller
from convrewrite.engine.rewrite import Kernels
from convrewrite.passes.separable import Separable
from helpers import Array, Net
from rewriting import ROUNDING, assert_same, macs_of, reference_of, rewrite
from separable_planted import NO, low_rank, net_of, only_site, planted

EXTENTS: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    1: ((5,), (19,)),
    2: ((3, 5), (14, 17)),
    3: ((3, 3, 5), (7, 8, 9)),
}


GEOMETRY: list[dict[str, Any]] = [
    {},
    {"strides": 2, "pads": 1},
    {"dilations": 2, "pads": 2},
    {"strides": 2, "auto_pad": "SAME_UPPER"},
    {"strides": 3, "auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID", "strides": 2},
    {"pads": "asymmetric", "strides": 2, "dilations": 2},
]


def attributes(rank: int, given: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in given.items():
        if name in ("strides", "dilations"):
            made[name] = [value] * (rank - 1) + [1] if rank > 1 else [value]
        elif value == "asymmetric":
            made[name] = [*range(1, rank + 1), *[0] * rank]
        elif name == "pads":
            made[name] = [value] * (2 * rank)
        else:
            made[name] = value
    return made


KINDS = [
    (form, rank, group)
    for form, rank, group in itertools.product(["spatial", "depthwise", "channel", "tucker"], [1, 2, 3], [1, 2])
    if (form, rank) != ("spatial", 1)  # one axis cannot be split
]


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("geometry", GEOMETRY, ids=lambda g: "-".join(f"{k}{v}" for k, v in g.items()) or "default")
@pytest.mark.parametrize(("form", "rank", "group"), KINDS)
def test_a_planted_kernel_is_found(
    form: str, rank: int, group: int, geometry: dict[str, Any], bias: bool, norm: bool
) -> None:
    kernel, extents = EXTENTS[rank]
    weight = planted(np.random.default_rng(rank), form, 16, 12, kernel, group)
    attrs = attributes(rank, geometry) | ({"group": group} if group > 1 else {})
    model = net_of(weight, (2, 12, *extents), bias=bias, norm=norm, **attrs)
    result, made = rewrite(model, Separable(form=form))
    site = only_site(result)
    assert (site.outcome, site.equivalence) == ("rewritten", "reassociated"), site
    assert site.error < ROUNDING
    assert_same(model, made)
    assert site.macs_before == macs_of(model)
    assert site.macs_after == macs_of(made) < site.macs_before
    assert not any(node.op_type == "BatchNormalization" for node in made.graph.node)
    params = sum(math.prod(t.dims) for t in made.graph.initializer)
    assert site.params_after == params
    assert_idempotent(made, Separable(form=form))


def assert_idempotent(model: onnx.ModelProto, pass_: Separable) -> None:
    again, same = rewrite(model, pass_)
    assert not again.changed
    assert {site.reason for site in again.sites} <= {
        "separable/already-factored",
        "accept/not-smaller",
        "separable/no-form",
    }
    assert len(same.graph.node) == len(model.graph.node)


@pytest.mark.parametrize("kernel", [(3, 3), (5, 7)])
@pytest.mark.parametrize(("channels", "multiplier"), [(16, 1), (6, 2)])
def test_a_depthwise_convolution_is_factored_channel_by_channel(
    kernel: tuple[int, int], channels: int, multiplier: int
) -> None:
    rng = np.random.default_rng(0)
    column, row = rng.standard_normal((channels, 1, kernel[0])), rng.standard_normal((channels, multiplier, kernel[1]))
    weight = np.einsum("cih,cmw->cmihw", column, row).reshape(channels * multiplier, 1, *kernel)
    model = net_of(weight, (1, channels, 20, 21), group=channels, pads=[k // 2 for k in kernel] * 2)
    result, made = rewrite(model, Separable())
    assert only_site(result).equivalence == "reassociated"
    convs = [node for node in made.graph.node if node.op_type == "Conv"]
    assert len(convs) == 2
    shapes = {tensor.name: tensor.dims for tensor in made.graph.initializer}
    assert all(shapes[node.input[1]][1] == 1 for node in convs), "depthwise again"
    assert_same(model, made)


@pytest.mark.parametrize(
    "kernel",
    [
        np.outer([1, 2, 1], [1, 0, -1]),
        np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256,
        np.ones((3, 3)) / 9,
    ],
    ids=["sobel", "gaussian", "box"],
)
def test_the_kernels_of_the_lectures(kernel: Array) -> None:
    """Sobel = [1 2 1]^T [1 0 -1]: 9 numbers become 6."""
    size = len(kernel)
    model = net_of(kernel[None, None], (1, 1, 30, 31), bias=False)
    result, made = rewrite(model, Separable(form="spatial"))
    assert only_site(result).params_before == size * size
    assert only_site(result).params_after == 2 * size
    assert_same(model, made)


@pytest.mark.parametrize("tol", [1e-4, 1e-2, 0.1])
@pytest.mark.parametrize("form", ["spatial", "depthwise", "channel", "tucker"])
def test_planted_noise_is_stated_to_a_percent(form: str, tol: float) -> None:
    rng = np.random.default_rng(3)
    exact = planted(rng, form, 24, 20, (3, 5))
    noise = rng.standard_normal(exact.shape)
    weight = exact + 0.5 * tol * np.linalg.norm(exact) / np.linalg.norm(noise) * noise
    model = net_of(weight, (1, 20, 15, 16))
    result, made = rewrite(model, Separable(tol=tol, form=form))
    site = only_site(result)
    assert (site.outcome, site.equivalence) == ("rewritten", "approximate")
    kernel, _ = result.evidence_of(Kernels).made["planted"]()
    true = np.linalg.norm(kernel - weight) / np.linalg.norm(weight)
    assert true <= tol
    assert site.error == pytest.approx(true, rel=0.01)
    assert_same(reference_of(model, result), made)


def test_a_normalization_is_folded_before_the_error_is_measured() -> None:
    """A channel that the BatchNormalization scales up counts for more."""
    rng = np.random.default_rng(4)
    weight = planted(rng, "channel", 16, 16, (3, 3)) + 0.01 * rng.standard_normal((16, 16, 3, 3))
    model = net_of(weight, (1, 16, 12, 12), norm=True)
    scales = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    gain = scales[norm.input[1]] / np.sqrt(scales[norm.input[4]] + 1e-5)
    result, made = rewrite(model, Separable(tol=0.05))
    kernel, _ = result.evidence_of(Kernels).made["planted"]()
    wide = gain[:, None, None, None]
    stored = scales["W"]
    true = np.linalg.norm(wide * (kernel - stored)) / np.linalg.norm(wide * stored)
    assert only_site(result).error == pytest.approx(true, rel=0.01)
    reference = reference_of(model, result)
    assert any(node.op_type == "BatchNormalization" for node in reference.graph.node)
    assert_same(reference, made)


def test_a_normalization_that_is_not_alone_stays() -> None:
    net = Net(1, 12, 10, 11)
    y = net.node("Conv", "x", net.const(low_rank()), outputs=["planted"])
    norm = net.BatchNormalization(y, *(net.const(net.rng.uniform(0.5, 2, 16)) for _ in range(4)))
    model = net.model(net.Add(norm, y))
    result, made = rewrite(model, Separable())
    assert result.changed
    assert any(node.op_type == "BatchNormalization" for node in made.graph.node)
    assert_same(model, made)


def test_the_output_of_a_graph_keeps_its_name() -> None:
    net = Net(1, 12, 10, 11)
    y = net.node("Conv", "x", net.const(low_rank()), outputs=["planted"])
    norm = net.BatchNormalization(y, *(net.const(net.rng.uniform(0.5, 2, 16)) for _ in range(4)))
    model = net.model(y, norm)
    result, made = rewrite(model, Separable())
    assert result.changed
    assert [info.name for info in made.graph.output] == [info.name for info in model.graph.output]
    assert_same(model, made)


def test_a_shared_weight_is_never_edited() -> None:
    net = Net(1, 12, 10, 12)
    weight = net.const(low_rank(12, 12), "W")
    first = net.node("Conv", "x", weight, pads=[1, 1, 1, 1], outputs=["one"])
    second = net.node("Conv", net.Relu(first), weight, outputs=["two"])
    model = net.model(second)
    result, made = rewrite(model, Separable())
    assert [site.outcome for site in result.sites] == ["rewritten", "rewritten"]
    assert_same(model, made)
    half, kept = rewrite(
        model, Separable(), lambda graph, plan: smaller(graph, plan) if plan.sites[0].anchor == "one" else NO
    )
    assert [site.outcome for site in half.sites] == ["rewritten", "declined"]
    assert_same(model, kept)


@pytest.mark.parametrize("way", ["Constant", "Reshape", "Transpose", "ConstantOfShape", "DequantizeLinear"])
def test_the_weight_may_be_computed(way: str) -> None:
    net = Net(1, 12, 10, 11)
    weight = low_rank().astype(np.float32)
    if way == "Constant":
        name = net.node("Constant", value=numpy_helper.from_array(weight))
    elif way == "Reshape":
        name = net.Reshape(net.const(weight.reshape(16, -1)), net.const([16, 12, 3, 3]))
    elif way == "Transpose":
        name = net.Transpose(net.const(weight.transpose(1, 0, 2, 3)), perm=[1, 0, 2, 3])
    elif way == "ConstantOfShape":
        value = numpy_helper.from_array(np.float32([0.25]))
        name = net.node("ConstantOfShape", net.const([16, 12, 3, 3]), value=value)
    else:
        quantized = np.sign(weight[:1, :1]) * np.ones((16, 12, 1, 1))
        name = net.DequantizeLinear(net.const(quantized, dtype=np.int8), net.const(np.float32(0.5)))
    model = net.model(net.Relu(net.Conv("x", name)))
    result, made = rewrite(model, Separable())
    assert result.changed
    assert_same(model, made)


@pytest.mark.parametrize(("dtype", "error"), [(np.float16, 5e-3), (np.float64, 1e-12)])
def test_other_types_keep_their_type(dtype: Any, error: float) -> None:
    """ONNX's reference evaluator is the oracle: ONNX Runtime has no convolution of doubles on the CPU."""
    net = Net(1, 12, 10, 11, dtype=dtype)
    y = net.node("Conv", "x", net.const(low_rank()), net.const(np.ones(16)), outputs=["y"])
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = typed(net, y, kind)
    result, made = rewrite(model, Separable())
    assert only_site(result).equivalence == "reassociated"
    assert {tensor.data_type for tensor in made.graph.initializer} == {kind}
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 12, 10, 11)).astype(dtype)}
    want, got = (np.asarray(ReferenceEvaluator(m).run(None, feeds)[0], np.float64) for m in (model, made))
    assert float(np.abs(got - want).max()) <= error * float(np.abs(want).max())


def typed(net: Net, name: str, kind: int) -> onnx.ModelProto:
    """The model without a look at ONNX Runtime."""
    outputs = [onnx.helper.make_tensor_value_info(name, kind, [1, 16, 8, 9])]
    graph = onnx.helper.make_graph(net.nodes, "net", net.inputs, outputs, list(net.initializers.values()))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)


def test_symbolic_sizes_are_counted_per_cell() -> None:
    model = net_of(low_rank(), (1, 12, "height", "width"), strides=[2, 1])
    result, made = rewrite(model, Separable(form="spatial"))
    site = only_site(result)
    assert site.macs_before == 16 * 12 * 9
    assert site.macs_after < site.macs_before
    assert_same(model, made)
