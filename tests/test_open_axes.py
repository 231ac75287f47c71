"""Open axes: what is decided for one extent of them is written for all, or not at all.

`conv-to-fc` on networks that lead an open axis into the map of a convolution, one way each; then the second check, by
which every rewrite of an open model is compared at extents that no decision was made at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from convrewrite import model_io, pipeline
from convrewrite.engine.graph import fixed_extents
from convrewrite.engine.rewrite import Context, Pass, Plan, Reason, Site
from convrewrite.errors import CheckFailed
from convrewrite.options import TransformOptions
from convrewrite.passes.conv_to_fc import ConvToFc
from convrewrite.passes.fc_to_conv import FcToConv
from convrewrite.pipeline.outcome import Outcome
from convrewrite.text import PYTHON, told
from helpers import verify
from nets import Net, run

Dims = Sequence[int | str]


def images(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


def rewritten(folder: Path, pass_: Any, model: onnx.ModelProto, size: tuple[int, ...] | None = None) -> Outcome:
    onnx.save(model, folder / "a.onnx")
    how = TransformOptions(provider="cpu", size=size)
    return pipeline.trade(str(folder / "a.onnx"), str(folder / "b.onnx"), pass_, how)


def check_equal(folder: Path, shapes: Sequence[Sequence[int]]) -> None:
    """Both files give the same, at shapes of the one input at which the original runs."""
    for shape in shapes:
        x = images(shape, len(shapes))
        want, got = (run(onnx.load(folder / name), {"x": x}) for name in ("a.onnx", "b.onnx"))
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-4, err_msg=f"{shape}")


# An open axis becomes an axis of the map. Each takes "x" and gives a map whose last axis is 1 where the open one is.


def batch_as_time(net: Net) -> str:
    return net.Transpose(net.Unsqueeze("x", net.const([0])), perm=[0, 2, 1])


def by_reshape(net: Net) -> str:
    return net.Reshape(net.Transpose("x", perm=[1, 0]), net.const([1, 4, -1]))


def by_concat(net: Net) -> str:
    return net.Concat(*[net.Unsqueeze(net.Transpose("x", perm=[1, 0]), net.const([0]))] * 2, axis=1)


def by_slice(net: Net) -> str:
    line = batch_as_time(net)
    return net.Slice(net.Pad(line, net.const([0, 0, 1, 0, 0, 1])), net.const([1]), net.const([-1]), net.const([2]))


def by_arithmetic(net: Net) -> str:
    """The shape is computed: frames / 1 * 4 / 4."""
    frames = net.Div(net.Mul(net.Gather(net.Shape("x"), net.const([0]), axis=0), net.const([4])), net.const([4]))
    shape = net.Concat(net.const([1, 4]), frames, axis=0)
    return net.Reshape(net.Transpose("x", perm=[1, 0]), shape)


def by_two_axes(net: Net) -> str:
    """Rows and columns of the map from the batch."""
    return net.Unsqueeze(batch_as_time(net), net.const([3]))


def by_pooling(net: Net) -> str:
    return net.MaxPool(batch_as_time(net), kernel_shape=[1])


FRAMES: dict[str, Callable[[Net], str]] = {
    f.__name__: f for f in (batch_as_time, by_reshape, by_concat, by_slice, by_arithmetic, by_two_axes, by_pooling)
}


@pytest.mark.parametrize("declared", [("frames", 4), (None, 4)])
@pytest.mark.parametrize("name", FRAMES)
def test_a_map_that_follows_the_batch_is_left_alone(tmp_path: Path, name: str, declared: Dims) -> None:
    net = Net(*[dim or "" for dim in declared])
    line = FRAMES[name](net)
    channels = 8 if name == "by_concat" else 4
    kernel = [1, 1] if name == "by_two_axes" else [1]
    y = net.Sigmoid(net.node("Conv", line, net.ints(3, channels, *kernel), net.ints(3)))
    model = net.model(y, shapes={y: [1, 3, *["T"] * len(kernel)]})
    outcome = rewritten(tmp_path, ConvToFc(), model)
    assert outcome.error is None
    assert [site.reason for site in outcome.sites] == ["conv-to-fc/open-map"]
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()


LAYOUTS: dict[str, tuple[Dims, Callable[[Net, str], str]]] = {
    "NCL": (("N", 4, "L"), lambda net, x: x),
    "NLC": (("N", "L", 4), lambda net, x: net.Transpose(x, perm=[0, 2, 1])),
    "NCHW": (("N", 4, "H", "W"), lambda net, x: x),
    "one of two axes": ((1, 4, 3, "W"), lambda net, x: x),
    "no names": (("", 4, ""), lambda net, x: x),
}


@pytest.mark.parametrize("extent", [224, 3])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_map_that_is_the_open_image_is_left_alone(tmp_path: Path, name: str, extent: int) -> None:
    """Its kernel has the extent that is tried for open inputs, so that it fits once there."""
    dims, layout = LAYOUTS[name]
    net = Net(*dims)
    x = layout(net, "x")
    kernel = [3 if name == "one of two axes" else extent, extent][-(len(dims) - 2) :]
    y = net.node("Conv", x, net.ints(2, 4, *kernel))
    model = net.model(y, shapes={y: ["a", 2, *["b"] * len(kernel)]})
    outcome = rewritten(tmp_path, ConvToFc(), model)
    assert outcome.error is None
    assert not [site for site in outcome.sites if site.outcome == "rewritten"]
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "a.onnx").read_bytes()


def test_a_map_of_one_cell_for_every_image_is_rewritten(tmp_path: Path) -> None:
    """Squeeze and excitation, and a head behind a global pool: batch, height and width stay open."""
    net = Net("N", 3, "H", "W")
    y = net.conv("x", 4, 3, 3)
    gate = net.Sigmoid(net.conv(net.Relu(net.conv(net.GlobalAveragePool(y), 2, 1, 1)), 4, 1, 1))
    head = net.Reshape(net.GlobalMaxPool(net.Mul(y, gate)), net.const([-1, 4, 1, 1]))
    y = net.Flatten(net.conv(head, 3, 1, 1))
    outcome = rewritten(tmp_path, ConvToFc(), net.model(y, shapes={y: ["N", 3]}))
    assert outcome.error is None
    assert [site.outcome for site in outcome.sites].count("rewritten") == 3
    assert outcome.verification is not None
    assert {f"other extents of {s}" for s in "NHW"} <= {case.name for case in outcome.verification.cases}
    after = onnx.load(tmp_path / "b.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in after] == ["N", 3, "H", "W"]
    check_equal(tmp_path, [(1, 3, 8, 9), (3, 3, 16, 5), (2, 3, 33, 40)])


def full_kernel(dims: Dims) -> onnx.ModelProto:
    """A kernel of 5 x 4 over what a convolution leaves of 11 x 9."""
    net = Net(*dims)
    y = net.node("Conv", net.Relu(net.conv("x", 4, 3, 3, strides=[2, 2])), net.ints(2, 4, 5, 4), net.ints(2))
    return net.model(y, shapes={y: [dims[0], 2, "h", "w"]})


def test_a_size_that_decides_is_fixed_in_the_file(tmp_path: Path) -> None:
    outcome = rewritten(tmp_path, ConvToFc(), full_kernel(("N", 3, "H", "W")), (11, 9))
    assert outcome.error is None
    assert [told(site.detail, PYTHON) for site in outcome.sites if site.outcome == "rewritten"] == [
        "Conv 2 x 4 x 5 x 4 -> Gemm [2, 80], the input fixed at size"
    ]
    assert "input 'x' is fixed at Nx3x11x9 now" in outcome.advice
    assert outcome.verification is not None
    (case,) = [case for case in outcome.verification.cases if case.name == "what the inputs accept"]
    assert (case.status, told(case.note, PYTHON)) == (
        "passed",
        "input 'x' takes [N, 3, 11, 9] alone, the original [N, 3, H, W]: size fixes it",
    )
    assert "other extents of N" in {case.name for case in outcome.verification.cases}
    dims = onnx.load(tmp_path / "b.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["N", 3, 11, 9]
    check_equal(tmp_path, [(1, 3, 11, 9), (3, 3, 11, 9)])
    found = verify(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert found.passed
    assert found.warnings == ("input 'x' takes [N, 3, 11, 9] alone, the original [N, 3, H, W]",)


def test_a_size_that_decides_nothing_fixes_nothing(tmp_path: Path) -> None:
    net = Net("N", 3, "H", "W")
    y = net.conv(net.GlobalAveragePool(net.conv("x", 4, 3, 3)), 2, 1, 1)
    rewritten(tmp_path, ConvToFc(), net.model(y, shapes={y: ["N", 2, 1, 1]}), (11, 9))
    dims = onnx.load(tmp_path / "b.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["N", 3, "H", "W"]


def test_a_size_does_not_fix_a_batch_that_is_time(tmp_path: Path) -> None:
    net = Net("frames", 4)
    y = net.node("Conv", batch_as_time(net), net.ints(3, 4, 1))
    outcome = rewritten(tmp_path, ConvToFc(), net.model(y, shapes={y: [1, 3, "frames"]}), (4,))
    assert not [site for site in outcome.sites if site.outcome == "rewritten"]


# fc-to-conv writes shapes down, too


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_shapes_that_a_file_lists_wrongly_are_not_believed(tmp_path: Path, op: str) -> None:
    """Exporters list outputs and tensors inside for a batch of one beside an open input."""
    net = Net("N", 4) if op == "Gemm" else Net("N", "T", 4)
    y = net.node(op, "x", net.ints(4, 6))
    z = net.Relu(net.Add(y, net.ints(6)))
    dims = [1, 6] if op == "Gemm" else [1, 7, 6]
    model = net.model(z, shapes={z: dims})
    model.graph.value_info.append(onnx.helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, dims))
    outcome = rewritten(tmp_path, FcToConv(), model)
    assert outcome.error is None
    assert outcome.sites[0].outcome == "rewritten"
    check_equal(tmp_path, [(1, 4), (5, 4)] if op == "Gemm" else [(1, 7, 4), (3, 7, 4), (2, 9, 4)])


# The second check


def pair(
    folder: Path, dims: Dims, a: Callable[[Net], str], b: Callable[[Net], str], narrow: Dims | None = None
) -> None:
    """Two models; the second declares `narrow` where it is given."""
    for name, build, shape in (("a.onnx", a, dims), ("b.onnx", b, narrow or dims)):
        net = Net(*shape)
        onnx.save(net.model(net.node("Identity", build(net), outputs=["y"]), shapes={}), folder / name)


def product(net: Net) -> str:
    return net.MatMul("x", net.ints(4, 3))


def first_of_each(net: Net) -> str:
    """Right for one image: the first stands for all."""
    y = product(net)
    return net.Add(net.Mul(y, net.const(0.0)), net.Slice(y, net.const([0]), net.const([1]), net.const([0])))


FAULTS: dict[str, tuple[Dims, Callable[[Net], str], Callable[[Net], str], str]] = {
    "a batch of one": (("N", 4), product, first_of_each, "other extents of N"),
    "no name": (("", 4), product, first_of_each, "other extents of the number of images"),
    "one batch baked": (
        ("N", 4),
        product,
        lambda net: net.Reshape(product(net), net.const([1, 3])),
        "other extents of N",
    ),
    "one width baked": (
        ("N", "T", 4),
        product,
        lambda net: net.Reshape(product(net), net.const([-1, 224, 3])),
        "other extents of T",
    ),
    "only from 300 on": (
        ("N", "T", 4),
        product,
        lambda net: net.Slice(product(net), net.const([0]), net.const([250]), net.const([1])),
        "other extents of T",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_at_other_extents_is_found(tmp_path: Path, name: str) -> None:
    dims, a, b, check = FAULTS[name]
    pair(tmp_path, dims, a, b)
    size = (224,) if len(dims) == 3 else None
    found = verify(tmp_path / "a.onnx", tmp_path / "b.onnx", size=size)
    assert {case.name for case in found.cases if case.status == "failed"} == {check}
    assert "ONNXRuntime" not in found.message()
    assert "/onnxruntime" not in found.message()
    pair(tmp_path, dims, a, a)
    same = verify(tmp_path / "a.onnx", tmp_path / "b.onnx", size=size)
    assert same.passed
    assert check in {case.name for case in same.cases if case.status == "passed"}


def test_one_symbol_has_one_extent(tmp_path: Path) -> None:
    """The two inputs are added: with an extent each the original would not run."""
    for name in ("a.onnx", "b.onnx"):
        net = Net("N", "T", 4)
        net.input("other", "N", "T", 1)
        onnx.save(net.model(net.node("Add", "x", "other", outputs=["y"])), tmp_path / name)
    found = verify(tmp_path / "a.onnx", tmp_path / "b.onnx", size=(6,))
    assert {case.name: case.status for case in found.cases} == {
        "outputs": "passed",
        "other extents of N": "passed",
        "other extents of T": "passed",
    }


def test_extents_at_which_the_original_does_not_run_are_skipped_by_name(tmp_path: Path) -> None:
    pair(tmp_path, ("N", "T", 4), *[lambda net: net.Reshape(product(net), net.const([-1, 24]))] * 2)
    found = verify(tmp_path / "a.onnx", tmp_path / "b.onnx", size=(8,))
    assert found.passed  # 16 and 24 are multiples of 8, too
    pair(tmp_path, ("N", "T", 4), *[lambda net: net.Add(product(net), net.ints(2, 8, 3))] * 2)
    found = verify(tmp_path / "a.onnx", tmp_path / "b.onnx", size=(8,), batch=2)
    skipped = {case.name: case.note for case in found.cases if case.status == "skipped"}
    assert found.passed
    assert skipped == {"other extents of T": "the original runs at no other that was tried"}


def test_an_unnamed_state_grows_with_its_images(tmp_path: Path) -> None:
    """A recurrent state has its images along its second axis, and no name says so."""
    for name in ("a.onnx", "b.onnx"):
        net = Net("", 4)
        net.input("state", 1, "", 4)
        y = net.Add("x", net.Squeeze("state", net.const([0])))
        onnx.save(net.model(net.node("Identity", y, outputs=["y"]), shapes={"y": ["", 4]}), tmp_path / name)
    found = verify(tmp_path / "a.onnx", tmp_path / "b.onnx", size=(1,))
    assert found.passed
    assert "other extents of the number of images" in {c.name for c in found.cases if c.status == "passed"}


def test_the_users_data_are_widened(tmp_path: Path) -> None:
    pair(tmp_path, ("N", "T", 4), product, first_of_each)
    data = {"x": images((5, 6, 4))}
    found = verify(tmp_path / "a.onnx", tmp_path / "b.onnx", data=data)
    assert {case.name for case in found.cases if case.status == "failed"} == {"other extents of N"}


def test_a_scalar_beside_the_users_data_stays_a_scalar(tmp_path: Path) -> None:
    """A voice detector's sampling rate, at a number of samples that is open: there is no axis to widen."""
    for name in ("a.onnx", "b.onnx"):
        net = Net("N", "T")
        net.input("rate", dtype=np.int64)
        y = net.Mul("x", net.Cast("rate", to=onnx.TensorProto.FLOAT))
        onnx.save(net.model(net.node("Identity", y, outputs=["y"]), shapes={"y": ["N", "T"]}), tmp_path / name)
    data = {"x": images((2, 1, 6)), "rate": np.full(2, 16000)}
    found = verify(tmp_path / "a.onnx", tmp_path / "b.onnx", data=data)
    assert {case.name: case.status for case in found.cases}["other extents of T"] == "passed"


