"""The builders are valid, deterministic and as large as in their papers."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from built_models import SMALL, conv, fc, parameters, random_images, run, without
from convrewrite import models
from convrewrite.models import build


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
