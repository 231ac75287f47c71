"""Memory of a verification: slices of a fixed batch where images are apart, one session at a time, or a clear line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from processes import HANGS

from convrewrite.cli.words import FLAGS
from convrewrite.engine import memory
from convrewrite.engine.graph import infer_shapes
from convrewrite.errors import UsageError
from convrewrite.model_io import load, save
from convrewrite.running.runtime import DeviceFailed
from convrewrite.text import told
from convrewrite.verification import room, slices, specimens
from helpers import verify

BATCH = 12
CPU = ["CPUExecutionProvider"]


def saved(
    folder: Path,
    nodes: list[onnx.NodeProto],
    stored: dict[str, Any],
    shape: list[int] | None = None,
    *,
    opset: int = 17,
    name: str = "model.onnx",
    output: list[int | None] | None = None,
) -> Path:
    """A model of one image input; its output is "y"."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape or [BATCH, 3, 6, 6])
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, output or [None, None])
    weights = [numpy_helper.from_array(np.asarray(value), key) for key, value in stored.items()]
    graph = helper.make_graph(nodes, "g", [image], [end], weights)
    path = folder / name
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def classifier(folder: Path, batch: int = BATCH, name: str = "model.onnx", change: float = 0.0, size: int = 6) -> Path:
    """Conv, Relu, Reshape with the batch in its numbers, Gemm, Softmax."""
    rng = np.random.default_rng(0)
    width = 4 * (size - 2) ** 2
    stored = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32) + np.float32(change),
        "shape": np.array([batch, -1]),
        "m": rng.standard_normal((5, width)).astype(np.float32) / np.float32(width) ** 0.5,
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["f"]),
        helper.make_node("Gemm", ["f", "m"], ["z"], transB=1),
        helper.make_node("Softmax", ["z"], ["y"], axis=1),
    ]
    return saved(folder, nodes, stored, [batch, 3, size, size], name=name, output=[batch, 5])


def opened(path: Path) -> Any:
    model = load(path)
    shapes = infer_shapes(model.graph, {t.name: t.shape for t in model.graph.inputs})
    return slices.opened(model, shapes, BATCH)


