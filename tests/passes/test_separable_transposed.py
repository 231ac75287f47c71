"""`separable` on ConvTranspose: planted kernels in every form, on every geometry; whole numbers bit for bit.

The oracle is ONNX Runtime on the original; ranks are planted by building kernels from factors by hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

from convrewrite import model_io
from convrewrite.engine.convsite import swapped
from convrewrite.engine.layers import Spreading
from convrewrite.engine.rewrite import Kernels, accept_all
from convrewrite.passes.separable import Separable
from convrewrite.passes.separable.emission import Replacement, emit
from convrewrite.passes.separable.forms import decompositions
from convrewrite.passes.separable.geometry import Cost
from convrewrite.passes.separable.plans import Option
from convrewrite.passes.separable.refine import Moments
from convrewrite.passes.separable.site import LayerSite, read_site
from convrewrite.passes.separable.transposed import explicit
from convrewrite.pipeline import native, responses
from nets import Array, Net, run
from rewriting import ROUNDING, assert_same, macs_of, reference_of, rewrite

FORMS = ("spatial", "depthwise", "channel", "tucker")
KERNELS: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    1: ((5,), (9,)),
    2: ((3, 5), (6, 7)),
    3: ((3, 3, 2), (4, 3, 5)),
}
GEOMETRY: list[dict[str, Any]] = [
    {},
    {"strides": 2, "pads": 1},
    {"strides": 3, "output_padding": 1, "pads": 1},
    {"dilations": 2, "pads": 2},
    {"strides": 2, "auto_pad": "SAME_UPPER"},
    {"strides": 3, "auto_pad": "SAME_LOWER"},
    {"strides": 2, "auto_pad": "VALID"},
    {"strides": 2, "output_shape": 0},
    {"strides": 3, "output_shape": -1},
    {"strides": 2, "output_shape": 2, "dilations": 2},
    {"strides": 3, "output_shape": 1, "auto_pad": "SAME_UPPER", "output_padding": 1},
    {"strides": 2, "pads": "asymmetric", "dilations": 2},
]


def planted(form: str, out: int, inputs: int, kernel: tuple[int, ...], group: int, *, whole: bool = False) -> Array:
    """A kernel [I, O/g, *kernel] of low rank in one form, by hand."""
    rng = np.random.default_rng(len(kernel))

    def numbers(*shape: int) -> Array:
        return rng.integers(-2, 3, shape).astype(float) if whole else rng.standard_normal(shape)

    parts = []
    for _ in range(group):
        o, i = out // group, inputs // group
        if form == "spatial":
            rest = numbers(2, o, *kernel[1:])
            parts.append(np.einsum("rih,ro...->ioh...", numbers(2, i, kernel[0]), rest))
        elif form == "depthwise":
            parts.append(np.einsum("io,i...->io...", numbers(i, o), numbers(i, *kernel)))
        elif form == "channel":
            parts.append(np.einsum("ir,ro...->io...", numbers(i, 2), numbers(2, o, *kernel)))
        else:
            parts.append(np.einsum("ir,rs...,so->io...", numbers(i, 2), numbers(2, 2, *kernel), numbers(2, o)))
    return np.concatenate(parts)


def attributes(given: dict[str, Any], kernel: Sequence[int], size: Sequence[int]) -> dict[str, Any]:
    """For each axis; `output_shape` is given as the cells that are cropped."""
    rank, made = len(kernel), dict[str, Any]()
    for name, value in given.items():
        if name == "auto_pad":
            made[name] = value
        elif value == "asymmetric":
            made[name] = [*range(1, rank + 1), *[0] * rank]
        elif name == "pads":
            made[name] = [value] * (2 * rank)
        elif name == "output_shape":
            plain = attributes(
                {key: more for key, more in given.items() if key not in (name, "auto_pad")}, kernel, size
            )
            made[name] = [extent - value for extent in Spreading.read(plain, kernel, size).output]
        elif name == "output_padding":
            made[name] = [value, *[0] * (rank - 1)]
        else:
            made[name] = [value] + [value - 1] * (rank - 1) if name == "strides" else [value] * rank
    return made


def net_of(
    weight: Array, shape: tuple[int | str, ...], *, bias: bool = True, norm: bool = False, **attrs: Any
) -> onnx.ModelProto:
    """One ConvTranspose with that weight, a BatchNormalization if wanted, and a Relu."""
    net = Net(*shape, opset=13, seed=5)
    out = weight.shape[1] * attrs.get("group", 1)
    more = [net.const(net.rng.standard_normal(out))] if bias else []
    y = net.node("ConvTranspose", "x", net.const(weight, "W"), *more, name="up", outputs=["planted"], **attrs)
    if norm:
        values = [net.rng.uniform(0.5, 2, out), net.rng.standard_normal(out), net.rng.standard_normal(out)]
        y = net.BatchNormalization(y, *(net.const(v) for v in (*values, net.rng.uniform(0.5, 2, out))))
    return net.model(net.Relu(y))


CASES = [case for case in itertools.product(FORMS, [1, 2, 3], [1, 2]) if case[:2] != ("spatial", 1)]


@pytest.mark.parametrize("geometry", GEOMETRY, ids=lambda g: "-".join(f"{k}{v}" for k, v in g.items()) or "default")
@pytest.mark.parametrize(("form", "rank", "group"), CASES)
def test_a_planted_kernel_is_found(form: str, rank: int, group: int, geometry: dict[str, Any]) -> None:
    kernel, extents = KERNELS[rank]
    weight = planted(form, 12, 16, kernel, group)
    attrs = attributes(geometry, kernel, extents) | ({"group": group} if group > 1 else {})
    model = net_of(weight, (2, 16, *extents), bias=rank != 2, norm=rank != 1, **attrs)
    result, made = rewrite(model, Separable(form=form), accept_all)
    (site,) = result.sites
    assert (site.op, site.outcome, site.equivalence) == ("ConvTranspose", "rewritten", "reassociated"), site
    assert_same(model, made)
    assert site.macs_before == macs_of(model)
    assert site.macs_after == macs_of(made)
    assert site.macs_after < site.macs_before or rank == 3
    assert "BatchNormalization" not in {node.op_type for node in made.graph.node}
    again, _ = rewrite(made, Separable(form=form, tol=0.5))
    assert {site.reason for site in again.sites} == {"separable/already-factored"}


@pytest.mark.parametrize("form", FORMS)
def test_stages_without_an_axis_are_plain_convolutions(form: str) -> None:
    model = net_of(planted(form, 12, 16, (3, 5), 1), (1, 16, 6, 7), strides=[2, 2])
    _, made = rewrite(model, Separable(form=form))
    kinds = [(node.op_type, onnx.helper.get_node_attr_value(node, "kernel_shape")) for node in made.graph.node[:-1]]
    for op, extents in kinds:
        assert op == ("Conv" if extents == [1, 1] else "ConvTranspose")
    wide = [extents for op, extents in kinds if op == "ConvTranspose"]
    assert sorted(wide) == ([[1, 5], [3, 1]] if form == "spatial" else [[3, 5]])


@pytest.mark.parametrize("attrs", [{}, {"strides": [2, 3]}, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}], ids=str)
def test_a_stride_along_an_axis_of_extent_one(attrs: dict[str, Any]) -> None:
    """The axis goes to the last stage that spreads, so that the map grows late."""
    weight = planted("channel", 12, 16, (3, 1), 1)
    model = net_of(weight, (1, 16, 6, 7), **attrs)
    result, made = rewrite(model, Separable())
    assert result.changed
    assert_same(model, made)
    assert result.sites[0].macs_after == macs_of(made)


@pytest.mark.parametrize("form", FORMS)
def test_open_maps(form: str) -> None:
    model = net_of(planted(form, 12, 16, (3, 5), 1), (1, 16, "height", "width"), strides=[2, 1], pads=[1, 0, 1, 2])
    result, made = rewrite(model, Separable(form=form))
    (site,) = result.sites
    assert site.macs_before == 12 * 16 * 15, "per cell of the input"
    assert site.macs_after < site.macs_before
    assert_same(model, made)


@pytest.mark.parametrize("form", FORMS)
def test_a_given_size_on_an_open_map(form: str) -> None:
    """Between two stages that both spread, the extents would follow from the map; one stage can keep them."""
    attrs = {"strides": [2, 2], "output_shape": [27, 28]}  # 13 cells are fed
    model = net_of(planted(form, 12, 16, (3, 5), 1), (1, 16, "height", "width"), **attrs)
    assumed = {"x": (1, 16, 9, 9)}  # a size that was tried; it must not be written into the file
    result, made = rewrite(model, Separable(form=form), shapes=assumed)
    if form in ("channel", "tucker"):
        assert result.changed
        assert_same(model, made)
    else:
        assert [site.reason for site in result.sites] == ["separable/no-form"]
        assert rewrite(model, Separable())[0].sites[0].reason != "separable/no-form"


@pytest.mark.parametrize("tol", [1e-3, 0.1])
@pytest.mark.parametrize("form", FORMS)
def test_noise_is_stated_and_verified_by_the_reconstruction(form: str, tol: float) -> None:
    exact = planted(form, 24, 20, (3, 5), 2)
    noise = np.random.default_rng(3).standard_normal(exact.shape)
    weight = exact + 0.5 * tol * np.linalg.norm(exact) / np.linalg.norm(noise) * noise
    model = net_of(weight, (1, 20, 9, 8), group=2, strides=[2, 2])
    result, made = rewrite(model, Separable(tol=tol, form=form))
    (site,) = result.sites
    assert site.equivalence == "approximate"
    kernel, _ = result.evidence_of(Kernels).made["planted"]()
    assert site.error == pytest.approx(np.linalg.norm(kernel - weight) / np.linalg.norm(weight), rel=0.01)
    assert site.error <= tol
    assert_same(reference_of(model, result), made)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_the_stored_order_of_channels(group: int) -> None:
    """Channel o of group g sees the channels of that group alone."""
    weight = np.arange(8 * 3 * 5.0).reshape(8, 3, 5)
    turned = swapped(weight, group)
    assert turned.shape == (3 * group, 8 // group, 5)
    np.testing.assert_array_equal(swapped(turned, group), weight)
    for o, i in itertools.product(range(8), range(3)):
        g = o // (8 // group)
        np.testing.assert_array_equal(turned[g * 3 + i, o % (8 // group)], weight[o, i])


# Whole numbers


@pytest.mark.parametrize("geometry", GEOMETRY, ids=lambda g: "-".join(f"{k}{v}" for k, v in g.items()) or "default")
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("order", ["vertical-horizontal", "horizontal-vertical", "channel-out", "channel-in"])
def test_whole_numbers_agree_bit_for_bit(order: str, group: int, geometry: dict[str, Any]) -> None:
    """Factors of whole numbers in the place of those of the decomposition: what is emitted is what they mean."""
    rng = np.random.default_rng(0)
    kernel, extents = KERNELS[2]
    attrs = attributes(geometry, kernel, extents) | ({"group": group} if group > 1 else {})
    model = net_of(planted("spatial", 12, 16, kernel, group), (1, 16, *extents), **attrs)
    loaded = model_io.load(model.SerializeToString())
    site = read_site(loaded.graph, loaded.graph.nodes[0])
    assert isinstance(site, LayerSite)
    site = replace(site, bias=np.round(3 * site.bias), attrs=explicit(site.attrs, kernel, extents))
    made_of = next(d for d in decompositions(site.weight, site.group) if d.name == order)
    replacement = Replacement(site, Option(made_of, (2,), 0.0, Cost(0, 0, 0)), None, 0.0)
    for factor in replacement.factorization.branches[0]:
        vars(factor)["weight"] = rng.integers(-2, 3, factor.weight.shape).astype(float)
    weight = swapped(replacement.factorization.dense(), group)
    stored = [t for t in model.graph.initializer if t.name != "W"]
    whole = numpy_helper.from_array(np.round(3 * numpy_helper.to_array(stored[0])), stored[0].name)
    del model.graph.initializer[:]
    model.graph.initializer.extend([whole, numpy_helper.from_array(weight.astype(np.float32), "W")])
    emit(loaded.graph, replacement)
    made = onnx.load_model_from_string(model_io.to_bytes(loaded))
    feeds = {"x": rng.integers(-3, 4, (1, 16, *extents)).astype(np.float32)}
    want, got = (next(iter(run(m, feeds).values())) for m in (model, made))
    assert want.max() > 0
    np.testing.assert_array_equal(got, want)


# Where cells go


@pytest.mark.parametrize("geometry", GEOMETRY, ids=lambda g: "-".join(f"{k}{v}" for k, v in g.items()) or "default")
@pytest.mark.parametrize("size", [(5, 8), (2, 3)])
def test_where_a_cell_goes(geometry: dict[str, Any], size: tuple[int, int]) -> None:
    """One cell and a kernel of distinct numbers: every number of the result is where the arithmetic says."""
    attrs = attributes(geometry, (3, 5), size)
    weight = np.arange(1.0, 16.0).reshape(1, 1, 3, 5)
    model = net_of(weight, (1, 1, *size), bias=False, **attrs)
    spreading = Spreading.read(attrs, (3, 5), size)
    x = np.zeros((1, 1, *size), np.float32)
    x[0, 0, 1, 2] = 1.0
    (got,) = run(model, {"x": x}).values()
    want = np.zeros(spreading.output, np.float32)
    for tap in np.ndindex(3, 5):
        at = [
            p * s + t * d - b
            for p, s, t, d, b in zip((1, 2), spreading.strides, tap, spreading.dilations, spreading.begin, strict=True)
        ]
        if all(0 <= a < n for a, n in zip(at, want.shape, strict=True)):
            want[tuple(at)] += weight[0, 0][tap]
    np.testing.assert_array_equal(got[0, 0], want)


# Fitted to responses


@pytest.mark.parametrize("geometry", GEOMETRY[:6], ids=lambda g: "-".join(f"{k}{v}" for k, v in g.items()) or "default")
@pytest.mark.parametrize("group", [1, 2])
def test_a_fit_sees_what_a_cell_sees(group: int, geometry: dict[str, Any]) -> None:
    """The response that is foretold is the one that ONNX Runtime gives, on the data of the fit."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((16, 12 // group, 3, 4))
    attrs = attributes(geometry, (3, 4), (6, 7)) | ({"group": group} if group > 1 else {})
    model = net_of(weight, (1, 16, 6, 7), norm=True, **attrs)
    x = (rng.standard_normal((8, 16, 6, 7)) * np.geomspace(1, 1e-2, 16)[:, None, None] + 0.5).astype(np.float32)
    loaded = model_io.load(model.SerializeToString())
    at = native.native(loaded, None)
    collected = responses.Collected.read(loaded, {"x": x}, at, "cpu", 0)
    plain, _ = rewrite(model, Separable(tol=0.6, form="channel"))
    result, made = rewrite(model, Separable(tol=0.6, form="channel"), responses=collected)
    (site,) = result.outcome("rewritten")
    assert site.error <= 0.6
    assert plain.sites[0].rank == site.rank
    assert_same(reference_of(model, result), made, 2 * ROUNDING)
    ahead = [_without_relu(m) for m in (model, made)]
    want, got = (np.concatenate([next(iter(run(m, {"x": one[None]}).values())) for one in x]) for m in ahead)
    centred = want - want.mean(axis=(0, 2, 3), keepdims=True)
    assert site.response_error == pytest.approx(np.linalg.norm(got - want) / np.linalg.norm(centred), rel=0.01)


