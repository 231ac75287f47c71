"""Sessions: the provider that was asked for or an error that says why, and one line for everything that goes wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from convrewrite.errors import UsageError
from convrewrite.running import installed, runtime
from convrewrite.running.runtime import RunFailed, open_session


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
    monkeypatch.setattr(runtime.library(), "get_available_providers", lambda: ["CPUExecutionProvider"])
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


@pytest.mark.parametrize(
    ("found", "install"),
    [
        ({"onnxruntime-gpu": "1.31"}, 'pip uninstall -y onnxruntime-gpu && pip install "convrewrite[cuda]"'),
        ({"onnxruntime": "1.31"}, 'pip uninstall -y onnxruntime && pip install "convrewrite[cuda]"'),
        ({}, 'pip install "convrewrite[cuda]"'),
    ],
)
def test_the_remedy_leaves_one_package(path, monkeypatch, found, install):
    """CUDA's package beside the one that is there would be two that overwrite each other's files."""
    monkeypatch.setattr(runtime.library(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(installed, "distributions", lambda: found)
    with pytest.raises(UsageError, match="built without it") as caught:
        open_session(path, "cuda")
    assert caught.value.remedy is not None
    assert caught.value.remedy.startswith(f"{install}, or use")


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
    code = "import sys, convrewrite.running.runtime; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_session_says_which_nodes_run_where(path):
    session = open_session(path)
    assert session.placement in ({"cpu": ("Relu",)}, {})  # {}: ONNX Runtime below 1.24 does not say
    assert session.nodes in ({"cpu": 1}, {})
    assert session.warning == ""
    assert session.tf32 is False
    assert open_session(path, tf32=True).tf32 is False  # the CPU never rounds


def test_nodes_that_fell_to_the_cpu_are_a_warning(path):
    placement = {"cuda": ("Conv", "Relu"), "cpu": ("Shape", "Gather", "Shape")}
    session = replace(open_session(path), provider="cuda", placement=placement)
    assert session.warning == f"3 of the 5 nodes of {path} run on the CPU, not on cuda: Gather, 2 Shape"


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_a_bound_run_gives_the_same(tmp_path, dtype):
    onnx.save(_model("Abs", helper.np_dtype_to_tensor_dtype(np.dtype(dtype))), tmp_path / "m.onnx")
    session = open_session(tmp_path / "m.onnx")
    feeds = {"x": np.arange(-6, 6).reshape(4, 3).astype(dtype)[::2]}
    bound = session.bind(feeds)
    for _ in range(2):
        bound.run()
    np.testing.assert_array_equal(bound.outputs()["y"], session.run(feeds)["y"])


def test_a_bound_run_fails_in_one_line(path):
    session = open_session(path)
    with pytest.raises(RunFailed, match="failed while running"):
        session.bind({"nosuch": np.zeros((1, 3), np.float32)})
    bound = session.bind({"x": np.zeros((1, 4), np.float32)})
    with pytest.raises(RunFailed, match="failed while running"):
        bound.run()


def test_a_profile_is_a_file(path, tmp_path):
    session = open_session(path, profile=tmp_path / "profile")
    session.run({"x": np.zeros((1, 3), np.float32)})
    file = session.end_profile()
    assert file.parent == tmp_path
    assert "Relu" in file.read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="no descriptor 2 to look at")
def test_the_log_of_onnx_runtime_is_shown_only_where_wanted(path, capfd):
    if "CUDAExecutionProvider" not in runtime.library().get_available_providers():
        pytest.skip("this ONNX Runtime has nothing to log here")
    if open_session(path, "auto").provider != "cpu":
        pytest.skip("CUDA loads here")
    assert capfd.readouterr().err == ""
    with runtime.log_shown():
        open_session(path, "auto")
    assert "CUDAExecutionProvider" in capfd.readouterr().err
    open_session(path, "auto")
    assert capfd.readouterr().err == ""


def test_auto_goes_on_where_a_provider_breaks(path, monkeypatch):
    """A driver that is too old raises while the session is made; "auto" then runs on the CPU, "cuda" says why."""
    ort = runtime.library()
    real = ort.InferenceSession

    def breaking(source, options, providers, **more):
        if providers[0][0] != "CPUExecutionProvider":
            raise RuntimeError("CUDA failure 35: driver version is insufficient")
        return real(source, options, providers=providers, **more)

    monkeypatch.setattr(ort, "InferenceSession", breaking)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(runtime, "_load_error", lambda library: "")
    assert open_session(path, "auto").provider == "cpu"
    with pytest.raises(UsageError, match="cannot be used here: CUDA failure 35: driver version is insufficient; pip"):
        open_session(path, "cuda")


def test_the_missing_library_and_the_missing_driver_are_named(path, monkeypatch):
    ort = runtime.library()
    found = {runtime._DRIVER: f"{runtime._DRIVER}: no such file"}
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(runtime, "_load_error", lambda library: found.get(library, "libcublas.so.13: no such file"))
    monkeypatch.setattr(runtime, "_not_loaded", lambda ort, provider: "it did not load (libcublas.so.13)")
    text = str(runtime._not_obtained(ort, "cuda"))
    assert "it did not load (libcublas.so.13), and there is no NVIDIA driver (" in text
    assert runtime._DRIVER in text
