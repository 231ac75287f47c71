"""Timing: verdicts on simulated and real times, the worker process and every way in which it can end."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
import typer
from cli_models import run
from onnx import TensorProto, helper
from typer.testing import CliRunner

from convrewrite.cli import app as cli
from convrewrite.cli import bench as bench_command
from convrewrite.errors import CheckFailed, Interrupted, UsageError
from convrewrite.models import build, lenet5_path
from convrewrite.pipeline.report import SCHEMA_FILE
from convrewrite.timing import FASTER, NO_DIFFERENCE, SLOWER, Bench, CellFailed, Rounds, compare, plot
from convrewrite.timing import process as worker_process
from convrewrite.timing.protocol import Part, Subject, Task
from convrewrite.timing.result import Cell, Cost
from convrewrite.timing.statistics import Estimate, estimate, exchange_test, tells_apart
from convrewrite.timing.subjects import Candidate, extents, shapes_at, sliding
from convrewrite.timing.worker import node_seconds
from helpers import bench

LENET = lenet5_path()


# Statistics


def series(
    rng: np.random.Generator,
    *,
    factor: float = 1.0,
    sets: int = 8,
    rounds: int = 12,
    session: float = 0.02,
    noise: float = 0.05,
    memory: float = 0.7,
) -> list[Rounds]:
    """Times as a busy machine gives them: heavy-tailed noise that lasts, sessions that differ for good, drift.

    Args:
        factor: time of second over time of first. session: deviation of sessions of one model.
        noise: of a round. memory: share of a round's noise that the next one keeps.
    """
    found = []
    for _ in range(sets):
        shocks = noise * rng.standard_t(3, (rounds, 3))
        for i in range(1, rounds):
            shocks[i] += memory * shocks[i - 1]
        drift = np.cumsum(0.02 * rng.standard_normal(rounds))[:, None]
        logs = shocks + drift + session * rng.standard_normal(3) + np.log([1.0, 1.0, factor])
        times = 0.01 * np.exp(logs)
        found.append(Rounds(*(tuple(times[:, i]) for i in range(3))))
    return found


def verdicts(count: int, seed: int, **options: Any) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    found = [compare(series(rng, **options)).verdict for _ in range(count)]
    return {verdict: found.count(verdict) for verdict in (FASTER, SLOWER, NO_DIFFERENCE)}


@pytest.mark.parametrize(("runs", "most"), [(250, 7), pytest.param(1000, 18, marks=pytest.mark.campaign)])
@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (1, {}),
        (2, {"noise": 0.01, "memory": 0.3}),
        (3, {"session": 0.0, "noise": 0.1, "memory": 0.9}),
        (4, {"sets": 6, "rounds": 3}),
    ],
    ids=["busy", "quiet", "bursts", "short"],
)
def test_false_alarms_are_rare(seed, options, runs, most):
    """1 % at most by design, so 1000 runs give 18 or fewer in 99 of 100 cases, and 250 runs 7 or fewer."""
    found = verdicts(runs, seed, **options)
    assert found[FASTER] + found[SLOWER] <= most, found


def test_a_difference_of_a_tenth_is_found():
    quiet = {"session": 0.01, "noise": 0.02}
    assert verdicts(100, 5, factor=1.1, **quiet)[SLOWER] >= 95
    assert verdicts(100, 6, factor=1 / 1.1, **quiet)[FASTER] >= 95


def test_a_doubled_time_is_found_on_a_busy_machine():
    assert verdicts(50, 7, factor=2.0, noise=0.1)[SLOWER] == 50


def test_the_interval_holds_the_truth_95_times_in_100():
    rng = np.random.default_rng(8)
    held = 0
    for _ in range(400):
        speedup = compare(series(rng, factor=1.25)).speedup
        held += speedup.low <= 1 / 1.25 <= speedup.high
    assert held >= 0.95 * 400 - 2 * math.sqrt(400 * 0.95 * 0.05)


def test_a_difference_below_a_percent_is_none():
    exact = [Rounds((1.0, 1.0), (1.0, 1.0), (1.005, 1.005))] * 10
    assert compare(exact).p <= 0.01
    assert compare(exact).verdict == NO_DIFFERENCE
    assert compare([replace(one, second=(1.02, 1.02)) for one in exact]).verdict == SLOWER


def test_a_difference_inside_the_spread_of_the_control_is_none():
    sets = [Rounds((1.0,), (1.1,), (1.2,))] * 10
    assert compare(sets).control.median == pytest.approx(1 / 1.1)
    assert compare([replace(one, second=(1.12,)) for one in sets]).verdict == NO_DIFFERENCE
    assert compare(sets).verdict == SLOWER


def test_four_sets_cannot_tell():
    assert compare([Rounds((1.0,), (1.0,), (2.0,))] * 4).verdict == NO_DIFFERENCE
    assert compare([Rounds((1.0,), (1.0,), (2.0,))] * 5).verdict == SLOWER


def test_the_exchange_test_counts_choices():
    """Two sets: of the nine sums of one entry of each row, only that of the last column is as far from 0."""
    assert exchange_test(np.array([[0.1, 0.2, 0.9], [0.0, -0.1, 0.8]])) == pytest.approx(1 / 9)
    assert exchange_test(np.zeros((3, 3))) == 1.0
    many = np.tile([-0.5, -0.5, 1.0], (14, 1))
    assert exchange_test(many) == pytest.approx(1 / 20_001), "sampled: what was measured is one of the choices"


def test_a_comparison_in_words():
    found = compare([Rounds((2.0, 4.0), (2.0, 4.0), (1.0, 2.0))] * 6)
    assert (found.first, found.second, found.sets, found.rounds) == (3.0, 1.5, 6, 12)
    assert found.speedup.text() == "2.00 (2.00 to 2.00)"
    assert found.speedup.inverse().median == 0.5
    assert found.verdict == FASTER


@pytest.mark.parametrize("sets", [[], [Rounds((), (), ())]])
def test_nothing_measured_is_an_error(sets):
    with pytest.raises(ValueError, match="no rounds"):
        compare(sets)


def test_the_interval_of_a_median():
    assert estimate(range(1, 12)) == Estimate(6, 2, 10, 11)
    assert estimate([3.0]) == Estimate(3.0, 3.0, 3.0, 1)
    assert tells_apart(1.2, Estimate(1.0, 0.9, 1.05, 9))
    assert not tells_apart(1.1, Estimate(1.0, 0.9, 1.05, 9)), "0.9 the other way round is 1.11"


# Models


def conv_net(path: Path, convs: int = 1, side: int | str = 32, channels: int = 64, name: str = "x") -> Path:
    """3 x 3 convolutions in a row, which take all of the time."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((channels, channels, 3, 3)) / 24).astype(np.float32)
    names = [name, *(f"t{i}" for i in range(1, convs)), "y"]
    nodes = [
        helper.make_node("Conv", [names[i], "w"], [names[i + 1]], kernel_shape=[3, 3], pads=[1] * 4)
        for i in range(convs)
    ]
    batch = 1 if isinstance(side, int) else "n"
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, [batch, channels, side, side]) for end in (name, "y")]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], [onnx.numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.fixture
def any_size(tmp_path):
    return conv_net(tmp_path / "any.onnx", side="s", channels=4)


def convert(source: Path, target: Path) -> Path:
    assert run("fcn", source, target, "--no-verify", "-q").returncode == 0
    return target


# Real runs


def test_a_model_with_one_conv_doubled_is_slower(tmp_path):
    one, two = conv_net(tmp_path / "one.onnx"), conv_net(tmp_path / "two.onnx", convs=2)
    result = bench(one, two, seconds=3, provider="cpu", profile=True).check()
    cell = result.cells[0]
    assert result.verdict == SLOWER
    assert cell.comparison.speedup.median < 0.8
    assert cell.b.macs == 2 * cell.a.macs == 2 * 64 * 64 * 9 * 32 * 32
    assert [len([n for n in cost.nodes if n["op"] == "Conv"]) for cost in (cell.a, cell.b)] == [1, 2]
    assert bench(two, one, seconds=3, provider="cpu", memory=False).verdict == FASTER


def test_a_real_sweep(tmp_path, any_size):
    said: list[tuple[str, int, int]] = []
    result = bench(
        any_size,
        any_size,
        sizes=[(16,), (8, 12)],
        batches=[1, 2],
        seconds=0.2,
        sets=5,
        provider="cpu",
        threads=1,
        progress=lambda *told: said.append(told),
    ).check()
    assert [(cell.size, cell.batch) for cell in result.cells] == [
        ((8, 12), 1),
        ((8, 12), 2),
        ((16, 16), 1),
        ((16, 16), 2),
    ]
    assert result.provider == "cpu"
    assert result.nodes in (({"cpu": 1}, {"cpu": 1}), ({}, {}))
    assert all(cell.a.macs == 4 * 4 * 9 * cell.batch * math.prod(cell.size) for cell in result.cells)
    if sys.platform == "linux":
        assert all(cell.a.memory and cell.b.memory for cell in result.cells)
    assert said[-1] == ("timing at 16x16, batch 2", 20, 20)
    text = str(result)
    assert [line.split()[:2] for line in text.splitlines() if line.startswith(("8x12", "16x16"))] == [
        ["8x12", "1"],
        ["8x12", "2"],
        ["16x16", "1"],
        ["16x16", "2"],
    ]
    json.dumps(result.to_dict(), allow_nan=False)
    for name in ("p.png", "p.svg"):
        plot.draw(result, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_a_pass_against_all_windows(tmp_path):
    fcn = convert(LENET, tmp_path / "fcn.onnx")
    result = bench(LENET, fcn, windows=True, sizes=[(64,)], seconds=0.5, provider="cpu").check()
    cell = result.cells[0]
    assert (cell.size, cell.windows, cell.batch) == ((64, 64), 81, 1)
    assert result.verdict == FASTER
    assert cell.a.macs == 81 * 416_604
    assert cell.limit == pytest.approx(cell.a.macs / cell.b.macs)
    assert cell.comparison.speedup.median == pytest.approx(cell.a.seconds / cell.b.seconds, rel=0.5)
    assert f"limit by FLOPs {cell.limit:.1f}x" in str(result)


def test_a_worker_writes_to_its_pipe_only(tmp_path):
    task = Task("memory", Subject.plain(str(LENET), {"image": (1, 1, 32, 32)}))
    told = list(worker_process.events(task))
    assert [event["event"] for event in told] == ["memory"]
    profiled = list(worker_process.events(replace(task, kind="profile", folder=str(tmp_path))))
    assert {node["op"] for node in profiled[-1]["nodes"]} >= {"Conv", "Gemm"}
    assert list(tmp_path.iterdir()) == [], "the profile is removed"


def test_tasks_survive_the_pipe():
    part = Part({"x": (1, 2), "y": ()}, 3)
    task = Task("time", Subject("a", ((part,), (part, part))), Subject("b", ((part,),)), seconds=0.5, tf32=True)
    assert Task.from_json(task.to_json()) == task
    assert Task.from_json(replace(task, second=None).to_json()).second is None


def test_seconds_per_node():
    def event(name: str, dur: int, op: str = "Conv") -> dict[str, Any]:
        return {"cat": "Node", "name": name, "dur": dur, "args": {"op_name": op, "provider": "P"}}

    events = [
        {"cat": "Session", "name": "model_run", "dur": 9},
        *(event("c_kernel_time", dur) for dur in (900, 10, 30, 20)),
        *(event("r_kernel_time", dur, "Relu") for dur in (1, 40)),
        event("c_fence_before", 5),
    ]
    assert node_seconds(events) == [
        {"name": "r", "op": "Relu", "provider": "P", "seconds": 40e-6},
        {"name": "c", "op": "Conv", "provider": "P", "seconds": 20e-6},
    ]


# How a worker can end

FAKE = """
import json, os, signal, sys, time
task = json.loads(sys.stdin.readline())
shape = task["first"]["ways"][0][0]["shapes"]["x"]
def say(event, **facts): print(json.dumps({"event": event, **facts}), flush=True)
say("ready", provider="cpu", tf32=False, nodes=[{}, {}], warnings=["one node fell"], ways={"first": 0, "second": 0})
large = shape[-1] > 100
for i in range(6):
    if large and i == AFTER:
        ACTION
    say("set", finished=i + 1, sets=6, first=[1.0, 1.1], again=[1.0, 1.1], second=[FACTOR, FACTOR * 1.1])
"""


@pytest.fixture
def fake(monkeypatch):
    """A worker that tells times of its own, and does something else at sizes above 100."""

    def use(action: str = "pass", after: int = 0, factor: float = 1.0) -> None:
        text = FAKE.replace("ACTION", action).replace("AFTER", str(after)).replace("FACTOR", str(factor))
        monkeypatch.setattr(worker_process, "COMMAND", [sys.executable, "-c", text])

    return use


SWEEP: dict[str, Any] = {"sizes": [(64,), (128,), (256,)], "memory": False}
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
ALLOCATE = "say('error', exit_code=2, message='Failed to allocate memory for 9 bytes', remedy=None, ran=True); break"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("action", "reason"),
    [(KILL, "out of memory, most likely: its process was killed"), (ALLOCATE, "Failed to allocate memory for 9 bytes")],
)
def test_out_of_memory_keeps_the_sizes_that_ran(fake, any_size, action, reason):
    fake(action)
    result = bench(any_size, any_size, **SWEEP)
    assert [cell.label for cell in result.cells] == ["64x64, batch 1"]
    assert [(m.label, m.reason) for m in result.missed] == [
        ("128x128, batch 1", reason),
        ("256x256, batch 1", "not tried, since a smaller size ran out of memory"),
    ]
    with pytest.raises(
        CellFailed, match=r"could not measure 128x128, batch 1 \(and 1 more\): .*measured: 64x64"
    ) as got:
        result.check()
    assert got.value.exit_code == 2
    assert "not measured: 256x256" in str(result)
    assert result.to_dict()["missed"][0]["label"] == "128x128, batch 1"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGABRT)", "its process was ended by SIGABRT"),
        ("print('boom', file=sys.stderr); sys.exit(3)", "its process ended with exit code 3 (boom)"),
        ("1 / 0", "its process ended with exit code 1 (ZeroDivisionError: division by zero)"),
    ],
)
def test_a_dying_worker_costs_one_size(fake, any_size, action, reason):
    fake(action, after=2)
    result = bench(any_size, any_size, sizes=[(64,), (128,)], memory=False)
    assert [missed.reason for missed in result.missed] == [reason]
    assert [cell.complete for cell in result.cells] == [True, False], "two sets of the second were told"
    assert "128x128, batch 1: stopped after 2 sets, too few for a verdict" in str(result)
    assert result.cells[1].comparison.verdict == NO_DIFFERENCE


