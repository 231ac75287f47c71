"""The builders are valid, deterministic and as large as in their papers; the trained networks read digits."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from convrewrite import models
from convrewrite.models import build, digit_nets, digits, redundancy
from convrewrite.models.builder import NetBuilder

SMALL: dict[str, dict[str, Any]] = {
    "lenet5": {},
    "alexnet": {"width": 0.125, "size": 131},
    "zfnet": {"width": 0.125, "size": 96},
    "vgg16": {"width": 0.125, "size": 64},
    "vgg19": {"width": 0.125, "size": 64},
    "googlenet": {"width": 0.25, "size": 64},
    "resnet18": {"width": 0.25, "size": 64},
    "resnet50": {"width": 0.125, "size": 64},
    "densenet121": {"width": 0.25, "size": 64},
    "mobilenet_v1": {"width": 0.25, "size": 64},
    "mobilenet_v2": {"width": 0.25, "size": 64},
    "shufflenet": {"width": 0.3, "size": 64},
    "efficientnet_b0": {"width": 0.25, "size": 64},
    "audio_cnn": {"width": 0.125, "size": 2000},
    "video_cnn": {"width": 0.0625, "size": 32},
    "segnet": {"width": 0.25, "size": 48},
}
"""Options that make each builder fast."""


def run(model: onnx.ModelProto, *images: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """The model's output for each image, by ONNX Runtime on the CPU."""
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(None, {"image": image})[0] for image in images]


def random_images(model: onnx.ModelProto, count: int, seed: int = 0) -> list[npt.NDArray[np.float32]]:
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(count)]


