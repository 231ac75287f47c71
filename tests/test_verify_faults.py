"""Planted faults: each must be found at the default tolerance, and the same network written differently must pass.

One network for all: it has what the faults need (a map that is not square, biases, a BatchNormalization, a Softmax).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convrewrite.cli.words import FLAGS
from convrewrite.errors import CheckFailed, UsageError
from convrewrite.running.runtime import DeviceFailed, Session
from convrewrite.running.sampling import Images, InputSpec, read_data
from convrewrite.text import told
from exported import NETWORKS
from helpers import verify

Weights = dict[str, np.ndarray]


def weights(gain: float = 1.0) -> Weights:
    rng = np.random.default_rng(11)

    def normal(*shape: int, scale: float) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    return {
        "w1": normal(8, 3, 3, 3, scale=0.3),
        "b1": normal(8, scale=0.2),
        "gamma": (1 + normal(8, scale=0.1)).astype(np.float32),
        "beta": normal(8, scale=0.1),
        "average": normal(8, scale=0.1),
        "variance": (1 + normal(8, scale=0.1) ** 2).astype(np.float32),
        "w2": normal(8, 8, 3, 3, scale=0.15),
        "b2": normal(8, scale=0.2),
        "w3": gain * normal(10, 8 * 3 * 2, scale=0.15),
        "b3": gain * normal(10, scale=0.2),
    }


def network(
    values: Weights, *, bn: bool = True, rename: bool = False, axis: int = 1, kind: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """Conv, BN, Relu, MaxPool, Conv, Relu, Flatten, Gemm, Softmax on [1, 3, 10, 8]; the last map is 3 x 2.

    Args:
        bn: False leaves it out (its effect is in the weights). rename: other names for nodes and inner tensors.
        kind: of the input; integers are cast.
    """
    cast = [("Cast", ["image"], ["x0"], {"to": TensorProto.FLOAT})] if kind != TensorProto.FLOAT else []
    nodes = [
        *cast,
        ("Conv", ["x0" if cast else "image", "w1", "b1"], ["c1"], {}),
        *([("BatchNormalization", ["c1", "gamma", "beta", "average", "variance"], ["n1"], {})] if bn else []),
        ("Relu", ["n1" if bn else "c1"], ["r1"], {}),
        ("MaxPool", ["r1"], ["p1"], {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
        ("Conv", ["p1", "w2", "b2"], ["c2"], {"pads": [1, 1, 0, 0]}),
        ("Relu", ["c2"], ["r2"], {}),
        ("Flatten", ["r2"], ["f"], {}),
        ("Gemm", ["f", "w3", "b3"], ["scores"], {"transB": 1}),
        ("Softmax", ["scores"], ["prob"], {"axis": axis}),
    ]
    new = {name: f"other/{name}" for _, _, (name,), _ in nodes if name != "prob"} if rename else {}
    protos = [
        helper.make_node(op, [new.get(n, n) for n in i], [new.get(n, n) for n in o], name=f"{rename}{k}", **attrs)
        for k, (op, i, o, attrs) in enumerate(nodes)
    ]
    used = {name for node in protos for name in node.input}
    graph = helper.make_graph(
        protos,
        "g",
        [helper.make_tensor_value_info("image", kind, ["N", 3, 10, 8])],
        [helper.make_tensor_value_info("prob", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(array, name) for name, array in values.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def check(folder: Path, a: onnx.ModelProto, b: onnx.ModelProto, **options):
    onnx.save(a, folder / "a.onnx")
    onnx.save(b, folder / "b.onnx")
    return verify(folder / "a.onnx", folder / "b.onnx", **options)


def changed(values: Weights, **changes: Callable[[np.ndarray], np.ndarray]) -> Weights:
    return {
        name: np.ascontiguousarray(changes[name](array), np.float32) if name in changes else array
        for name, array in values.items()
    }


def scaled(array: np.ndarray) -> np.ndarray:
    return array * np.float32(1.001)


def swapped(array: np.ndarray) -> np.ndarray:
    """The flattened 3 x 2 map read as if it were 2 x 3."""
    return array.reshape(10, 8, 3, 2).transpose(0, 1, 3, 2).reshape(10, -1)


FAULTS: dict[str, dict] = {
    "a conv scaled by 1.001": {"w2": scaled},
    "the first conv scaled by 1.001": {"w1": scaled},
    "H and W swapped in the FC": {"w3": swapped},
    "H and W swapped in a kernel": {"w1": lambda w: w.transpose(0, 1, 3, 2)},
    "a bias dropped": {"b2": np.zeros_like},
    "the last bias dropped": {"b3": np.zeros_like},
    "NaN": {"w2": lambda w: np.where(np.arange(w.size).reshape(w.shape) == 5, np.nan, w)},
    "classes permuted": {"w3": lambda w: w[::-1], "b3": lambda b: b[::-1]},
}


@pytest.mark.parametrize("gain", [1.0, 300.0], ids=["plain", "saturated Softmax"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_is_found(tmp_path, fault, gain):
    values = weights(gain)
    result = check(tmp_path, network(values), network(changed(values, **fault)))
    assert result.verdict == "failed"
    with pytest.raises(CheckFailed):
        result.check()


@pytest.mark.parametrize("fault", [{"w2": scaled}, {"w1": scaled}])
@pytest.mark.parametrize("how", ["data", "uint8"])
def test_a_scaled_conv_is_found_on_pixels_with_a_saturated_softmax(tmp_path, fault, how):
    """The Softmax is 0 and 1 for both: only the scores ahead of it tell."""
    values = weights(300.0)
    kind = TensorProto.UINT8 if how == "uint8" else TensorProto.FLOAT
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 10, 8)).astype("u1" if how == "uint8" else "f4")
    data = {"image": pixels}
    result = check(tmp_path, network(values, kind=kind), network(changed(values, **fault), kind=kind), data=data)
    failed = {case.output: case for case in result.cases if case.status == "failed"}
    assert "prob (before Softmax)" in failed
    assert failed["prob (before Softmax)"].metrics.top1_agreement == 1.0
    assert "prob" not in failed


def test_a_wrong_softmax_axis_is_found(tmp_path):
    values = weights()
    result = check(tmp_path, network(values), network(values, axis=0), batch=2)
    assert result.verdict == "failed"
    assert [case.output for case in result.cases if case.status == "failed"] == ["prob"]


def folded(values: Weights) -> Weights:
    """BatchNormalization folded by hand, all in float32."""
    factor = values["gamma"] / np.sqrt(values["variance"] + np.float32(1e-5))
    new = {"w1": values["w1"] * factor[:, None, None, None]}
    new["b1"] = (values["b1"] - values["average"]) * factor + values["beta"]
    return values | new


@pytest.mark.parametrize("gain", [1.0, 300.0])
@pytest.mark.parametrize(
    "again",
    [
        network,
        lambda values: network(values, rename=True),
        lambda values: network(folded(values), bn=False),
        lambda values: network(folded(values), bn=False, rename=True),
    ],
    ids=["the same", "renamed", "BN folded", "BN folded and renamed"],
)
def test_the_same_network_written_differently_passes(tmp_path, again, gain):
    values = weights(gain)
    result = check(tmp_path, network(values), again(values))
    assert result.verdict == "verified", result.message()
    worst = result.worst
    assert worst.metrics.top1_agreement == 1.0
    assert worst.metrics.cosine == pytest.approx(1.0, abs=1e-9)


def test_the_same_network_optimized_by_onnx_runtime_passes(tmp_path):
    """Constant-folded and fused by another tool, written to a file again."""
    import onnxruntime as ort

    onnx.save(network(weights()), tmp_path / "a.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "b.onnx")
    ort.InferenceSession(str(tmp_path / "a.onnx"), options, providers=["CPUExecutionProvider"])
    assert len(onnx.load(tmp_path / "b.onnx").graph.node) < len(onnx.load(tmp_path / "a.onnx").graph.node)
    assert verify(tmp_path / "a.onnx", tmp_path / "b.onnx").passed


def test_weights_that_nodes_make_constant_are_vacuous(tmp_path):
    path = tmp_path / "alexnet.onnx"
    onnx.save(NETWORKS["caffe2-alexnet"].model(), path)
    result = verify(path, path)
    assert result.verdict == "vacuous"
    assert "--data" in told(result.message(), FLAGS)


@pytest.mark.parametrize("reference", ["onnxruntime", "onnx"])
def test_the_first_tensor_that_differs_is_named(tmp_path, reference):
    values = weights()
    options = {"where": True, "reference": reference}
    found = check(tmp_path, network(values), network(changed(values, w2=scaled)), **options).divergence
    assert (found.tensor, found.op, found.agreeing, found.compared) == ("c2", "Conv", 4, 9)
    assert found.error == pytest.approx(1e-3, rel=0.5)
    assert "'c2' (Conv" in str(found)
    found = check(tmp_path, network(values), network(folded(values), bn=False), **options).divergence
    assert found.tensor == "c1"  # BN is in its weights: the name stayed, the values did not
    found = check(tmp_path, network(values), network(values), **options).divergence
    assert found.tensor == ""
    assert found.agreeing == found.compared == 9


def test_a_mask_of_infinities_inside_is_no_divergence(tmp_path):
    def masked(scale: float) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Where", ["mask", "x", "low"], ["m"]),
            helper.make_node("Softmax", ["m"], ["p"], axis=1),
            helper.make_node("Mul", ["p", "scale"], ["y"]),
        ]
        initializers = {
            "mask": np.array([True, False, True]),
            "low": np.float32(-np.inf),
            "scale": np.float32(scale),
        }
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
            [numpy_helper.from_array(np.asarray(v), n) for n, v in initializers.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

    result = check(tmp_path, masked(1.0), masked(1.1), where=True)
    assert result.divergence.tensor == "y"


def test_the_failing_case_replays(tmp_path):
    values = weights()
    a, b = network(values), network(changed(values, w2=scaled))
    result = check(tmp_path, a, b, batch=2)
    result.failing.save(tmp_path / "case.npz")
    data = read_data(tmp_path / "case.npz")
    assert data["image"].shape == (2, 3, 10, 8)
    again = verify(tmp_path / "a.onnx", tmp_path / "b.onnx", data=data, batch=2)
    assert again.verdict == "failed"
    assert again.worst.error == result.worst.error
    assert np.abs(data["rewritten/prob (before Softmax)"] - data["original/prob (before Softmax)"]).max() > 0
    assert check(tmp_path, a, a).failing is None


def test_tolerances_by_output(tmp_path):
    values = weights()
    a, b = network(values), network(changed(values, w2=scaled))
    assert check(tmp_path, a, b, tolerance={"prob": 0.01}).passed
    assert not check(tmp_path, a, b, tolerance={"prob": 1e-7}).passed
    assert check(tmp_path, a, b, tolerance={"": 0.01}).passed
    with pytest.raises(UsageError, match="names 'nosuch', which is no output; there are prob"):
        check(tmp_path, a, b, tolerance={"nosuch": 1.0})


def lookup(rows: int) -> onnx.ModelProto:
    """Indices into a table of `rows`."""
    table = np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["ids", "flat"], ["i"]),
            helper.make_node("Gather", ["table", "i"], ["e"]),
            helper.make_node("Where", ["keep", "e", "zero"], ["k"]),
            helper.make_node("Cast", ["pixels"], ["p"], to=TensorProto.DOUBLE),
            helper.make_node("Cast", ["k"], ["d"], to=TensorProto.DOUBLE),
            helper.make_node("Add", ["d", "p"], ["s"]),
            helper.make_node("Add", ["s", "x"], ["y"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 6]),
            helper.make_tensor_value_info("keep", TensorProto.BOOL, [6, 4]),
            helper.make_tensor_value_info("pixels", TensorProto.INT32, [6, 4]),
            helper.make_tensor_value_info("x", TensorProto.DOUBLE, [6, 4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [6, 4])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([6]), "flat"),
            numpy_helper.from_array(np.zeros((), np.float32), "zero"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("rows", [1, 7])
def test_indices_stay_in_range_and_every_type_is_drawn(tmp_path, rows):
    from convrewrite.verification.ranges import integer_limits

    assert integer_limits(lookup(rows)) == {"ids": rows, "pixels": 256}
    assert check(tmp_path, lookup(rows), lookup(rows), samples=6).passed


def test_several_sizes_and_what_does_not_fit(tmp_path):
    def pooled(shape) -> onnx.ModelProto:
        graph = helper.make_graph(
            [helper.make_node("GlobalAveragePool", ["image"], ["y"])],
            "g",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        )
        graph.output[0].type.tensor_type.ClearField("shape")
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

    free = pooled(["N", 3, "H", "W"])
    result = check(tmp_path, free, free, sizes=[(8, 8), (9, 12)], batch=2)
    assert [case.name for case in result.cases] == ["outputs at 8x8 batch 2", "outputs at 9x12 batch 2"]
    assert result.passed
    assert check(tmp_path, free, free, shapes={"image": (2, 3, 5, 7)}).passed
    with pytest.raises(UsageError, match=r"shapes={'image': \(2, 3, 5\)} does not fit"):
        check(tmp_path, free, free, shapes={"image": (2, 3, 5)})
    with pytest.raises(UsageError, match="shapes names 'img', which is no input; there are image"):
        check(tmp_path, free, free, shapes={"img": (2, 3, 5, 5)})
    with pytest.raises(UsageError, match="give size="):
        check(tmp_path, free, free)
    assert check(tmp_path, free, free, data={"image": np.ones((4, 3, 6, 5), np.float32)}).verdict == "vacuous"
    fixed = pooled([1, 3, 8, 8])
    with pytest.raises(UsageError, match=r"size=\(9, 9\) does not fit: no input is open"):
        check(tmp_path, fixed, fixed, size=(9, 9))
    with pytest.raises(UsageError, match="batch=2 does not fit"):
        check(tmp_path, fixed, fixed, batch=2)


def test_a_size_that_does_not_run_keeps_what_ran(tmp_path):
    """A kernel of 5 on a map of 4: the second size fails in the original itself."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, "h", "w"])],
        [numpy_helper.from_array(np.arange(25, dtype=np.float32).reshape(1, 1, 5, 5), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    result = check(tmp_path, model, model, sizes=[(8, 8), (4, 4)])
    assert [case.status for case in result.cases] == ["passed"]
    assert result.verdict == "skipped"
    with pytest.raises(Exception, match=r"at 4x4; it ran at 8x8") as caught:
        result.check()
    assert caught.value.exit_code == 2


def save_images(folder: Path) -> np.ndarray:
    pil = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 256, (3, 10, 8, 3)).astype(np.uint8)
    folder.mkdir()
    for number, image in enumerate(pixels):
        pil.fromarray(image).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    return pixels


def test_images(tmp_path):
    folder = tmp_path / "images"
    pixels = save_images(folder)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    spec = InputSpec("image", np.dtype(np.float32), (1, 3, 10, 8))
    samples = Images(folder, mean, std).samples([spec])
    assert [sample.source for sample in samples] == ["image 0.png", "image 1.png", "image 2.png"]
    want = ((pixels[1] / 255 - mean) / std).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(samples[1].feeds["image"], want, rtol=1e-6)
    nhwc = Images(folder).samples([InputSpec("image", np.dtype(np.uint8), (3, 10, 8, 3))])
    np.testing.assert_array_equal(nhwc[0].feeds["image"], pixels)
    chw = Images(folder, layout="CHW", limit=1).samples([InputSpec("image", np.dtype(np.float32), (3, 10, 8))])
    assert chw[0].feeds["image"].shape == (3, 10, 8)
    gray = Images(folder).samples([InputSpec("image", np.dtype(np.float32), (1, 1, 20, 8))])
    assert gray[0].feeds["image"].shape == (1, 1, 20, 8)
    values = weights()
    assert check(tmp_path, network(values), network(values), data=Images(folder, mean, std)).passed
    assert not check(tmp_path, network(values), network(changed(values, w2=scaled)), data=Images(folder)).passed


def test_images_that_cannot_be_used(tmp_path):
    folder = tmp_path / "images"
    save_images(folder)
    spec = InputSpec("image", np.dtype(np.float32), (1, 3, 10, 8))
    for bad, text in [
        (Images(tmp_path / "none"), "there is no such folder"),
        (Images(tmp_path), "no image in it"),
        (Images(folder, mean=(0.5, 0.5)), "mean has 2 numbers, the input has 3 channels"),
        (Images(folder, layout="HWX"), "give its axes"),
        (Images(folder, std=(0.0,)), "std has a 0"),
    ]:
        with pytest.raises(UsageError, match=text):
            bad.samples([spec])
    with pytest.raises(UsageError, match="holds 3 images, no multiple of the batch 2"):
        Images(folder).samples([InputSpec("image", np.dtype(np.float32), (2, 3, 10, 8))])
    with pytest.raises(UsageError, match="has 5 channels"):
        Images(folder, layout="NCHW").samples([InputSpec("image", np.dtype(np.float32), (1, 5, 10, 8))])
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    with pytest.raises(UsageError, match=r"cannot read the image .*1\.png: ") as caught:
        Images(folder).samples([spec])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("message", ["CUDA failure 700: an illegal memory access", "Failed to allocate memory for 9"])
def test_a_provider_that_dies_is_no_difference_between_the_models(tmp_path, monkeypatch, message):
    """The rewritten model dies with its provider: that is exit code 2, and not "not equivalent"."""
    real = Session.run

    def run(self, feeds, outputs=None):
        if self.label.endswith("b.onnx") and "variant" not in self.label:
            with self._failing():
                raise RuntimeError(message)
        return real(self, feeds, outputs)

    monkeypatch.setattr(Session, "run", run)
    with pytest.raises(DeviceFailed, match="failed while running") as caught:
        check(tmp_path, network(weights()), network(weights()))
    assert caught.value.exit_code == 2
