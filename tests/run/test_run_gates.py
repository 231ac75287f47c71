"""The gates of `run`: each of them misses where it should, and all that are missed are named."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from run_projects import VGG, call, outputs, told


def test_a_gate_is_missed_where_a_weight_was_changed_between_steps(repository: Path) -> None:
    """The original is replaced by another function's file, so that its optimum is no longer within the gate."""
    assert call(repository, "run").returncode == 0
    before = outputs(repository)
    config = (repository / "convrewrite.toml").read_text(encoding="utf-8")
    (repository / "convrewrite.toml").write_text(config.replace("0.05", "1e-6"), encoding="utf-8")
    done = call(repository, "run")
    assert done.returncode == 1
    assert "gate max_output_error: the outputs moved by" in done.stderr
    assert "1 failed" in done.stderr or "2 failed" in done.stderr
    assert outputs(repository) == before, "nothing was written"
    suite = ElementTree.parse(repository / "junit.xml").getroot()
    assert suite.findall("testcase/failure")


@pytest.mark.parametrize(
    ("gate", "text"),
    [
        ('equivalence = "reassociated"', "gate equivalence: the result is approximate"),
        ("max_bytes = 1000", "gate max_bytes"),
        ("min_speedup = 50.0\nbench_seconds = 0.3", "gate min_speedup"),
        ("min_top1_agreement = 1.0", ""),
    ],
)
def test_every_gate(repository: Path, gate: str, text: str) -> None:
    for name in ("lenet5", "digits_dw7"):
        (repository / "models" / f"{name}.onnx").unlink()
    config = VGG.replace("max_output_error = 0.05", gate)
    (repository / "convrewrite.toml").write_text(config, encoding="utf-8")
    done = call(repository, "run")
    assert done.returncode == (1 if text else 0), done.stderr
    assert text in done.stderr
    assert (repository / "optimized" / "digits_vgg.onnx").exists() is (not text)


def test_all_gates_that_are_missed_are_named(repository: Path) -> None:
    for name in ("lenet5", "digits_dw7"):
        (repository / "models" / f"{name}.onnx").unlink()
    gates = 'equivalence = "exact"\nmax_bytes = 1000\nmax_output_error = 1e-6\nmin_speedup = 50.0\nbench_seconds = 600'
    config = VGG.replace("max_output_error = 0.05", gates)
    (repository / "convrewrite.toml").write_text(config, encoding="utf-8")
    done = call(repository, "run")
    assert done.returncode == 1
    message = told(repository)["digits_vgg"]["message"]
    parts = message.split("; ")
    wanted = ["equivalence: the result is", "max_bytes: ", "max_output_error: ", "min_speedup: not measured"]
    assert [part.startswith(f"gate {start}") for part, start in zip(parts, wanted, strict=True)] == [True] * 4, message
    assert message in done.stderr
    assert told(repository)["digits_vgg"].get("speedup") is None
