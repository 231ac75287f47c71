"""The Python API: `import convrewrite as cr`. It does what the commands do, and raises what they end with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from cli_models import flat_input, padded, run, save, unknown_to_runtime

import convrewrite as cr
from convrewrite import models
from convrewrite.passes.separable import Separable
from convrewrite.pipeline import report
from helpers import run as run_model

LENET = models.lenet5_path()


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    m = cr.load(LENET)
    r = cr.fcn(m)
    assert r.changed
    assert r.window is not None
    assert r.window.stride == (4, 4)
    found = cr.verify(m, r.model, size=(64, 64))
    assert found.passed
    saved = r.save(tmp_path / "any.onnx")
    image = np.random.default_rng(0).uniform(size=(1, 1, 40, 36)).astype(np.float32)
    cells = next(iter(run_model(onnx.load(saved), {"image": image}).values()))
    crop = next(iter(run_model(onnx.load(LENET), {"image": image[:, :, 8:, 4:]}).values()))
    np.testing.assert_allclose(cells[:, :, 2, 1], crop, atol=1e-5)


def test_it_writes_the_same_bytes_as_the_command_and_prints_the_same_text(tmp_path: Path) -> None:
    source = models.trained_path("digits_vgg")
    done = run("separable", source, tmp_path / "command.onnx", "--tol", "0.01")
    result = cr.separable(source, tol=0.01)
    result.save(tmp_path / "api.onnx")
    assert (tmp_path / "api.onnx").read_bytes() == (tmp_path / "command.onnx").read_bytes()
    rewritten = [line for line in done.stderr.decode().splitlines() if line.startswith("rewrote")]
    assert rewritten
    assert all(line.rstrip() in [text.rstrip() for text in str(result).splitlines()] for line in rewritten)
    assert "<pre>rewrote" in result._repr_html_()
    schema = json.loads(report.SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.validate(result.to_dict(), schema)


def test_nothing_to_do_gives_the_model_back() -> None:
    m = cr.load(LENET)
    result = cr.groups(m)
    assert not result.changed
    assert result.model is m
    assert "nothing to do" in str(result)


def test_a_model_from_bytes_needs_no_path(tmp_path: Path) -> None:
    m = cr.load(LENET.read_bytes())
    result = cr.fcn(m)
    assert result.changed
    assert cr.verify(m, result.model).passed
    again = cr.fcn(result.model)
    assert not again.changed


def test_results_outlive_what_made_them(tmp_path: Path) -> None:
    paths = [cr.fcn(LENET).save(tmp_path / f"{i}.onnx") for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_it_raises_what_the_command_ends_with(tmp_path: Path) -> None:
    flat = save(flat_input(), tmp_path / "flat.onnx")
    with pytest.raises(cr.Refused, match="fcn/flat-input"):
        cr.fcn(flat)
    with pytest.raises(cr.UsageError, match="there is no option 'tolerance'"):
        cr.fcn(LENET, tolerance=1)
    with pytest.raises(cr.UsageError, match="accept is 'maybe'"):
        cr.separable(LENET, accept="maybe")
    with pytest.raises(cr.UsageError, match="is not a tolerance"):
        cr.groups(LENET, tol=-1)
    with pytest.raises(cr.UsageError, match="cannot read"):
        cr.load(tmp_path / "nothing.onnx")
    with pytest.raises(cr.CheckFailed):
        cr.verify(save(padded(), tmp_path / "a.onnx"), save(_changed(padded()), tmp_path / "b.onnx"))


def _changed(model: onnx.ModelProto) -> onnx.ModelProto:
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]) + 1
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, model.graph.initializer[0].name))
    return model


def test_inspect_and_bench() -> None:
    found = cr.inspect(LENET, tol=0.3)
    assert found.macs == 416604
    timed = cr.bench(LENET, LENET, seconds=0.5)
    assert timed.cells
    for result in (found, timed, cr.verify(LENET, LENET), cr.fcn(LENET)):
        assert result._repr_html_().startswith("<div")


def test_any_pass_by_name_or_value() -> None:
    named = cr.transform(LENET, "separable", fields={"tol": 0.3})
    assert named.changed
    assert named.sites == cr.transform(LENET, Separable(tol=0.3)).sites
    assert cr.transform(LENET, "fcn").window is not None
    with pytest.raises(cr.UsageError, match="did you mean 'separable'"):
        cr.transform(LENET, "seperable")


def test_the_package_imports_nothing_heavy() -> None:
    code = "import sys, convrewrite; print(sorted({'onnx', 'numpy', 'onnxruntime', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(cr.__all__) <= set(dir(cr))
    with pytest.raises(AttributeError, match="nonsense"):
        cr.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: cr.fcn(LENET, window="32x32"), "window is '32x32'"),
        (lambda: cr.fcn(LENET, size=0), "size is 0"),
        (lambda: cr.fcn(LENET, size=(32.5, 32)), "whole numbers above 0"),
        (lambda: cr.fcn(LENET, stride=True), "stride is True"),
        (lambda: cr.fcn(LENET, opset="x"), "opset is 'x'"),
        (lambda: cr.fcn(LENET, dynamic_batch="no"), "dynamic_batch is 'no'"),
        (lambda: cr.fcn(LENET, upsample=3), "upsample is 3"),
        (lambda: cr.separable(LENET, tol="x"), "'x' is not a tolerance"),
        (lambda: cr.separable(LENET, tol=None), "None is not a tolerance"),
        (lambda: cr.separable(LENET, form="round"), "form is 'round'"),
        (lambda: cr.separable(LENET, fit=1), "fit is 1"),
        (lambda: cr.separable(LENET, timings=3), "timings is of type int"),
        (lambda: cr.groups(LENET, into="two"), "into is 'two'"),
        (lambda: cr.groups(LENET, expand=1), "expand is 1"),
        (lambda: cr.fcn(LENET, provider=3), "provider is 3"),
        (lambda: cr.fcn(LENET, provider="gpu"), "provider is 'gpu'"),
        (lambda: cr.fcn(LENET, samples="many"), "samples is 'many'"),
        (lambda: cr.fcn(LENET, samples=0), "samples is 0"),
        (lambda: cr.fcn(LENET, seed=None), "seed is None"),
        (lambda: cr.fcn(LENET, verify=None), "verify is None"),
        (lambda: cr.fcn(LENET, max_output_error="x"), "'x' is not a tolerance"),
        (lambda: cr.fcn(LENET, only=7), "only is 7"),
        (lambda: cr.separable(LENET, skip=[None]), r"skip is \[None\]"),
        (lambda: cr.fcn(LENET, data=[np.zeros(3)]), "data is of type list"),
        (lambda: cr.fcn(LENET, data={"image": object()}), r"data\['image'\] is of type object"),
        (lambda: cr.fcn(LENET, progress=3), "progress is 3"),
        (lambda: cr.fcn(LENET.read_bytes()), "the model is of type bytes; give a path"),
        (lambda: cr.fcn(None), "the model is None"),
        (lambda: cr.load(None), "the model is None"),
        (lambda: cr.load(""), "empty path"),
        (lambda: cr.fcn(onnx.ModelProto()), "onnx model"),
        (lambda: cr.verify(LENET, 7), "the model is of type int"),
        (lambda: cr.verify(LENET, LENET, sizes=3), "sizes is 3"),
        (lambda: cr.verify(LENET, LENET, batch="x"), "batch is 'x'"),
        (lambda: cr.verify(LENET, LENET, shapes=3), "shapes is 3"),
        (lambda: cr.verify(LENET, LENET, nonsense=1), "there is no option 'nonsense'"),
        (lambda: cr.bench(LENET, LENET, nonsense=1), "there is no option 'nonsense'"),
        (lambda: cr.bench(LENET, LENET, seconds="x"), "seconds is 'x'"),
        (lambda: cr.bench(LENET, LENET, sizes=3), "sizes is 3"),
        (lambda: cr.bench(None, LENET), "the model is None"),
        (lambda: cr.inspect(LENET, tol="x"), "'x' is not a tolerance"),
        (lambda: cr.inspect(LENET, size="8"), "size is '8'"),
        (lambda: cr.transform(LENET, 7), "7 is no pass"),
        (lambda: cr.transform(LENET, "separable", fields=3), "fields is 3"),
        (lambda: cr.fcn(LENET).save(None), "the path is None"),
        (lambda: cr.fcn(LENET).save(b"x.onnx"), "the path is of type bytes"),
    ],
)
def test_values_of_another_type_are_usage_errors(call: Callable[[], object], text: str) -> None:
    with pytest.raises(cr.UsageError, match=text) as caught:
        call()
    assert "--" not in str(caught.value)


def test_one_number_is_a_size_and_one_pattern_a_list(tmp_path: Path) -> None:
    open_ = onnx.load(LENET)
    for dim in open_.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "S"
    fixed = cr.fcn(LENET, size=40)
    assert onnx.load(fixed.save(tmp_path / "a.onnx")).graph.input[0].type.tensor_type.shape.dim[3].dim_value == 40
    found = cr.fcn(save(open_, tmp_path / "open.onnx"), window=np.int64(32))
    assert found.window is not None
    assert found.window.size == (32, 32)
    assert cr.verify(LENET, found.model, size=48, provider="cpu").passed
    assert cr.verify(LENET, LENET, sizes=[32]).passed
    assert cr.inspect(LENET, size=np.array([32, 32]), passes=False).layers
    assert not cr.separable(LENET, tol=0.3, skip="*").changed
    assert cr.separable(LENET, tol=0.3, skip=["*"]).sites == cr.separable(LENET, tol=0.3, skip="*").sites


def test_a_model_of_the_package_onnx() -> None:
    proto = onnx.load(LENET)
    before = proto.SerializeToString()
    result = cr.fcn(proto)
    assert result.changed
    assert cr.verify(proto, result.model).passed
    assert cr.load(proto).opset == cr.load(LENET).opset
    assert cr.inspect(proto, passes=False).macs == 416604
    assert proto.SerializeToString() == before


def test_only_public_names_are_listed() -> None:
    code = "import convrewrite.api, convrewrite as cr; print(set(dir(cr)) ^ set(cr.__all__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name.startswith("__") for name in done.stdout.split("'")[1::2]), done.stdout


def test_messages_name_a_model_that_was_given_as_what_it_is() -> None:
    """Nothing is rewritten where the original itself does not load, though none of them has a path."""
    odd, other = unknown_to_runtime(), padded()
    for call, name in (
        (lambda: cr.fcn(odd), "the original model"),
        (lambda: cr.verify(odd, other), "model a"),
        (lambda: cr.verify(other, odd), "model b"),
    ):
        with pytest.raises(cr.UsageError) as told:
            call()
        assert str(told.value).startswith(f"ONNX Runtime cannot load {name}: ")