n = helper.make_node
APART: dict[str, list[onnx.NodeProto]] = {
    "pools": [n("MaxPool", ["image"], ["a"], kernel_shape=[2, 2]), n("GlobalAveragePool", ["a"], ["b"])],
    "flatten": [n("Flatten", ["image"], ["a"]), n("Softmax", ["a"], ["b"], axis=1)],
    "transposes": [n("Transpose", ["image"], ["a"], perm=[0, 2, 3, 1]), n("ReduceMax", ["a"], ["b"], axes=[1, 2])],
    "joined": [n("Neg", ["image"], ["a"]), n("Concat", ["image", "a"], ["b"], axis=1)],
    "broadcast": [n("Mul", ["image", "one_image"], ["a"]), n("Add", ["a", "channel"], ["b"])],
    "product": [n("MatMul", ["image", "square"], ["a"]), n("Relu", ["a"], ["b"])],
    "moved": [n("Reshape", ["image", "rows"], ["a"]), n("Reshape", ["a", "back"], ["b"])],
    "padded": [n("Pad", ["image", "around"], ["a"]), n("ArgMax", ["a"], ["i"], axis=1), n("Cast", ["i"], ["b"], to=1)],
    "cut": [n("Slice", ["image", "zero", "two", "three"], ["a"]), n("Unsqueeze", ["a", "three"], ["b"])],
}
TOGETHER: dict[str, list[onnx.NodeProto]] = {
    "maximum": [n("ReduceMax", ["image"], ["a"], axes=[0], keepdims=1), n("Sub", ["image", "a"], ["b"])],
    "all axes": [n("ReduceMax", ["image"], ["a"]), n("Sub", ["image", "a"], ["b"])],
    "sum of sums": [n("CumSum", ["image", "nought"], ["b"])],
    "best": [n("TopK", ["image", "k"], ["b", "i"], axis=0)],
    "softmax": [n("Softmax", ["image"], ["b"], axis=0)],
    "picked": [n("Gather", ["image", "order"], ["b"], axis=0)],
    "its size": [
        n("Shape", ["image"], ["s"], start=0, end=1),
        n("Cast", ["s"], ["f"], to=1),
        n("Mul", ["image", "f"], ["b"]),
    ],
    "turned": [n("Transpose", ["image"], ["a"], perm=[1, 0, 2, 3]), n("Relu", ["a"], ["b"])],
    "turned and back": [
        n("Transpose", ["image"], ["a"], perm=[1, 0, 2, 3]),
        n("Softmax", ["a"], ["c"], axis=1),
        n("Transpose", ["c"], ["b"], perm=[1, 0, 2, 3]),
    ],
    "mixed rows": [n("Reshape", ["image", "mixed"], ["a"]), n("Relu", ["a"], ["b"])],
    "range of all": [
        n("DynamicQuantizeLinear", ["image"], ["q", "s", "z"]),
        n("DequantizeLinear", ["q", "s", "z"], ["b"]),
    ],
    "one number per image": [n("Mul", ["image", "per_image"], ["b"])],
    "indices": [n("MaxPool", ["image"], ["a", "i"], kernel_shape=[2, 2]), n("Cast", ["i"], ["b"], to=1)],
    "first image": [n("Slice", ["image", "zero", "one", "zero"], ["a"]), n("Add", ["image", "a"], ["b"])],
    "joined images": [n("Concat", ["image", "image"], ["b"], axis=0)],
    "training": [
        n("BatchNormalization", ["image", "c3", "c3", "c3", "c3"], ["b", "m", "v"], training_mode=1),
    ],
    "misaligned": [
        n("ReduceMean", ["image"], ["a"], axes=[2, 3], keepdims=0),
        n("Unsqueeze", ["a", "fronts"], ["u"]),
        n("Softmax", ["u"], ["b"], axis=2),
    ],
    "padded images": [n("Pad", ["image", "more"], ["b"])],
}
CONSTANTS: dict[str, Any] = {
    "one_image": np.linspace(-1, 1, 108, dtype=np.float32).reshape(1, 3, 6, 6),
    "channel": np.linspace(-1, 1, 3, dtype=np.float32).reshape(3, 1, 1),
    "square": np.linspace(-1, 1, 36, dtype=np.float32).reshape(6, 6),
    "per_image": np.linspace(-1, 1, BATCH, dtype=np.float32).reshape(BATCH, 1, 1, 1),
    "rows": np.array([BATCH, 6, -1]),
    "back": np.array([-1, 3, 6, 6]),
    "mixed": np.array([3, BATCH, 6, 6]),
    "around": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "more": np.array([1, 0, 0, 0, 0, 0, 0, 0]),
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
    "three": np.array([3]),
    "fronts": np.array([0]),
    "nought": np.int64(0),
    "k": np.array([BATCH]),
    "order": np.arange(BATCH)[::-1].copy(),
    "c3": np.ones(3, np.float32),
}


def built(folder: Path, nodes: list[onnx.NodeProto]) -> Path:
    read = {name for node in nodes for name in node.input}
    stored = {name: value for name, value in CONSTANTS.items() if name in read}
    path = saved(folder, [*nodes, n("Identity", ["b"], ["y"])], stored)
    model = onnx.load(path)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    onnx.save(inferred, path)
    return path


@pytest.mark.parametrize("kind", APART)
def test_images_that_are_apart_may_be_run_one_by_one(kind: str, tmp_path: Path) -> None:
    path = built(tmp_path, APART[kind])
    variant = opened(path)
    assert variant is not None
    whole = onnxruntime.InferenceSession(path, providers=CPU)
    part = onnxruntime.InferenceSession(save(variant, tmp_path / "variant.onnx"), providers=CPU)
    image = np.random.default_rng(1).standard_normal((BATCH, 3, 6, 6)).astype(np.float32)
    want = whole.run(None, {"image": image})[0]
    for start in range(0, BATCH, 5):  # the last slice is shorter
        got = part.run(None, {"image": image[start : start + 5]})[0]
        np.testing.assert_allclose(got, want[start : start + 5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", TOGETHER)
def test_images_that_see_each_other_are_not_sliced(kind: str, tmp_path: Path) -> None:
    assert opened(built(tmp_path, TOGETHER[kind])) is None


def test_a_large_batch_is_verified_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SLICED_ABOVE", 1.0)
    monkeypatch.setattr(room, "SLICE", 4e3)
    seen: list[int] = []
    run = specimens.Specimen.run

    def counting(self: Any, feeds: Any) -> Any:
        seen.append(len(feeds["image"]))
        return run(self, feeds)

    monkeypatch.setattr(specimens.Specimen, "run", counting)
    path = classifier(tmp_path)
    found = verify(path, path)
    assert found.passed
    assert seen
    assert max(seen) < BATCH
    assert any("in slices of" in line for line in found.warnings)
    assert told(found.command, FLAGS) == f"convrewrite verify {path} {path} --seed 0 --samples 3"


def test_a_wrong_model_is_found_in_slices_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = classifier(tmp_path), classifier(tmp_path, name="wrong.onnx", change=0.01)
    monkeypatch.setattr(room, "SLICED_ABOVE", 1.0)
    found = verify(*paths)
    assert found.verdict == "failed"
    assert found.failing.inputs["image"].shape == (BATCH, 3, 6, 6)  # --data takes it
    monkeypatch.undo()
    again = verify(*paths, data=dict(found.failing.inputs))
    assert again.verdict == "failed"


def test_data_is_sliced_and_has_to_be_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SLICED_ABOVE", 1.0)
    path = classifier(tmp_path)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3 * BATCH, 3, 6, 6)).astype(np.float32)
    for array in (rows, rows.reshape(3, BATCH, 3, 6, 6)):
        found = verify(path, path, data={"image": array})
        assert found.passed
        assert any("in slices of" in line for line in found.warnings)
    with pytest.raises(UsageError, match=f"holds 13 samples, no multiple of the batch {BATCH}"):
        verify(path, path, data={"image": rows[:13]})


