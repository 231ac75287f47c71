"""The Python API: `import convrewrite as cr`. It does what the commands do, and raises what they end with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from cli_models import flat_input, padded, run, save

import convrewrite as cr
from convrewrite import models, report
from convrewrite.passes.separable import Separable
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
    assert result._repr_html_().startswith("<pre>rewrote")
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
        assert result._repr_html_().startswith("<pre>")


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
