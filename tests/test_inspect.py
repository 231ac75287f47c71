"""`convrewrite inspect`: receptive fields, Toeplitz matrices, and what the command prints.

Receptive fields have two oracles: figures worked out by hand for networks of the literature, and ONNX Runtime itself,
by adding to one pixel and seeing which cells of every tensor move. Weights and inputs are positive there, so that no
Relu hides a change and a larger pixel always wins a max pool.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import scipy.sparse
from cli_models import flat_input, run, save, symbolic

from convrewrite import acceptance, inspection, model_io, models
from convrewrite.engine.fields import ReceptiveField, receptive_fields
from convrewrite.engine.image_axes import image_input
from convrewrite.engine.layers import Sliding
from convrewrite.engine.rewrite import Context, run_pass
from convrewrite.errors import UsageError
from convrewrite.inspection import table
from convrewrite.inspection.matrices import layer_matrix
from convrewrite.inspection.toeplitz import toeplitz
from convrewrite.options import InspectOptions
from convrewrite.passes.groups import Groups
from convrewrite.passes.separable import Separable
from convrewrite.pipeline.native import native
from helpers import Net
from helpers import run as run_model

MORE = 1e3


def fields_of(model: onnx.ModelProto) -> tuple[dict[str, ReceptiveField], dict[str, tuple[int, ...]], str]:
    loaded = model_io.load(model.SerializeToString())
    at = native(loaded, None)
    image = image_input(loaded.graph, at.tensors)
    assert image is not None
    return receptive_fields(loaded.graph, at.tensors, image), dict(at.tensors), image


# By hand ------------------------------------------------------------------------------------------------------------


def test_lenet_by_hand() -> None:
    found, _, _ = fields_of(onnx.load(models.lenet5_path()))
    hand = {"c1": (5, 1), "s2": (6, 2), "c3": (14, 2), "s4": (16, 4)}
    assert {name: (found[name].size[0], found[name].stride[0]) for name in hand} == hand
    assert found["probabilities"].size == (32, 32)
    assert found["probabilities"].offset == (0, 0)


@pytest.mark.parametrize(
    ("name", "op", "size", "stride"),
    [("alexnet", "MaxPool", 195, 32), ("vgg16", "MaxPool", 212, 32), ("resnet18", "Conv", 435, 32)],
)
def test_the_last_map_of_networks_of_the_literature(name: str, op: str, size: int, stride: int) -> None:
    """Figures of Araujo et al., Distill 2019 (AlexNet: 195; VGG-16: 212; ResNet-18 by the same arithmetic: 435)."""
    model = models.build(name, width=0.125)
    found, _, _ = fields_of(model)
    last = [node for node in model.graph.node if node.op_type == op][-1]
    reach = found[last.output[0]]
    assert (reach.size, reach.stride) == ((size, size), (stride, stride))


# By moving one pixel ------------------------------------------------------------------------------------------------


def positive(net: Net, *shape: int) -> str:
    return net.const(net.rng.uniform(0.5, 1.5, shape) / np.prod(shape[1:]))


def plain(net: Net) -> str:
    x = net.Relu(net.node("Conv", "x", positive(net, 4, 2, 3, 5), pads=[1, 0, 0, 2], strides=[2, 1]))
    x = net.MaxPool(x, kernel_shape=[2, 3], strides=[2, 2], pads=[0, 1, 0, 1])
    return net.node("Conv", x, positive(net, 3, 4, 3, 2), dilations=[1, 2])


def residual(net: Net) -> str:
    x = net.node("Conv", "x", positive(net, 4, 2, 3, 3), pads=[1, 1, 1, 1])
    y = net.node("Conv", net.Relu(x), positive(net, 4, 4, 5, 5), pads=[2, 2, 2, 2])
    return net.AveragePool(net.Add(x, y), kernel_shape=[2, 2], strides=[2, 2])


def inception(net: Net) -> str:
    a = net.node("Conv", "x", positive(net, 2, 2, 1, 1), strides=[2, 2])
    b = net.node("Conv", "x", positive(net, 2, 2, 5, 5), strides=[2, 2], pads=[2, 2, 2, 2])
    return net.Concat(a, b, axis=1)


def classifier(net: Net) -> str:
    x = net.node("Conv", "x", positive(net, 4, 2, 3, 3), strides=[2, 2])
    x = net.Reshape(net.GlobalAveragePool(x), net.const([1, 4]))
    return net.Gemm(x, positive(net, 4, 3))


def channels_last(net: Net) -> str:
    x = net.Transpose("x", perm=[0, 3, 1, 2])
    x = net.node("Conv", x, positive(net, 4, 2, 3, 3), strides=[1, 2])
    return net.Transpose(x, perm=[0, 2, 3, 1])


def shuffled(net: Net) -> str:
    x = net.node("Conv", "x", positive(net, 4, 2, 3, 3))
    x = net.Reshape(x, net.const([1, 2, 2, 12, 15]))
    x = net.Reshape(net.Transpose(x, perm=[0, 2, 1, 3, 4]), net.const([1, 4, 12, 15]))
    return net.node("Conv", x, positive(net, 4, 2, 3, 3), group=2)


def padded(net: Net) -> str:
    x = net.Pad("x", net.const([0, 0, 2, 1, 0, 0, 0, 3]))
    x = net.node("Conv", x, positive(net, 4, 2, 3, 3), strides=[2, 2])
    return net.ReduceMean(x, axes=[3], keepdims=0)


BUILDERS = (plain, residual, inception, classifier, channels_last, shuffled, padded)


def moved(model: onnx.ModelProto, image: str, shape: tuple[int, ...], pixel: tuple[int, ...]) -> dict[str, Any]:
    """Which entries of every tensor move when all channels of one pixel are raised, all other inputs being equal."""
    whole = onnx.ModelProto()
    whole.CopyFrom(onnx.shape_inference.infer_shapes(model))
    known = {output.name for output in whole.graph.output}
    whole.graph.output.extend(info for info in whole.graph.value_info if info.name not in known)
    before = np.random.default_rng(0).uniform(0.5, 1.0, shape).astype(np.float32)
    after = before.copy()
    after[pixel] += MORE
    one, two = (run_model(whole, {image: value}) for value in (before, after))
    return {name: one[name] != two[name] for name in one}


def predicted(reach: ReceptiveField, shape: tuple[int, ...], pixel: tuple[int, ...]) -> Any:
    """The same by arithmetic: cell i of an axis sees pixels offset + i stride up to, not with, that plus size."""
    sees = np.ones(shape, bool)
    for along, at in zip(reach.axes, pixel, strict=True):
        cells = np.arange(1 if along.dim is None else shape[along.dim])
        first = along.field.offset + cells * along.field.stride
        seen = (first <= at) & (at < first + along.field.size)
        sees &= seen.reshape([-1 if dim == along.dim else 1 for dim in range(len(shape))])
    return sees


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: str(build.__name__))
def test_a_pixel_moves_the_cells_whose_field_it_is_in(build: Any) -> None:
    last = build is channels_last
    net = Net(1, *((14, 17, 2) if last else (2, 14, 17)), seed=1)
    model = net.model(build(net))
    found, shapes, image = fields_of(model)
    outputs = [node.output[0] for node in model.graph.node if node.op_type != "Constant"]
    assert all(found[name].axes for name in outputs), found
    for row, column in ((0, 0), (3, 5), (7, 8), (13, 16), (12, 2), (6, 15)):
        at = (0, row, column) if last else (0, slice(None), row, column)
        for name, moves in moved(model, image, shapes[image], at).items():
            want = predicted(found[name], shapes[name], (row, column))
            if build in (inception, plain) and moves.shape != want.shape:
                pytest.fail(f"{name}: {moves.shape} and {want.shape}")
            if build is inception and "Concat" in name:
                assert not (moves & ~want).any()  # a field of both branches; each channel sees one of them
            elif strided_hole(name, model):
                assert not (moves & ~want).any(), name
            else:
                np.testing.assert_array_equal(moves, want, err_msg=f"{name} at {row}, {column}")


def strided_hole(name: str, model: onnx.ModelProto) -> bool:
    """Whether pixels between the taps of a kernel are skipped somewhere ahead: a field then has holes."""
    made = {out: node for node in model.graph.node for out in node.output}
    todo = [name]
    while todo:
        node = made.get(todo.pop())
        if node is not None:
            attributes = {a.name: list(a.ints) for a in node.attribute}
            kernel = attributes.get("kernel_shape")
            if any(d > 1 for d in attributes.get("dilations", [])) or node.op_type == "Concat":
                return True
            if kernel and any(s > k for s, k in zip(attributes.get("strides", kernel), kernel, strict=True)):
                return True
            todo += node.input
    return False


@pytest.mark.parametrize("op", ["ConvTranspose", "InstanceNormalization", "Softmax", "squeeze"])
def test_where_there_is_no_figure_there_is_a_reason(op: str) -> None:
    net = Net(1, 2, 9, 9)
    x = net.node("Conv", "x", positive(net, 4, 2, 3, 3))
    if op == "ConvTranspose":
        x = net.node(op, x, positive(net, 4, 3, 2, 2), strides=[2, 2])
    elif op == "InstanceNormalization":
        x = net.node(op, x, net.const(np.ones(4)), net.const(np.zeros(4)))
    elif op == "Softmax":
        x = net.Softmax(x, axis=3)
    else:
        x = net.Mul(x, net.Sigmoid(net.GlobalAveragePool(x)))
    found, _, _ = fields_of(net.model(x))
    assert found[x].axes == ()
    assert found[x].why


# Toeplitz -----------------------------------------------------------------------------------------------------------


def test_a_matrix_by_hand() -> None:
    """The textbook one: kernel (1 2 3) on five pixels, without padding."""
    sliding = Sliding((5,), (3,), (1,), (1,), (0,), (0,))
    matrix = toeplitz(np.array([[[1.0, 2.0, 3.0]]]), sliding).toarray()
    np.testing.assert_array_equal(matrix, [[1, 2, 3, 0, 0], [0, 1, 2, 3, 0], [0, 0, 1, 2, 3]])


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_matrix_is_the_convolution_and_its_transpose_the_transposed_one(
    rank: int, group: int, stride: int, dilation: int
) -> None:
    """Bit for bit, on small integers, against ONNX Runtime's Conv and ConvTranspose."""
    rng = np.random.default_rng(rank)
    size, kernel = (7, 6, 8)[:rank], (3, 2, 3)[:rank]
    weight = rng.integers(-3, 4, (4, 6 // group, *kernel)).astype(np.float32)
    pads = [1, 0, 1][:rank] + [0, 1, 1][:rank]
    attributes = {"strides": [stride] * rank, "dilations": [dilation] * rank, "pads": pads, "group": group}
    sliding = Sliding.read(attributes, kernel, size)
    matrix = toeplitz(weight, sliding, group=group)
    net = Net(1, 6, *size)
    image = rng.integers(-3, 4, (1, 6, *size)).astype(np.float32)
    y = run_model(net.model(net.node("Conv", "x", net.const(weight), **attributes)), {"x": image})
    want = next(iter(y.values()))
    np.testing.assert_array_equal(matrix @ image.ravel(), want.ravel())
    back = Net(1, *want.shape[1:])
    rest = [n + p - ((o - 1) * stride + (k - 1) * dilation + 1) for n, p, o, k in _extra(sliding)]
    made = back.node("ConvTranspose", "x", back.const(weight), output_padding=rest, **attributes)
    gradient = rng.integers(-3, 4, want.shape).astype(np.float32)
    transposed = next(iter(run_model(back.model(made), {"x": gradient}).values()))
    np.testing.assert_array_equal(matrix.T @ gradient.ravel(), transposed.ravel())


def _extra(sliding: Sliding) -> list[tuple[int, int, int, int]]:
    pads = [b + e for b, e in zip(sliding.begin, sliding.end, strict=True)]
    return list(zip(sliding.size, pads, sliding.output, sliding.kernel, strict=True))


def test_a_matrix_that_is_too_large_is_refused_before_it_is_built() -> None:
    layer = layer_matrix(model_io.load(models.lenet5_path()), "c1", (4000, 4000))
    assert layer.shape == (6 * 3996**2, 4000**2)
    with pytest.raises(UsageError, match="smaller input"):
        layer.build()


# The command --------------------------------------------------------------------------------------------------------


def test_it_lists_layers_fields_and_what_the_passes_would_do() -> None:
    result = run("inspect", models.lenet5_path(), "--sort", "macs")
    assert (result.returncode, result.stderr) == (0, b"")
    lines = result.stdout.decode().splitlines()
    assert lines[0].endswith("13 nodes, 61,791 parameters, 416,604 MACs")
    assert [line.split()[0] for line in lines[3:6]] == ["c3", "c1", "c5"]
    assert "57.6%" in lines[3]
    assert "14x14 every 2x2 from 0,0" in lines[3]
    assert any(line.startswith("fcn ") and "would rewrite" in line for line in lines)
    assert any(line.startswith("separable ") and "pays from --tol" in line for line in lines)
    assert any(line.startswith("groups ") and "[groups/no-structure]" in line for line in lines)


def test_json_holds_the_same(tmp_path: Path) -> None:
    result = run("inspect", models.lenet5_path(), "--json", "-", "--tol", "0.4")
    data = json.loads(result.stdout)
    assert data["schema"] == table.SCHEMA
    assert sum(layer["macs"] for layer in data["layers"]) == data["file"]["macs"] == 416604
    assert sum(layer["share"] for layer in data["layers"]) == pytest.approx(1)
    assert {site["pass"] for site in data["sites"]} == {"fcn", "separable", "groups"}
    approximate = [site for site in data["sites"] if site["equivalence"] == "approximate"]
    assert approximate
    assert all(site["error"] <= 0.4 for site in approximate)
    again = run("inspect", models.lenet5_path(), "--json", tmp_path / "l.json", "--tol", "0.4", "--quiet")
    assert (again.stdout, again.stderr) == (b"", b"")
    assert json.loads((tmp_path / "l.json").read_text()) == data


def test_an_open_input_is_looked_at_where_one_says(tmp_path: Path) -> None:
    source = save(symbolic(), tmp_path / "in.onnx")
    text = run("inspect", source, "--size", "16x12", "--no-passes").stdout.decode()
    assert " at 16x12" in text.splitlines()[0]


def test_a_model_without_an_image_has_no_fields(tmp_path: Path) -> None:
    result = run("inspect", save(flat_input(), tmp_path / "in.onnx"))
    assert result.returncode == 0
    assert "depends on" not in result.stdout.decode()
    assert "fcn/flat-input" in result.stdout.decode()


def test_toeplitz_is_checked_and_kept(tmp_path: Path) -> None:
    kept = tmp_path / "t.npz"
    result = run("inspect", models.lenet5_path(), "--toeplitz", "c1", "--size", "8", "--save", kept)
    assert result.returncode == 0, result.stderr
    assert "T of c1 on 8x8: 96 x 64" in result.stdout.decode()
    matrix = scipy.sparse.load_npz(kept)
    assert matrix.shape == (96, 64)
    initializers = {t.name: t for t in onnx.load(models.lenet5_path()).graph.initializer}
    first = next(n for n in onnx.load(models.lenet5_path()).graph.node if n.output[0] == "c1")
    weight = onnx.numpy_helper.to_array(initializers[first.input[1]])
    np.testing.assert_array_equal(matrix.toarray()[0].reshape(8, 8)[:5, :5], weight[0, 0])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--toeplitz", "nothing"], "there is no Conv named 'nothing'; choose one of c1, c3"),
        (["--toeplitz", "c5"], "there is no Conv named 'c5'"),
        (["--toeplitz", "c1", "--size", "3"], "does not fit on 3x3"),
        (["--toeplitz", "c1", "--size", "8x8x8"], "has 2 spatial axes, and the size has 3"),
        (["--toeplitz", "c1", "--size", "5000"], "choose a smaller input"),
        (["--save", "t.npz"], "name a layer with --toeplitz"),
        (["--json", "/nonexistent/l.json"], "cannot write"),
        (["--size", "99"], "--size"),
        (["--sort", "colour"], "colour"),
        (["--tol", "-1"], "--tol needs a number of 0 or more"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage(words: list[str], text: str) -> None:
    result = run("inspect", models.lenet5_path(), *words)
    assert result.returncode == 2
    assert text in result.stderr.decode()
    assert result.stdout == b""


# Heads --------------------------------------------------------------------------------------------------------------


def head_of(model: onnx.ModelProto) -> tuple[dict[str, list[int]], list[str]] | None:
    found = inspection.inspect(model_io.load(model.SerializeToString()), "m", InspectOptions(passes=False)).head
    return None if found is None else (found["maps"], found["operators"])


def test_the_head_of_the_lecture_nets() -> None:
    assert head_of(onnx.load(models.lenet5_path())) == (
        {"s4": [1, 16, 5, 5]},
        ["Flatten", "Gemm", "Relu", "Gemm", "Relu", "Gemm", "Softmax"],
    )
    maps, operators = head_of(models.build("resnet50", width=0.125, size=64)) or ({}, [])
    assert list(maps.values()) == [[1, 256, 2, 2]]
    assert operators == ["GlobalAveragePool", "Flatten", "Gemm"]


def test_a_block_that_looks_at_the_whole_map_is_no_head() -> None:
    """Squeeze-and-excite: its mean has one cell, but what follows is a map again."""
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 4, 3, 3)
    gate = net.Sigmoid(net.conv(net.GlobalAveragePool(x), 4, 1, 1))
    x = net.Mul(x, gate)
    assert head_of(net.model(net.Softmax(net.fc(net.Flatten(x), 5), axis=1)))[1] == ["Flatten", "Gemm", "Softmax"]  # type: ignore[index]
    net = Net(1, 3, 8, 8)
    assert head_of(net.model(net.Relu(net.conv("x", 4, 3, 3)))) is None


def test_an_inspection_prints_itself() -> None:
    import convrewrite.api  # which knows of pages

    assert convrewrite.api
    found = inspection.inspect(model_io.load(str(models.lenet5_path())), "m.onnx")
    assert str(found).splitlines()[0].startswith("m.onnx: 13 nodes")
    assert "head  s4 1x16x5x5 -> Flatten, Gemm" in str(found)
    assert f"<pre>{str(found).replace('>', '&gt;').replace(chr(39), '&#39;')}</pre>" in found._repr_html_()


# What would pay -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "at"), [("lenet5", 0.24), ("digits_dw7", 1e-4)])
def test_the_tolerance_that_is_printed_suffices(name: str, at: float) -> None:
    """Each is given to the pass, and the layer is rewritten: no tolerance of two digits may be rounded down."""
    model = model_io.load(models.lenet5_path() if name == "lenet5" else models.trained_path(name))
    told = [
        line
        for line in str(inspection.inspect(model, name, InspectOptions(tol=at))).splitlines()
        if "pays from tol=" in line
    ]
    assert len(told) > 2
    context = Context.of(model.graph, shapes=native(model, None).tensors)
    makes: dict[str, Any] = {"separable": Separable, "groups": Groups}
    for line in told:
        kind, anchor = line.split()[:2]
        tol = float(line.split("pays from tol=")[1].split(",")[0].split()[0])
        asked = makes[kind](tol=tol)
        made = run_pass(asked, model.graph, judge=acceptance.smaller, only=(anchor,), context=context)
        assert [site.anchor for site in made.outcome("rewritten")] == [anchor], line