@pytest.mark.parametrize("axis", [0, 1])
def test_an_input_that_is_narrowed_without_a_word_fails(tmp_path: Path, axis: int) -> None:
    dims: list[int | str] = ["N", "T", 4]
    narrow = [1 if i == axis == 0 else 6 if i == axis else dim for i, dim in enumerate(dims)]
    pair(tmp_path, dims, product, product, narrow)
    paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
    found = verify(*paths, size=(6,), fixed={})
    assert [case.name for case in found.cases if case.status == "failed"] == ["what the inputs accept"]
    assert f"takes [{', '.join(map(str, narrow))}] alone, the original [N, T, 4]" in found.message()
    assert verify(*paths, size=(6,), fixed={"x": narrow}).passed
    by_hand = verify(*paths, size=(6,))
    assert by_hand.passed
    assert len(by_hand.warnings) == 1


@dataclass(frozen=True)
class Narrowing(Pass):
    """A pass of somebody else that bakes the batch at which it looked."""

    name: ClassVar[str] = "narrowing"
    reasons: ClassVar[Mapping[str, Reason]] = {}

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        yield from graph.nodes[:1]

    def plan(self, context: Context, node: gs.Node) -> list[Plan]:
        site = Site(self.name, node.outputs[0].name, node.op, "rewritten", equivalence="exact")
        return [Plan((site,), None, last=True)]

    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        graph.inputs[0].shape = [1, *graph.inputs[0].shape[1:]]