def test_a_line_that_was_cut_off_is_no_event(fake, any_size):
    fake("print('{\"event\": \"se', end='', flush=True); sys.exit(0)", after=5)
    assert [cell.comparison.sets for cell in bench(any_size, any_size, sizes=[(128,)], memory=False).cells] == [5]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_keeps_what_was_measured_and_ends_the_worker(fake, any_size, tmp_path):
    note = tmp_path / "pid"
    fake(f"open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)", after=5)

    def interrupt() -> None:
        while not note.exists() or not note.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    start = time.monotonic()
    result = bench(any_size, any_size, **SWEEP)
    assert time.monotonic() - start < 30
    assert [(cell.label, cell.complete) for cell in result.cells] == [
        ("64x64, batch 1", True),
        ("128x128, batch 1", False),
    ]
    assert isinstance(result.error, Interrupted)
    assert str(result.error) == "interrupted; 1 of 3 sizes were measured"
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


# The gate


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


# Shapes


def test_sizes_and_batches_fill_what_is_open(tmp_path, any_size):
    one = Candidate.read(any_size)
    fixed = Candidate.read(conv_net(tmp_path / "fixed.onnx", side=8, channels=4))
    assert shapes_at(one, one, (7,), 3) == {"x": (3, 4, 7, 7)}
    assert shapes_at(one, one, (7, 9), None) == {"x": (1, 4, 7, 9)}
    assert shapes_at(one, fixed, None, None) == {"x": (1, 4, 8, 8)}, "the open one runs at the size of the other"
    assert shapes_at(fixed, fixed, (8,), None) == {"x": (1, 4, 8, 8)}