def test_where_memory_is_short_no_session_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = built(tmp_path, TOGETHER["maximum"])
    kinds: list[str] = []
    run = specimens.Specimen.run

    def looking(self: Any, feeds: Any) -> Any:
        kinds.append(type(self.session).__name__)
        return run(self, feeds)

    monkeypatch.setattr(specimens.Specimen, "run", looking)
    least = 3 * BATCH * 3 * 36 * 4.0
    monkeypatch.setattr(memory, "available", lambda: 1.5 * least)
    assert verify(path, path).passed
    assert set(kinds) == {"OnDemand"}
    monkeypatch.setattr(memory, "available", lambda: least / 4)
    with pytest.raises(DeviceFailed, match=r"not enough memory: .* need about .* GB") as caught:
        verify(path, path)
    assert caught.value.exit_code == 2
    assert "verify=False" in str(caught.value)


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand", "Tile", "Range"])
def test_constants_beyond_all_measure_are_told_before_a_session_is_made(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 3_000_000_000
    operands = {
        "ConstantOfShape": {"s0": np.array([count])},
        "Expand": {"s0": np.ones(1, np.float32), "s1": np.array([count])},
        "Tile": {"s0": np.ones(1, np.float32), "s1": np.array([count])},
        "Range": {"s0": np.float32(0), "s1": np.float32(count), "s2": np.float32(1)},
    }[op]
    nodes = [
        helper.make_node(op, list(operands), ["big"]),
        helper.make_node("ReduceSum", ["big"], ["one"], keepdims=0),
        helper.make_node("Add", ["image", "one"], ["y"]),
    ]
    path = saved(tmp_path, nodes, operands, output=[BATCH, 3, 6, 6])
    monkeypatch.setattr(specimens, "open_session", lambda *_, **__: pytest.fail("a session was made"))
    with pytest.raises(UsageError, match=r"its constants expand to 12\.0 GB, 'big' to 12\.0 GB"):
        verify(path, path)


def test_the_peak_counts_what_is_held_at_once(tmp_path: Path) -> None:
    graph = load(classifier(tmp_path)).graph
    shapes = infer_shapes(graph, {"image": (BATCH, 3, 6, 6)})
    image, wide = BATCH * 3 * 36 * 4, BATCH * 4 * 16 * 4
    assert memory.peak(graph, memory.tensor_bytes(graph, shapes)) == max(image + wide, 2 * wide)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process")
def test_the_limit_of_the_process_is_seen() -> None:
    code = (
        "import resource, convrewrite.engine.memory as m; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); "
        "print(m.available() < 3 << 30)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process")
@pytest.mark.parametrize("command", [["separable", "--tol", "0.9", "--accept", "always"], ["fcn"]])
def test_a_batch_of_thousands_fits_a_small_process(command: list[str], tmp_path: Path) -> None:
    """The maps of this batch take 1.3 GB in each of four sessions; the process may have 3 GB of addresses in all."""
    path = classifier(tmp_path, 20_000, size=34)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); "
        "from convrewrite.cli.app import main; sys.argv = ['convrewrite', *sys.argv[1:]]; main()"
    )
    words = [sys.executable, "-c", code, *command, str(path), str(tmp_path / "out.onnx"), "--provider", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stderr
    assert "in slices of" in done.stderr
