"""Sessions: the provider that was asked for or an error that says why, and one line for everything that goes wrong."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from convrewrite import runtime
from convrewrite.errors import UsageError
from convrewrite.runtime import RunFailed, check_installation, open_session


def _model(op: str = "Relu", kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, ["N", 3])],
        [helper.make_tensor_value_info("y", kind, ["N", 3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "m.onnx"
    onnx.save(_model(), target)
    return target


@pytest.mark.parametrize("optimize", [True, False])
def test_runs_from_a_path_and_from_bytes(path, optimize):
    x = np.array([[-1, 0, 2]], np.float32)
    for source in (path, str(path), path.read_bytes()):
        session = open_session(source, optimize=optimize, threads=1)
        assert session.provider == "cpu"
        assert session.run({"x": x})["y"].tolist() == [[0, 0, 2]]
        assert list(session.run({"x": x}, ["y"])) == ["y"]


def test_describes_inputs_and_outputs(path):
    session = open_session(path)
    assert [(i.name, i.dtype, i.shape) for i in session.inputs] == [("x", np.float32, ("N", 3))]
    assert session.outputs[0].kind == "tensor(float)"


@pytest.mark.parametrize("name", ["float32", "float64", "int32", "int64", "int8"])
def test_types(tmp_path, name):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(name))
    onnx.save(_model("Abs", kind), tmp_path / "m.onnx")
    assert open_session(tmp_path / "m.onnx").inputs[0].dtype == np.dtype(name)


def test_auto_gets_something(path):
    assert open_session(path, "auto").provider in ("cpu", "cuda")


def runtime_gives(path, provider):
    """Whether the provider works here: only then may the test find a session."""
    try:
        return bool(open_session(path, provider))
    except UsageError:
        return False


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_is_obtained_or_refused_with_cause_and_mend(path, provider, capfd):
    if runtime_gives(path, provider):
        assert open_session(path, provider).provider == provider
        return
    with pytest.raises(UsageError, match=f"provider '{provider}' cannot be used here: ") as caught:
        open_session(path, provider)
    assert 'pip install "convrewrite[cuda]"' in str(caught.value)
    assert caught.value.exit_code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_a_build_without_cuda_says_so(path, monkeypatch):
    monkeypatch.setattr(runtime._onnxruntime(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UsageError, match="built without it"):
        open_session(path, "cuda")
    assert open_session(path, "auto").provider == "cpu"


def test_unknown_provider(path):
    with pytest.raises(UsageError, match="choose one of auto, cpu, cuda, tensorrt"):
        open_session(path, "tpu")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256))])
def test_a_file_that_is_no_model(tmp_path, content):
    target = tmp_path / "bad.onnx"
    target.write_bytes(content)
    with pytest.raises(UsageError, match=r"ONNX Runtime cannot load .*bad\.onnx: ") as caught:
        open_session(target)
    assert "\n" not in str(caught.value)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        open_session(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="not a file"):
        open_session(tmp_path)


def test_unknown_operator_is_named(tmp_path):
    onnx.save(_model("Frobnicate"), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="Frobnicate"):
        open_session(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "feeds", [{}, {"x": np.zeros((1, 4), np.float32)}, {"x": np.zeros((1, 3))}, {"z": np.zeros((1, 3), np.float32)}]
)
def test_a_failing_run_is_one_line(path, feeds):
    with pytest.raises(RunFailed, match="failed while running") as caught:
        open_session(path).run(feeds)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_two_packages_are_reported_with_the_mend():
    check_installation({"onnxruntime-gpu": "1.31"})
    check_installation({"onnxruntime": "1.31"})
    check_installation({})
    with pytest.raises(UsageError, match="both installed") as caught:
        check_installation({"onnxruntime": "1.30", "onnxruntime-gpu": "1.31"})
    mend = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    assert mend in str(caught.value)
    assert caught.value.exit_code == 2


def test_external_data_of_a_model_in_bytes(tmp_path):
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3000], np.arange(3000, dtype=np.float32).tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3000])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    session = open_session((tmp_path / "m.onnx").read_bytes(), data_folder=tmp_path)
    assert session.run({"x": np.zeros(3000, np.float32)})["y"][-1] == 2999


def test_importing_the_module_does_not_import_onnxruntime():
    code = "import sys, convrewrite.runtime; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
