"""The trained networks read digits, and the digits are what they were trained on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from built_models import run
from convrewrite import models
from convrewrite.models import digit_nets, digits, redundancy
from convrewrite.models.builder import NetBuilder

# The trained models


def trained(name: str) -> onnx.ModelProto:
    return onnx.load(models.trained_path(name))


def is_digit(name: str) -> npt.NDArray[np.bool_]:
    """Of each held-out digit: is it read right, by ONNX Runtime?"""
    images, labels = models.digit_images("held-out")
    probabilities = np.concatenate(run(trained(name), *np.split(images, len(images))))
    return np.asarray(probabilities.argmax(1) == labels)


def test_trained_names() -> None:
    assert {path.stem for path in models.lenet5_path().parent.glob("*.onnx")} == set(models.TRAINED)
    assert models.trained_path("lenet5") == models.lenet5_path()
    with pytest.raises(ValueError, match=r"unknown trained model 'vgg'.*lenet5, digits_vgg, digits_dw7"):
        models.trained_path("vgg")


@pytest.mark.parametrize("name", models.TRAINED)
def test_trained_file_is_clean(name: str) -> None:
    data = models.trained_path(name).read_bytes()
    assert len(data) < (300_000 if name == "lenet5" else 1_000_000)
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 13)]
    assert not model.metadata_props
    assert not model.doc_string
    assert not model.graph.doc_string
    assert not any(node.doc_string for node in model.graph.node)
    batch = 1 if name == "lenet5" else "N"
    for value, end, shape in (
        (model.graph.input[0], "image", [batch, 1, 32, 32]),
        (model.graph.output[0], "probabilities", [batch, 11]),
    ):
        assert value.name == end
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
        assert [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] == shape


def test_trained_lenet5_ends_in_its_fully_connected_layers() -> None:
    assert [node.op_type for node in trained("lenet5").graph.node][-6:] == [
        *("Gemm", "Relu") * 2, "Gemm", "Softmax"
    ]  # fmt: skip


@pytest.mark.parametrize("name", digit_nets.NAMES)
def test_trained_batchnorm_is_not_folded(name: str) -> None:
    graph = trained(name).graph
    nodes = list(graph.node)
    convolutions = [index for index, node in enumerate(nodes) if node.op_type == "Conv"]
    assert len(convolutions) == {"digits_vgg": 6, "digits_dw7": 11}[name]
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for index in convolutions:
        first, norm, relu = nodes[index : index + 3]
        assert (norm.op_type, relu.op_type) == ("BatchNormalization", "Relu")
        assert (first.output[0], norm.output[0]) == (norm.input[0], relu.input[0])
        assert len(first.input) == 2, "a bias, although BatchNormalization follows"
        assert weights[first.input[1]].shape[0] >= 64
        assert np.ptp(weights[norm.input[1]] / np.sqrt(weights[norm.input[4]])) > 0.1, "no scale to fold"


def test_trained_kernels_are_padded_3x3_and_depthwise_7x7() -> None:
    def kernels(name: str) -> list[tuple[int, int, int, int]]:
        """(kernel, pad, stride, groups) of each Conv that is larger than 1x1."""
        found = []
        for node in trained(name).graph.node:
            if node.op_type == "Conv":
                attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
                names = ("kernel_shape", "pads", "strides")
                assert all(len(set(attributes[key])) == 1 for key in names)
                found.append((*(attributes[key][0] for key in names), attributes["group"]))
        return [kernel for kernel in found if kernel[0] > 1]

    assert kernels("digits_vgg") == [(3, 1, 1, 1)] * 6
    assert kernels("digits_dw7") == [
        (3, 1, 1, 1), (7, 3, 1, 64), (7, 3, 2, 64), (7, 3, 1, 96), (7, 3, 2, 96), (7, 3, 1, 128)
    ]  # fmt: skip


@pytest.mark.parametrize("name", models.TRAINED)
def test_trained_networks_read_held_out_digits(name: str) -> None:
    stated = {"lenet5": 441, "digits_vgg": 441, "digits_dw7": 442}[name]  # of 445, as models/README.md has it
    assert f"({stated} of 445)" in (models.lenet5_path().parent / "README.md").read_text(encoding="utf-8")
    assert abs(int(is_digit(name).sum()) - stated) <= 1, "rounding may tip one digit on another machine, no more"

    images, labels = digits.glyphs("held-out")
    windows, targets = digits.patches(images, labels, np.random.default_rng(1))
    classes = [int(p.argmax()) for p in run(trained(name), *windows[:, None])]
    assert np.mean(classes == targets) >= 0.98


@pytest.mark.parametrize("name", digit_nets.NAMES)
def test_an_open_batch_gives_what_single_images_give(name: str) -> None:
    images, _ = models.digit_images()
    (together,) = run(trained(name), images[:7])
    assert together.shape == (7, 11)
    np.testing.assert_allclose(together, np.concatenate(run(trained(name), *images[:7, None])), atol=1e-5)


@pytest.mark.parametrize("name", digit_nets.NAMES)
def test_trained_weights_fit_the_builder(name: str) -> None:
    model = trained(name)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert digit_nets.build(name, weights) == model


def test_digit_nets_refuses_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"unknown network 'vgg'.*digits_vgg, digits_dw7"):
        digit_nets.build("vgg")


def test_trained_lenet5_on_a_canvas() -> None:
    model = onnx.load(models.lenet5_path())
    image, placements = digits.canvas(256, 320, seed=3)
    at = [image[:, :, p.top : p.top + 32, p.left : p.left + 32] for p in placements]
    classes = [int(p.argmax()) for p in run(model, *at)]
    assert np.mean([c == p.label for c, p in zip(classes, placements, strict=True)]) >= 0.9
    assert run(model, np.zeros((1, 1, 32, 32), np.float32))[0].argmax() == digits.BACKGROUND


# Redundancy: what a factorisation of the trained kernels discards


@pytest.mark.parametrize(("name", "first"), [("digits_vgg", "conv1_1"), ("digits_dw7", "")])
def test_trained_kernels_can_be_factorised(name: str, first: str) -> None:
    """All but the VGG's first kernel, which has one input channel, and no channels to spare."""
    for tail in redundancy.tails(trained(name)):
        if tail.kernel != first:
            assert tail.half < (0.1 if tail.form == "spatial" else 0.2), tail
            assert 1e-5 < tail.even < 0.01, f"{tail}: of low rank to the last digit, or hardly"