def _without_relu(model: onnx.ModelProto) -> onnx.ModelProto:
    part = onnx.ModelProto()
    part.CopyFrom(model)
    relu = part.graph.node.pop()
    part.graph.output[0].name = relu.input[0]
    return part


def test_moments_are_those_of_the_patches() -> None:
    """By hand: each output cell is the product of the kernel with the patch that is said to reach it."""
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 2))
    model = net_of(weight, (1, 4, 5, 4), bias=False, strides=[2, 3], pads=[1, 0, 0, 1])
    loaded = model_io.load(_without_relu(model).SerializeToString())
    site = read_site(loaded.graph, loaded.graph.nodes[0])
    assert isinstance(site, LayerSite)
    x = np.random.default_rng(1).standard_normal((3, 4, 5, 4)).astype(np.float32)
    at = native.native(loaded, None)
    found = responses.Collected.read(loaded, {"x": x}, at, "cpu", 0)(loaded.graph, site)
    assert isinstance(found, Moments)
    flat = site.weight.reshape(3, -1)
    np.testing.assert_allclose(found.cross, flat @ found.second[0], atol=1e-5)
    assert found.response == pytest.approx(np.trace(flat @ found.second[0] @ flat.T), rel=1e-5)
    assert np.trace(found.second[0]) > 0


def test_names_and_outputs_survive() -> None:
    model = net_of(planted("channel", 12, 16, (3, 3), 1), (1, 16, 6, 7), strides=[2, 2])
    model.graph.output.append(onnx.helper.make_tensor_value_info("planted", 1, [1, 12, 13, 15]))
    result, made = rewrite(model, Separable())
    assert result.changed
    assert [info.name for info in made.graph.output] == [info.name for info in model.graph.output]
    assert_same(model, made)
    assert isinstance(result.graph, gs.Graph)


def test_reasons() -> None:
    shape = (1, 16, 6, 7)
    for weight, want in ((np.zeros((16, 4, 3, 3)), "zero-kernel"), (np.full((16, 4, 3, 3), np.nan), "nan-weight")):
        assert [s.reason for s in rewrite(net_of(weight, shape), Separable())[0].sites] == [f"separable/{want}"]
    net = Net(*shape)
    model = net.model(net.ConvTranspose("x", net.input("W", 16, 4, 3, 3)))
    assert [s.reason for s in rewrite(model, Separable())[0].sites] == ["separable/weight-not-constant"]