@pytest.mark.parametrize(
    ("sizes", "batches", "message"),
    [
        ([], [], "give size="),
        ([(8,)], [], "sizes=8 does not fit: input 'x' of .*fixed.onnx is fixed at 1x4x16x16"),
        ([(16,)], [2], "batch(es)?=2 does not fit"),
        ([(16, 16, 16)], [], r"size has 3 numbers|sizes=\(16, 16, 16\) does not fit"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path, any_size, sizes, batches, message):
    fixed = conv_net(tmp_path / "fixed.onnx", side=16, channels=4)
    other = any_size if not sizes else fixed
    with pytest.raises(UsageError, match=message):
        bench(other, other, sizes=sizes, batches=batches)


def test_models_whose_inputs_differ(tmp_path, any_size):
    renamed = conv_net(tmp_path / "renamed.onnx", side="s", channels=4, name="z")
    with pytest.raises(UsageError, match=r"different inputs: .*any.onnx takes x; .*renamed.onnx takes z"):
        bench(any_size, renamed, sizes=[(8,)])
    small, large = (conv_net(tmp_path / f"{n}.onnx", side=n, channels=4) for n in (8, 16))
    with pytest.raises(UsageError, match=r"input 'x' is 1x4x8x8 in .*, and 1x4x16x16 in .*windows compares"):
        bench(small, large)
    model = onnx.load(any_size)
    for end in (model.graph.input[0], model.graph.output[0]):
        end.type.tensor_type.elem_type = TensorProto.UINT8
    onnx.save(model, tmp_path / "bytes.onnx")
    with pytest.raises(UsageError, match=r"input 'x' is float32 \?x4x\?x\? in .*, and uint8"):
        bench(any_size, tmp_path / "bytes.onnx", sizes=[(8,)])


def test_an_image_of_which_nothing_is_left(tmp_path):
    onnx.save(build("resnet18", width=0.0625, size=64), tmp_path / "m.onnx")
    fcn = convert(tmp_path / "m.onnx", tmp_path / "fcn.onnx")
    with pytest.raises(UsageError, match=r"does not run at 1x3x5x5: .*give a larger sizes"):
        bench(fcn, fcn, sizes=[(5,)])


def test_bad_input(tmp_path, any_size):
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    for wrong in (tmp_path / "junk.onnx", tmp_path / "none.onnx", "-"):
        with pytest.raises(UsageError):
            bench(any_size, wrong, sizes=[(8,)])
    for seconds in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="seconds is"):
            bench(any_size, any_size, sizes=[(8,)], seconds=seconds)


def test_a_provider_that_is_not_obtained(any_size):
    import onnxruntime

    if (
        "CUDAExecutionProvider"
        in onnxruntime.InferenceSession(
            str(any_size), providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
        ).get_providers()
    ):
        pytest.skip("CUDA works here")
    with pytest.raises(UsageError, match="provider 'cuda' cannot be used here"):
        bench(any_size, any_size, sizes=[(8,)], provider="cuda")


def test_extents_of_an_image():
    assert extents((8, 3, 224, 192)) == ((224, 192), 8)
    assert extents((8, 224, 192, 3)) == ((224, 192), 8)
    assert extents((8, 224, 192, 64), "NHWC") == ((224, 192), 8)
    assert extents((224, 192), "HW") == ((224, 192), 1)
    assert extents((5, 10)) == ((10,), 5)


def test_batches_of_the_windows(tmp_path):
    fcn = convert(LENET, tmp_path / "fcn.onnx")
    original, converted = Candidate.read(LENET), Candidate.read(fcn)
    work = sliding(original, converted, None, ())
    assert (work.size, work.windows, work.batches) == ((64, 64), 81, (1,)), "9 x 9 windows; the batch of LeNet is fixed"
    model = onnx.load(LENET)
    for end in (model.graph.input[0], model.graph.output[0]):
        end.type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(model, tmp_path / "open.onnx")
    work = sliding(Candidate.read(tmp_path / "open.onnx"), converted, (48, 40), ())
    assert work.windows == 15
    assert work.batches == (1, 8)
    counts = [[(part.shapes["image"][0], part.count) for part in way] for way in work.original.ways]
    assert counts == [[(1, 15)], [(8, 1), (7, 1)]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [(20,)]}, r"sizes=\(20, 20\) is smaller than the window, 32x32"),
        ({"sizes": [(64, 64, 64)]}, r"sizes=\(64, 64, 64\) has 3 numbers"),
        ({"batches": [4]}, "has the fixed batch 1"),
    ],
)
def test_windows_that_do_not_fit(tmp_path, options, message):
    fcn = convert(LENET, tmp_path / "fcn.onnx")
    with pytest.raises(UsageError, match=message):
        bench(LENET, fcn, windows=True, **options)


def test_windows_want_the_fcn_model_second(tmp_path):
    fcn = convert(LENET, tmp_path / "fcn.onnx")
    with pytest.raises(UsageError, match="swap them"):
        bench(fcn, LENET, windows=True)
    with pytest.raises(UsageError, match=r"make it with 'convrewrite\.fcn'"):
        bench(LENET, LENET, windows=True)


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