@pytest.mark.parametrize(
    ("form", "groups", "equation", "first", "second", "rank"),
    [
        ("spatial", 1, "riy,orx->oiyx", (4, 6, 3), (8, 4, 5), 4),
        ("channel", 1, "or,riyx->oiyx", (8, 4), (4, 6, 3, 5), 4),
        ("spatial", 8, "oy,ox->oyx", (8, 3), (8, 5), 1),
    ],
)
def test_unfold_shows_the_rank_of_a_form(
    form: str, groups: int, equation: str, first: tuple[int, ...], second: tuple[int, ...], rank: int
) -> None:
    rng = np.random.default_rng(0)
    weight = np.einsum(equation, rng.standard_normal(first), rng.standard_normal(second))
    weight = weight.reshape(8, -1, 3, 5)
    matrices = redundancy.unfold(weight, groups, form)
    assert np.linalg.matrix_rank(matrices).tolist() == [rank] * len(matrices)
    np.testing.assert_array_equal(redundancy.fold(matrices, weight.shape, groups, form), weight)
    assert redundancy.forms(groups) == (("spatial", "channel") if groups == 1 else ("spatial",))


def test_tails_are_those_of_the_folded_kernel() -> None:
    net = NetBuilder((1, 4, 8, 8))
    x = net.batchnorm(net.conv(net.input, 6, 3, pad=1, bias=False, name="c"), name="b")
    model = net.finish(net.conv(x, 6, 1, name="pointwise"), name="net")
    w, scale, variance = (
        next(numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer if t.name == name)
        for name in ("c.weight", "b.scale", "b.var")
    )
    folded = w * (scale / np.sqrt(variance + 1e-5))[:, None, None, None]
    spatial, channel = redundancy.tails(model)
    assert (spatial.kernel, spatial.form, channel.form) == ("c", "spatial", "channel")
    # 216 multiplications a pixel; 12 + 18 for each rank of the spatial form, 36 + 6 for one of the channels.
    assert (spatial.half_rank, spatial.even_rank, channel.half_rank, channel.even_rank) == (3, 7, 2, 5)
    left, values, right = np.linalg.svd(folded.reshape(6, 36), full_matrices=False)
    low = left[:, :2] * values[:2] @ right[:2]
    error = np.linalg.norm(folded - low.reshape(folded.shape)) / np.linalg.norm(folded)
    assert channel.half == pytest.approx(error, rel=1e-9)


# The digits


def test_digit_images_are_the_glyphs_with_a_channel() -> None:
    for part, count in (("train", 1352), ("held-out", 445)):
        images, labels = models.digit_images(part)
        assert images.shape == (count, 1, 32, 32)
        assert (images.dtype, labels.shape, labels.dtype) == (np.float32, (count,), np.int64)
        np.testing.assert_array_equal(images[:, 0], digits.glyphs(part)[0])


def test_split_is_fixed_disjoint_and_stratified() -> None:
    (train, train_labels), (held, held_labels) = digits.glyphs("train"), digits.glyphs("held-out")
    assert (len(train), len(held)) == (1352, 445)
    assert train.shape[1:] == held.shape[1:] == (32, 32)
    assert train.dtype == held.dtype == np.float32
    assert train.min() == 0.0
    assert 0.9 < train.max() <= 1.0
    counts = np.bincount(held_labels), np.bincount(train_labels)
    assert np.all(counts[0] * 3 <= counts[1])
    assert np.all(counts[0] * 3 + 3 >= counts[1])


def test_upsample_keeps_constant_interiors_and_fades_at_the_edge() -> None:
    flat = digits.upsample(np.full((1, 8, 8), 16.0))
    np.testing.assert_allclose(flat[0, 2:-2, 2:-2], 1.0)
    np.testing.assert_allclose(flat[0, 16, :3], [0.625, 0.875, 1.0])


def test_canvas_is_deterministic_and_placed_apart() -> None:
    image, placements = digits.canvas(200, 300, seed=1, gap=4)
    again, _ = digits.canvas(200, 300, seed=1, gap=4)
    assert image.shape == (1, 1, 200, 300)
    assert image.dtype == np.float32
    assert 0.0 <= image.min() < image.max() <= 1.0
    np.testing.assert_array_equal(image, again)
    assert len(placements) > 10
    for index, a in enumerate(placements):
        assert 0 <= a.top <= 200 - 32
        assert 0 <= a.left <= 300 - 32
        assert all(max(abs(a.top - b.top), abs(a.left - b.left)) >= 36 for b in placements[:index])
    outside = np.ones((200, 300), bool)
    for p in placements:
        outside[p.top : p.top + 32, p.left : p.left + 32] = False
    assert not image[0, 0][outside].any()


def test_canvas_takes_a_count_and_refuses_too_little_room() -> None:
    assert len(digits.canvas(100, 100, count=1)[1]) == 1
    with pytest.raises(ValueError, match="no room for a 32x32 digit"):
        digits.canvas(31, 100)
