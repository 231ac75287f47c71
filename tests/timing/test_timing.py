"""Real times: verdicts, a sweep, all windows, and what the worker process does with a task."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from typing import Any

import pytest
from timed_nets import LENET, conv_net, convert

from convrewrite.timing import FASTER, SLOWER, plot
from convrewrite.timing import process as worker_process
from convrewrite.timing.protocol import Part, Subject, Task
from convrewrite.timing.worker import node_seconds
from helpers import bench


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
