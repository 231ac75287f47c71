"""What timing tells: the table, the part of the report, the plot, and the command with its gate."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import jsonschema
import pytest
import typer
from typer.testing import CliRunner

from convrewrite.cli import app as cli
from convrewrite.cli import bench as bench_command
from convrewrite.errors import CheckFailed, UsageError
from convrewrite.pipeline.report import SCHEMA_FILE
from convrewrite.timing import FASTER, NO_DIFFERENCE, Bench, CellFailed, Rounds, compare, plot
from convrewrite.timing.result import Cell, Cost
from helpers import bench


@pytest.mark.parametrize(
    ("factor", "gate", "passes"),
    [(0.5, 1.9, True), (0.5, 2.1, False), (1.0, 1.0, True), (1.004, 1.0, True), (1.1, 1.0, False)],
)
def test_the_gate_looks_at_the_median(fake, any_size, factor, gate, passes):
    """No difference counts as 1, so that a gate of 1 means: not slower."""
    fake(factor=factor)
    result = bench(any_size, any_size, sizes=[(64,)], memory=False, min_speedup=gate)
    assert (result.error is None) == passes
    if not passes:
        with pytest.raises(CheckFailed, match=rf"below min_speedup={gate:g} ") as got:
            result.check()
        assert got.value.exit_code == 1


def test_a_size_that_did_not_run_misses_the_gate(fake, any_size):
    fake("sys.exit(3)", factor=0.5)
    with pytest.raises(CellFailed, match="could not measure 128x128"):
        bench(any_size, any_size, sizes=[(64,), (128,)], memory=False, min_speedup=1.5).check()


# The report and the command


def result_of(factor: float = 0.5) -> Bench:
    found = compare([Rounds((1.0,), (1.0,), (factor,))] * 6)
    cell = Cell((224, 192), 8, Cost(1.0, 8, 4_000_000_000, None), Cost(factor, 8, None, 3 << 20), found)
    return Bench("a.onnx", "b.onnx", "cuda", True, 2, 1.0, (cell,), warnings=("a node fell to the CPU",))


def test_the_table():
    header, first, second, *rest = str(result_of()).splitlines()
    assert header.split() == "size batch model ms images/s MACs GMAC/s peak MiB speedup A/A verdict".split()
    assert first.split() == "224x192 8 A 1000 8 4 G 4 -".split()
    assert second.split() == "B 500 16 - - 3 2.00 (2.00 to 2.00) 1.00 to 1.00 faster".split()
    assert rest[0] == "warning: a node fell to the CPU"
    assert "on cuda, TF32 on" in rest[-1]


def test_the_report_part():
    part = result_of().to_dict()
    assert (part["provider"], part["verdict"], part["tf32"]) == ("cuda", FASTER, True)
    assert part["speedup"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert part["cells"][0]["size"] == [224, 192]
    assert replace(result_of(), cells=()).to_dict()["speedup"] is None


@pytest.fixture
def app():
    made = typer.Typer()
    bench_command.register(made, cli._run)
    return made


def test_the_command(app, fake, any_size, tmp_path):
    fake(factor=0.5)
    words = [str(any_size), str(any_size), "--size", "64,32x48", "--batch", "1,2", "--seconds", "1"]
    done = CliRunner().invoke(app, [*words, "--report", str(tmp_path / "r.json"), "--plot", str(tmp_path / "p.png")])
    # memory is measured too, and the fake worker tells none
    assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "r.json").read_text())
    assert (data["command"], data["outcome"], data["provider"]) == ("bench", "compared", "cpu")
    assert data["bench"]["speedup"]["median"] == pytest.approx(2.0)
    assert [cell["batch"] for cell in data["bench"]["cells"]] == [1, 2, 1, 2]
    jsonschema.validate(data, json.loads(SCHEMA_FILE.read_text()))
    assert (tmp_path / "p.png").exists()


def test_the_command_fails_with_its_report(app, fake, any_size):
    fake(factor=1.0)
    words = [str(any_size), str(any_size), "--size", "64", "--min-speedup", "1.5", "--report", "-", "--quiet"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, CheckFailed)
    data = json.loads(done.stdout)
    assert (data["outcome"], data["exit_code"]) == ("failed", 1)
    assert data["bench"]["verdict"] == NO_DIFFERENCE
    jsonschema.validate(data, json.loads(SCHEMA_FILE.read_text()))


@pytest.mark.parametrize(
    "words",
    [
        ["--size", "8,x"],
        ["--size", ""],
        ["--batch", "0"],
        ["--batch", "1,,2"],
        ["--seconds", "nan"],
        ["--min-speedup", "0"],
    ],
)
def test_options_that_are_no_numbers(app, any_size, words):
    done = CliRunner().invoke(app, [str(any_size), str(any_size), *words])
    assert done.exit_code == 2


def test_a_plot_of_another_kind_is_refused_before_anything_is_timed(app, any_size):
    done = CliRunner().invoke(app, [str(any_size), str(any_size), "--plot", "x.pdf"])
    assert isinstance(done.exception, UsageError)


def test_a_plot_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r'pip install "convrewrite\[plot\]"'):
        plot.check("x.png")


@pytest.mark.parametrize(
    ("target", "text"), [("no/p.png", "No such file"), ("model.png", "would overwrite"), ("r.png", "would overwrite")]
)
def test_a_plot_that_has_no_place_is_refused_before_anything_is_timed(app, fake, any_size, tmp_path, target, text):
    model = tmp_path / "model.png"
    model.write_bytes(any_size.read_bytes())
    words = [str(model), str(any_size), "--size", "64", "--report", str(tmp_path / "r.png")]
    done = CliRunner().invoke(app, [*words, "--plot", str(tmp_path / target)])
    assert isinstance(done.exception, UsageError)
    assert text in str(done.exception)
    assert "speedup" not in done.output
    assert model.read_bytes() == any_size.read_bytes()


def test_a_plot_that_fails_keeps_what_was_measured(app, fake, any_size, tmp_path, monkeypatch):
    fake(factor=1.0)

    def full(*arguments):
        raise UsageError("cannot write p.png: No space left on device")

    monkeypatch.setattr(plot, "draw", full)
    words = [str(any_size), str(any_size), "--size", "64", "--plot", str(tmp_path / "p.png"), "--report", "-"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UsageError)
    data = json.loads(done.stdout)
    assert data["exit_code"] == 2
    assert data["bench"]["verdict"] == NO_DIFFERENCE
