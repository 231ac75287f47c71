"""subpixel-conv: against ONNX Runtime on the original, bit for bit on whole numbers, at several sizes of an open map.

ONNX Runtime has no Conv and ConvTranspose of float64 on the CPU: there the oracle is the definition, one tap at a time,
which is itself held against ONNX Runtime in float32, and the result is run by onnx's reference evaluator.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from subpixel_nets import SIZES, changed, check_same, net_of, operators

import convrewrite as cr
from convrewrite.engine.rewrite import FixedSize
from nets import Array, Net, run
from rewriting import macs_of

# Any size -----------------------------------------------------------------------------------------------------------

KERNELS = ((1, 1), (3, 3), (4, 4), (5, 2))
STRIDES = ((1, 1), (2, 2), (3, 3), (2, 1), (2, 3))
CROPS: tuple[dict[str, Any], ...] = (
    {},
    {"pads": [1, 1, 1, 1]},
    {"pads": [0, 2, 1, 0]},
    {"pads": [4, 3, 2, 5]},
    {"output_padding": [1, 0]},
    {"output_padding": [0, 1], "pads": [1, 0, 0, 2]},
    {"auto_pad": "VALID"},
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER"},
)


def legal(strides: Sequence[int], crop: dict[str, Any]) -> bool:
    """What ONNX Runtime takes."""
    padding = crop.get("output_padding", (0, 0))
    return all(more < stride for more, stride in zip(padding, strides, strict=True) if more)


GRID = [case for case in itertools.product(KERNELS, STRIDES, CROPS) if legal(*case[1:])]


@pytest.mark.parametrize(
    ("kernel", "strides", "crop"), GRID, ids=lambda v: str(v).replace(" ", "").strip("{}()").replace("'", "")
)
def test_an_open_map_at_every_size(kernel: Sequence[int], strides: Sequence[int], crop: dict[str, Any]) -> None:
    model = net_of(kernel, strides=strides, **crop)
    _, made = changed(model)
    assert check_same(model, made, [*SIZES, (13, 14)]) >= (2 if sum(crop.get("pads", [])) < 9 else 1)
    wanted = {"DepthToSpace"} if strides[0] == strides[1] > 1 else {"Transpose"} if max(strides) > 1 else set()
    assert set(operators(made)) & {"DepthToSpace", "Transpose"} == wanted


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    """Kernel, strides, dilations, crop, groups, channels, opset and bias of one layer."""
    few = st.integers(1, 4)
    made: dict[str, Any] = {
        "kernel": (draw(few), draw(few)),
        "strides": [draw(few), draw(few)],
        "dilations": [draw(few), draw(few)],
        "group": draw(st.integers(1, 3)),
        "channels": (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        "opset": draw(st.sampled_from([7, 9, 10, 11, 13, 18])),
        "bias": draw(st.booleans()),
        "size": ("N", draw(st.sampled_from(["H", 6])), draw(st.sampled_from(["W", 5]))),
    }
    if draw(st.booleans()):
        made["pads"] = [draw(st.integers(0, 6)) for _ in range(4)]
    if draw(st.booleans()):
        made["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in made["strides"]]
    return made


@given(geometries())
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_any_geometry(geometry: dict[str, Any]) -> None:
    model = net_of(**geometry)
    _, made = changed(model)
    extents = [[n] if isinstance(n, int) else [3, 16] for n in geometry["size"][1:]]
    check_same(model, made, list(itertools.product(*extents)))


@pytest.mark.parametrize("opset", [7, 10, 11, 13])
@pytest.mark.parametrize("strides", [[2, 2], [3, 2]])
@pytest.mark.parametrize("group", [2, 3])
def test_groups_keep_their_channels(group: int, strides: list[int], opset: int) -> None:
    model = net_of((4, 3), channels=(2, 3), group=group, strides=strides, pads=[1, 0, 2, 1], opset=opset)
    _, made = changed(model)
    assert check_same(model, made) == len(SIZES)
    (conv,) = [node for node in made.graph.node if node.op_type == "Conv"]
    assert {a.name: a.i for a in conv.attribute if a.name == "group"} == {"group": group}
    assert ("DepthToSpace" in operators(made)) == (opset >= 11 and strides[0] == strides[1])


@pytest.mark.parametrize(("stride", "dilation", "taps"), [(1, 3, 3), (2, 2, 3), (2, 4, 3), (2, 3, 4), (3, 2, 2)])
def test_a_dilated_kernel_is_filled_up_only_where_it_must_be(stride: int, dilation: int, taps: int) -> None:
    """Where the stride divides the dilation all taps are in one phase, and what is left of it dilates the Conv."""
    both = {"strides": [stride] * 2, "dilations": [dilation] * 2}
    model = net_of((3, 3), **both)
    _, made = changed(model)
    assert check_same(model, made) == len(SIZES)
    (conv,) = [node for node in made.graph.node if node.op_type == "Conv"]
    assert list(onnx.helper.get_node_attr_value(conv, "kernel_shape")) == [taps, taps]


SHAPES = ([9, 9], [8, 11], [5, 12], [9, 10], [10, 11])
"""What an output_shape asks of a 4 x 5 map at stride 2 and kernel 3, which by itself gives 9 x 11."""


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_output_shape_of_a_fixed_map(shape: list[int], auto_pad: str) -> None:
    model = net_of(size=("N", 4, 5), strides=[2, 2], output_shape=shape, auto_pad=auto_pad)
    result, made = changed(model)
    assert check_same(model, made, [(4, 5)]) == 1
    assert not result.evidence


def test_an_output_shape_of_an_open_map_takes_a_size() -> None:
    model = net_of(strides=[2, 2], output_shape=[8, 9])
    result, made = changed(model, sized={"x": ["N", 2, 4, 5]})
    assert check_same(model, made, [(4, 5)]) == 1
    assert result.evidence_of(FixedSize)


def test_a_layer_that_runs_at_any_size_is_not_fixed_at_the_one_that_was_given() -> None:
    result, made = changed(net_of(strides=[2, 3]), sized={"x": ["N", 2, 4, 5]})
    assert not result.evidence
    assert check_same(net_of(strides=[2, 3]), made) == len(SIZES)


def test_a_generator_of_several_layers() -> None:
    """As in DCGAN, from one cell on, with real numbers; the names of inputs and outputs stay."""
    net = Net("N", 5, "H", "W", seed=3)
    map_ = "x"
    for name, inputs, outputs, attrs in (
        ("project", 5, 6, {"strides": [1, 1]}),
        ("grow", 6, 4, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("paint", 4, 3, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ):
        weight = net.const(net.rng.standard_normal((inputs, outputs, 4, 4)))
        map_ = net.Tanh(net.ConvTranspose(map_, weight, net.ints(outputs), name=name, **attrs))
    model = net.model(map_)
    result, made = changed(model)
    assert len(result.outcome("rewritten")) == 3
    for size in SIZES:
        image = {"x": net.rng.standard_normal((2, 5, *size)).astype(np.float32)}
        np.testing.assert_allclose(run(made, image)[map_], run(model, image)[map_], rtol=0, atol=1e-5)


# What is built ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ({"strides": [1, 1]}, "Conv"),
        ({"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, "Conv DepthToSpace"),
        ({"kernel": (2, 2), "strides": [2, 2]}, "Conv DepthToSpace"),
        ({"kernel": (4, 4), "strides": [2, 2], "pads": [1, 1, 1, 1]}, "Conv DepthToSpace Slice"),
        ({"kernel": (2, 3), "strides": [2, 3], "size": ("N", "H", 5)}, "Conv Reshape Transpose Reshape"),
        (
            {"kernel": (2, 3), "strides": [2, 3]},
            "Conv Shape Gather Concat Reshape Transpose Mul Concat Reshape",
        ),
        ({"kernel": (2, 2), "strides": [2, 2], "size": ("N", 4, 5), "opset": 10}, "Conv Reshape Transpose Reshape"),
    ],
)
def test_no_more_than_it_takes(how: dict[str, Any], wanted: str) -> None:
    _, made = changed(net_of(**how))
    assert sorted(operators(made)) == sorted(wanted.split())


@pytest.mark.parametrize(
    ("how", "before", "after"),
    [
        ({"kernel": (2, 2)}, 2 * 3 * 4 * 20, 2 * 3 * 4 * 20),
        ({"kernel": (4, 4), "pads": [1, 1, 1, 1]}, 2 * 3 * 16 * 20, 12 * 2 * 4 * 5 * 6),
        ({"kernel": (3, 3), "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, 2 * 3 * 9 * 20, 12 * 2 * 4 * 20),
        ({"kernel": (1, 1)}, 2 * 3 * 20, 12 * 2 * 20),
    ],
)
def test_the_cost_is_that_of_both_models(how: dict[str, Any], before: int, after: int) -> None:
    """By hand on a 4 x 5 map, and as the whole models are counted."""
    model = net_of(size=(1, 4, 5), strides=[2, 2], **how)
    result, made = changed(model)
    (site,) = result.sites
    assert (site.macs_before, site.macs_after) == (before, after) == (macs_of(model), macs_of(made))
    entries = [sum(int(np.prod(t.dims)) for t in m.graph.initializer if t.data_type == 1) for m in (model, made)]
    assert [site.params_before, site.params_after] == entries


def test_the_cost_of_an_open_map_is_that_of_one_cell() -> None:
    (site,) = changed(net_of(strides=[2, 2]))[0].sites
    assert (site.macs_before, site.macs_after) == (2 * 3 * 9, 12 * 2 * 4)


def test_a_weight_that_two_layers_share() -> None:
    """With other strides, and a third reader that stays; the initializer is as it was."""
    net = Net("N", 3, "H", "W")
    weight = net.ints(3, 3, 3, 3, name="W")
    one = net.ConvTranspose("x", weight, strides=[2, 2], pads=[1, 1, 1, 1])
    two = net.ConvTranspose("x", weight, strides=[3, 1], pads=[0, 1, 0, 1])
    three = net.Conv("x", weight, pads=[1, 1, 1, 1])
    model = net.model(one, two, three)
    _, made = changed(model)
    assert check_same(model, made) == len(SIZES)
    old, new = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, made))
    np.testing.assert_array_equal(new["W"], old["W"])


def test_a_weight_that_is_computed_from_constants() -> None:
    net = Net("N", 2, "H", "W")
    weight = net.Transpose(net.ints(3, 2, 4, 4), perm=[1, 0, 2, 3])
    model = net.model(net.ConvTranspose("x", weight, strides=[2, 2]))
    _, made = changed(model)
    assert check_same(model, made) == len(SIZES)
    assert operators(made).count("Transpose") == 0


def test_float16() -> None:
    """Whole numbers below 2048, which half precision holds."""
    model = net_of((3, 4), strides=[2, 2], pads=[1, 1, 0, 1], dtype=np.float16)
    _, made = changed(model)
    assert check_same(model, made) == len(SIZES)
    assert {t.data_type for t in made.graph.initializer} <= {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}


def by_hand(x: Array, weight: Array, bias: Array, strides: Sequence[int], pads: Sequence[int]) -> Array:
    """The definition for one group: each cell of the input adds its kernel to the output."""
    kernel = weight.shape[2:]
    whole = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], strides, kernel, strict=True)]
    out = np.zeros((len(x), weight.shape[1], *whole), x.dtype)
    for row, column in np.ndindex(*x.shape[2:]):
        top, left = row * strides[0], column * strides[1]
        block = np.einsum("nc,cokl->nokl", x[:, :, row, column], weight)
        out[:, :, top : top + kernel[0], left : left + kernel[1]] += block
    out = out[:, :, pads[0] : whole[0] - pads[2], pads[1] : whole[1] - pads[3]]
    return out + bias[:, None, None]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("strides", [[2, 2], [1, 3]])
def test_by_hand(dtype: Any, strides: list[int]) -> None:
    """float64 keeps what float32 would lose: the weights are a third and more digits."""
    pads = [1, 0, 2, 1]
    net = Net("N", 2, "H", "W", dtype=dtype)
    weight = (net.rng.standard_normal((2, 3, 4, 3)) / 3).astype(dtype)
    bias = net.rng.standard_normal(3).astype(dtype)
    model = net.model(net.ConvTranspose("x", net.const(weight), net.const(bias), strides=strides, pads=pads))
    _, made = changed(model)
    limit = 1e-5 if dtype == np.float32 else 1e-14
    for size in ((2, 5), (7, 4)):
        x = net.rng.standard_normal((2, 2, *size)).astype(dtype)
        want = by_hand(x, weight, bias, strides, pads)
        (got,) = ReferenceEvaluator(made).run(None, {"x": x})
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=limit)
        if dtype == np.float32:
            np.testing.assert_allclose(*(run(m, {"x": x}).popitem()[1] for m in (model, made)), rtol=0, atol=limit)
            np.testing.assert_allclose(run(model, {"x": x}).popitem()[1], want, rtol=0, atol=limit)


def test_by_name_from_python(tmp_path: Path) -> None:
    """Verified at several sizes, and written."""
    onnx.save(net_of((4, 4), strides=[2, 2], pads=[1, 1, 1, 1]), tmp_path / "in.onnx")
    done = cr.transform(tmp_path / "in.onnx", "subpixel-conv")
    assert done.changed
    assert done.verification is not None
    assert done.verification.passed
    done.save(tmp_path / "out.onnx")
    assert operators(onnx.load(tmp_path / "out.onnx")) == ["Conv", "DepthToSpace", "Slice"]