def test_a_plug_in_that_narrows_an_input_writes_nothing(tmp_path: Path) -> None:
    net = Net("N", 4)
    y = product(net)
    outcome = rewritten(tmp_path, Narrowing(), net.model(y, shapes={y: ["N", 3]}))
    assert isinstance(outcome.error, CheckFailed)
    assert "takes [1, 4] alone, the original [N, 4]" in str(outcome.error)
    assert not (tmp_path / "b.onnx").exists()


def test_extents_that_no_input_moves() -> None:
    net = Net("N", 3, "H", "W")
    y = net.conv("x", 4, 3, 3)
    pooled = net.GlobalAveragePool(y)
    rows = net.Reshape(y, net.const([-1, 4, 5, 5]))
    model = net.model(pooled, rows, shapes={pooled: [1, 4, 1, 1]})
    found = fixed_extents(model_io.load(model.SerializeToString()).graph)
    assert found["x"] == (None, 3, None, None)
    assert found[y] == (None, 4, None, None)
    assert found[pooled] == (None, 4, 1, 1)
    assert found[rows] == (None, 4, 5, 5)
    sized = fixed_extents(model_io.load(model.SerializeToString()).graph, {"x": ["N", 3, 9, 8]})
    assert sized[y] == (None, 4, 7, 6)
