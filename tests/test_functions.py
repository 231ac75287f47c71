"""Local functions are inlined on reading: what is saved computes the same, and a copy stays byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import valid_parts
from cli_models import call
from onnx import helper, parser

from convrewrite import model_io
from convrewrite.errors import UsageError

NESTED = """<ir_version: 10, opset_import: ["": 17, "own": 1]>
net (float[1, 3] x) => (float[1, 3] y, float[1, 3] z) {
  a = own.Scale <by = 2.0> (x)
  b = own.Scale (a)
  yes = Constant <value = bool {1}> ()
  y = If (yes) <
    then_branch = yes_branch () => (float[1, 3] o) { o = own.Act (b) },
    else_branch = no_branch () => (float[1, 3] o2) { o2 = Identity (b) }
  >
  z = own.Fast (y)
}
<domain: "own", opset_import: ["": 17, "own": 1]> Scale <by: float = 1.5> (p) => (q) {
  s = own.Act (p)
  k = Constant <value_float: float = @by> ()
  q = Mul (s, k)
}
<domain: "own", opset_import: ["": 18]> Act (p) => (q) { q = LeakyRelu (p) }
<domain: "own", opset_import: ["": 17, "com.microsoft": 1]> Fast (p, r) => (q) { q = com.microsoft.Gelu (p) }
"""
"""Calls inside calls and inside a branch; a default and a given attribute; another opset; an input left out."""

CHANGED = """<ir_version: 10, opset_import: ["": 12, "own": 1]>
net (float[2, 3] x) => (float[2, 3] y) { y = own.Soft (x) }
<domain: "own", opset_import: ["": 13]> Soft (p) => (q) { q = Softmax (p) }
"""
"""Softmax means something else in the function's opset than in the model's."""


def run(content: bytes, image: np.ndarray) -> list[np.ndarray]:
    found: list[np.ndarray] = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": image})
    return found


def test_what_is_saved_has_no_functions_and_computes_the_same() -> None:
    content = parser.parse_model(NESTED).SerializeToString()
    model = model_io.load(content)
    saved = model_io.to_bytes(model)
    assert not onnx.load_from_string(saved).functions
    assert not {node.domain for node in model.graph.nodes} & {"own"}
    onnx.checker.check_model(onnx.load_from_string(saved))
    image = np.array([[1, -2, 3]], np.float32)
    for got, want in zip(run(saved, image), run(content, image), strict=True):
        assert np.array_equal(got, want)


def test_a_function_whose_operators_mean_something_else_is_no_valid_model() -> None:
    """The ONNX checker says so; inlining it would have changed what it computes."""
    with pytest.raises(UsageError, match="Softmax"):
        model_io.load(parser.parse_model(CHANGED).SerializeToString())


def whole_network(pads: int) -> onnx.ModelProto:
    """Trunk and head inside of one function, a Softmax outside."""
    nodes = valid_parts.body("p")
    nodes[0].attribute.append(helper.make_attribute("pads", [pads] * 4))
    function = helper.make_function("own", "Net", ["p", *"wbfc"], ["y"], nodes, [helper.make_opsetid("", 17)])
    call_ = helper.make_node("Net", ["x", *"wbfc"], ["scores"], domain="own")
    values = valid_parts.weights()
    if pads:
        values["f"] = np.random.default_rng(3).standard_normal((5, 64 * 4 * 4)).astype(np.float32) / 30
    softmax = helper.make_node("Softmax", ["scores"], ["y"], axis=1)
    return valid_parts.made([call_, softmax], valid_parts.tensors(values), domains={"own": 1}, functions=[function])


@pytest.mark.parametrize("pads", [0, 1])
def test_a_head_inside_a_function_is_lifted_and_held_against_the_originals_own(
    pads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    path.write_bytes(whole_network(pads).SerializeToString())
    assert call(monkeypatch, "fcn", path, out) == 0
    told = capfd.readouterr().err
    assert ("original's trunk and head" in told) == bool(pads)
    assert "skipped" not in told
    image = np.random.default_rng(1).standard_normal((1, 3, 14, 12)).astype(np.float32)
    got, want = run(out.read_bytes(), image)[0], run(path.read_bytes(), image)[0]
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=0, atol=1e-6)


def test_a_copy_keeps_the_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    path.write_bytes(whole_network(0).SerializeToString())
    assert call(monkeypatch, "conv-to-fc", path, out) == 0
    assert out.read_bytes() == path.read_bytes()


def test_costs_are_those_of_the_layers_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(whole_network(0).SerializeToString())
    assert call(monkeypatch, "inspect", path) == 0
    shown = capfd.readouterr()
    macs = 64 * 12 * 10 * 3 * 3 * 3 + 5 * 64 * 4 * 3
    assert f"{macs:,}" in shown.out + shown.err