def without(model: onnx.ModelProto, op: str) -> onnx.ModelProto:
    """A copy in which every ``op`` node is an Identity on its first input."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == op:
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    return copy


def parameters(model: onnx.ModelProto) -> int:
    """Trained numbers, from shapes alone: all initializers but the running statistics."""
    statistics = {n for node in model.graph.node if node.op_type == "BatchNormalization" for n in node.input[3:]}
    stored = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.dims]
    return sum(prod(tensor.dims) for tensor in stored if tensor.name not in statistics)


def conv(incoming: int, channels: int, kernel: int, groups: int = 1) -> int:
    return channels * (incoming // groups) * kernel * kernel + channels


def fc(incoming: int, features: int) -> int:
    return features * incoming + features


def test_names_is_what_build_takes() -> None:
    assert set(SMALL) == set(models.NAMES)
    with pytest.raises(ValueError, match=r"unknown model 'lenet'.*lenet5, alexnet, zfnet, vgg16, vgg19, googlenet"):
        build("lenet")


@pytest.mark.parametrize("name", models.NAMES)
def test_builder_is_valid_and_depends_on_its_input(name: str) -> None:
    model = build(name, **SMALL[name])
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 13)]
    assert [value.name for value in model.graph.input] == ["image"]
    assert {node.output[0] for node in model.graph.node} >= {value.name for value in model.graph.output}

    first, second = run(model, *random_images(model, 2))
    assert np.isfinite(first).all()
    classes = {"lenet5": 10, "audio_cnn": 10, "video_cnn": 101, "segnet": 21}.get(name, 1000)
    assert first.shape[:2] == (1, classes)
    assert first.shape[2:] == ((48, 48) if name == "segnet" else ())
    if model.graph.node[-1].op_type == "Softmax":
        assert model.graph.output[0].name == "probabilities"
        assert first.sum() == pytest.approx(1.0, abs=1e-5)
        assert first.max() < 0.99, "a saturated Softmax hides differences"
    else:
        assert model.graph.output[0].name == ("scores" if name == "segnet" else "logits")
        assert 0.1 < np.sqrt(np.mean(first**2)) < 20
    assert np.abs(first - second).max() > 0.01 * np.abs(first).max()


@pytest.mark.parametrize("name", models.NAMES)
def test_seed_decides_the_bytes(name: str) -> None:
    def data(seed: int) -> bytes:
        model = build(name, **SMALL[name], seed=seed)
        return bytes(model.SerializeToString(deterministic=True))

    assert data(0) == data(0)
    assert data(0) != data(1)


@pytest.mark.parametrize("name", models.NAMES)
@pytest.mark.parametrize("opset", [7, 12, 18, 22])
def test_opsets_agree(name: str, opset: int) -> None:
    model, reference = build(name, **SMALL[name], opset=opset), build(name, **SMALL[name])
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    images = random_images(model, 1)
    np.testing.assert_allclose(run(model, *images), run(reference, *images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "op"),
    [("resnet18", "BatchNormalization"), ("mobilenet_v1", "BatchNormalization"), ("alexnet", "LRN")],
)
def test_a_dropped_normalisation_is_detectable(name: str, op: str) -> None:
    model = build(name, **SMALL[name])
    images = random_images(model, 1)
    kept, dropped = run(model, *images)[0], run(without(model, op), *images)[0]
    assert np.abs(kept - dropped).max() > 0.1 * np.abs(kept).max()


@pytest.mark.parametrize("name", [name for name in models.NAMES if name != "audio_cnn"])
def test_size_may_be_oblong_and_classes_given(name: str) -> None:
    options = SMALL[name] | {"size": (96, 128) if name != "alexnet" else (131, 163), "classes": 7}
    model = build(name, **options)
    onnx.checker.check_model(model, full_check=True)
    assert run(model, *random_images(model, 1))[0].shape[:2] == (1, 7)


def test_builder_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="image is too small: 'c3' has a 5x5 window"):
        build("lenet5", size=11)
    with pytest.raises(ValueError, match="opset 6 is not supported; use 7 to 22"):
        build("lenet5", opset=6)


# Parameter counts, by hand from the papers' tables


def lenet5_parameters() -> int:
    return conv(1, 6, 5) + conv(6, 16, 5) + fc(16 * 5 * 5, 120) + fc(120, 84) + fc(84, 10)


def alexnet_parameters() -> int:
    convolutions = conv(3, 96, 11) + conv(96, 256, 5, 2) + conv(256, 384, 3) + conv(384, 384, 3, 2)
    convolutions += conv(384, 256, 3, 2)
    return convolutions + fc(256 * 6 * 6, 4096) + fc(4096, 4096) + fc(4096, 1000)


def zfnet_parameters() -> int:
    convolutions = conv(3, 96, 7) + conv(96, 256, 5) + conv(256, 384, 3) + conv(384, 384, 3) + conv(384, 256, 3)
    return convolutions + fc(256 * 6 * 6, 4096) + fc(4096, 4096) + fc(4096, 1000)


def vgg19_parameters() -> int:
    channels = [3, 64, 64, 128, 128, *[256] * 4, *[512] * 8]
    convolutions = sum(conv(a, b, 3) for a, b in itertools.pairwise(channels))
    return convolutions + fc(512 * 7 * 7, 4096) + fc(4096, 4096) + fc(4096, 1000)


def googlenet_parameters() -> int:
    total, incoming = conv(3, 64, 7) + conv(64, 64, 1) + conv(64, 192, 3), 192
    for one, r3, three, r5, five, pooled in (
        (64, 96, 128, 16, 32, 32),
        (128, 128, 192, 32, 96, 64),
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
        (256, 160, 320, 32, 128, 128),
        (384, 192, 384, 48, 128, 128),
    ):
        total += conv(incoming, one, 1) + conv(incoming, r3, 1) + conv(r3, three, 3) + conv(incoming, r5, 1)
        total += conv(r5, five, 5) + conv(incoming, pooled, 1)
        incoming = one + three + five + pooled
    return total + fc(1024, 1000)


def vgg16_parameters() -> int:
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convolutions = sum(conv(a, b, 3) for a, b in itertools.pairwise(channels))
    return convolutions + fc(512 * 7 * 7, 4096) + fc(4096, 4096) + fc(4096, 1000)


# With BatchNormalization a convolution has no bias: its channels count twice, as scale and as bias.


def resnet18_parameters() -> int:
    total = conv(3, 64, 7) + 64
    incoming = 64
    for channels in (64, 128, 256, 512):
        for kernel_input in (incoming, channels, channels, channels):
            total += conv(kernel_input, channels, 3) + channels
        if incoming != channels:
            total += conv(incoming, channels, 1) + channels
        incoming = channels
    return total + fc(512, 1000)


def resnet50_parameters() -> int:
    total, incoming = conv(3, 64, 7) + 64, 64
    for channels, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            total += conv(incoming, channels, 1) + conv(channels, channels, 3) + conv(channels, 4 * channels, 1)
            total += channels + channels + 4 * channels
            total += 0 if block else conv(incoming, 4 * channels, 1) + 4 * channels
            incoming = 4 * channels
    return total + fc(2048, 1000)


def densenet121_parameters() -> int:
    total, channels = conv(3, 64, 7) + 64, 64
    for block, layers in enumerate((6, 12, 24, 16)):
        for _ in range(layers):
            total += 2 * channels + channels * 128 + 2 * 128 + 128 * 32 * 9
            channels += 32
        if block < 3:
            total += 2 * channels + channels * channels // 2
            channels //= 2
    return total + 2 * channels + fc(channels, 1000)


def mobilenet_v2_parameters() -> int:
    total, incoming = conv(3, 32, 3) + 32, 32
    for t, c, n, _ in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for _ in range(n):
            wide = incoming * t
            total += conv(incoming, wide, 1) + wide if t > 1 else 0
            total += conv(wide, wide, 3, groups=wide) + wide + conv(wide, c, 1) + c
            incoming = c
    return total + conv(320, 1280, 1) + 1280 + fc(1280, 1000)


def mobilenet_v1_parameters() -> int:
    channels = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    total = conv(3, 32, 3) + 32
    for a, b in itertools.pairwise(channels):
        total += conv(a, a, 3, groups=a) + a + conv(a, b, 1) + b
    return total + fc(1024, 1000)


@pytest.mark.parametrize(
    ("name", "by_hand", "published"),
    [
        ("lenet5", lenet5_parameters, 61_706),
        ("alexnet", alexnet_parameters, 60_965_224),
        ("vgg16", vgg16_parameters, 138_357_544),
        ("resnet18", resnet18_parameters, 11_689_512),
        ("resnet50", resnet50_parameters, 25_557_032),
        ("mobilenet_v1", mobilenet_v1_parameters, 4_231_976),
        ("zfnet", zfnet_parameters, 62_357_608),
        ("vgg19", vgg19_parameters, 143_667_240),
        ("googlenet", googlenet_parameters, 6_998_552),
        ("densenet121", densenet121_parameters, 7_978_856),
        ("mobilenet_v2", mobilenet_v2_parameters, 3_504_872),
        ("shufflenet", lambda: 1_865_728, 1_865_728),
        ("efficientnet_b0", lambda: 5_288_548, 5_288_548),
    ],
)
def test_parameters_at_full_width(name: str, by_hand: Callable[[], int], published: int) -> None:
    assert by_hand() == published
    assert parameters(build(name)) == published


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
