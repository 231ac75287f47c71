"""The builders are valid, deterministic and as large as in their papers; the trained LeNet-5 reads digits."""

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
from onnx import TensorProto

from convrewrite import models
from convrewrite.models import build, digits

SMALL: dict[str, dict[str, Any]] = {
    "lenet5": {},
    "alexnet": {"width": 0.125, "size": 131},
    "vgg16": {"width": 0.125, "size": 64},
    "resnet18": {"width": 0.25, "size": 64},
    "mobilenet_v1": {"width": 0.25, "size": 64},
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
    return sum(prod(tensor.dims) for tensor in model.graph.initializer if tensor.name not in statistics)


def conv(incoming: int, channels: int, kernel: int, groups: int = 1) -> int:
    return channels * (incoming // groups) * kernel * kernel + channels


def fc(incoming: int, features: int) -> int:
    return features * incoming + features


def test_names_is_what_build_takes() -> None:
    assert set(SMALL) == set(models.NAMES)
    with pytest.raises(ValueError, match=r"unknown model 'lenet'.*lenet5, alexnet, vgg16, resnet18, mobilenet_v1"):
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
    assert first.shape == (1, 10 if name == "lenet5" else 1000)
    if model.graph.node[-1].op_type == "Softmax":
        assert model.graph.output[0].name == "probabilities"
        assert first.sum() == pytest.approx(1.0, abs=1e-5)
        assert first.max() < 0.99, "a saturated Softmax hides differences"
    else:
        assert model.graph.output[0].name == "logits"
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


@pytest.mark.parametrize("name", models.NAMES)
def test_size_may_be_oblong_and_classes_given(name: str) -> None:
    options = SMALL[name] | {"size": (96, 128) if name != "alexnet" else (131, 163), "classes": 7}
    model = build(name, **options)
    onnx.checker.check_model(model, full_check=True)
    assert run(model, *random_images(model, 1))[0].shape == (1, 7)


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
        ("mobilenet_v1", mobilenet_v1_parameters, 4_231_976),
    ],
)
def test_parameters_at_full_width(name: str, by_hand: Callable[[], int], published: int) -> None:
    assert by_hand() == published
    assert parameters(build(name)) == published


# The trained model


def test_trained_lenet5_file_is_clean() -> None:
    data = models.lenet5_path().read_bytes()
    assert len(data) < 300_000
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 13)]
    assert not model.metadata_props
    assert not model.doc_string
    assert not model.graph.doc_string
    assert not any(node.doc_string for node in model.graph.node)
    assert [node.op_type for node in model.graph.node][-6:] == [
        *("Gemm", "Relu") * 2, "Gemm", "Softmax"
    ]  # fmt: skip
    for value, name, shape in (
        (model.graph.input[0], "image", [1, 1, 32, 32]),
        (model.graph.output[0], "probabilities", [1, 11]),
    ):
        assert value.name == name
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
        assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == shape


def test_trained_lenet5_reads_held_out_digits() -> None:
    model = onnx.load(models.lenet5_path())
    images, labels = digits.glyphs("held-out")
    classes = [int(p.argmax()) for p in run(model, *images[:, None, None])]
    assert np.mean(classes == labels) >= 0.95

    windows, targets = digits.patches(images, labels, np.random.default_rng(1))
    classes = [int(p.argmax()) for p in run(model, *windows[:, None])]
    assert np.mean(classes == targets) >= 0.95


def test_trained_lenet5_on_a_canvas() -> None:
    model = onnx.load(models.lenet5_path())
    image, placements = digits.canvas(256, 320, seed=3)
    at = [image[:, :, p.top : p.top + 32, p.left : p.left + 32] for p in placements]
    classes = [int(p.argmax()) for p in run(model, *at)]
    assert np.mean([c == p.label for c, p in zip(classes, placements, strict=True)]) >= 0.9
    assert run(model, np.zeros((1, 1, 32, 32), np.float32))[0].argmax() == digits.BACKGROUND


# The digits


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
