"""The GPU benchmark's logic, on the CPU: sharing the time, saving, rendering, and what goes wrong."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from convrewrite.errors import Interrupted, UsageError
from convrewrite.timing import Bench, Cell, Comparison, Cost, Estimate, Missed
from convrewrite.verification.verdicts import Case, Verification

sys.path.append(str(Path(__file__).resolve().parent.parent))  # benchmarks/ is not installed

from benchmarks import gpu


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_model_gets_an_equal_share_of_what_is_left():
    clock = Clock()
    budget = gpu.Budget(end=500.0, clock=clock)
    budget.begin(4)  # until 200
    assert budget.allows
    with budget.job():
        clock.now += 60
    assert not budget.allows  # one more of 60 would end at 220
    budget.begin(3)  # 340 left: until 273
    assert budget.allows
    with budget.job():
        clock.now += 20
    assert budget.allows
    clock.now = 501.0
    budget.begin(1)
    assert not budget.allows


def cell(**changes) -> Cell:
    one = Estimate(1.0, 0.99, 1.01, 5)
    comparison = Comparison(
        speedup=Estimate(15.4, 15.1, 15.8, 5),
        control=one,
        p=0.004,
        verdict="faster",
        sets=5,
        rounds=50,
        first=0.5,
        second=0.03,
    )
    known = Cell((480, 480), 8, Cost(0.5, 1, 100, None), Cost(0.03, 1, 10, None), comparison, windows=81, limit=15.6)
    return replace(known, **changes)


def verified(**changes) -> Verification:
    case = Case("native size", "prob", error=4e-7, tolerance=1e-5, noise=3e-7)
    return replace(Verification((case,), provider="cuda", nodes={"original": {"cuda": 20}}), **changes)


@pytest.fixture
def report():
    entry = {
        "model": "vgg16",
        "verify": gpu.summary(verified(warnings=("2 of the 20 nodes of a.onnx run on the CPU, not on cuda: Shape",))),
        "cells": [{"job": "9x9 windows", "tf32": True, **gpu.timed(cell())}],
        "missed": [{"job": "17x17 windows", "reason": "no time left"}],
        "error": "",
    }
    versions = {"convrewrite": "1", "onnxruntime-gpu": "9.9", "nvidia-cudnn-cu13": "8.8", "python": "3.11"}
    return {
        "rehearsal": False,
        "date": "2030-01-31",
        "provider": "cuda",
        "tf32": True,
        "device": {"name": "Some GPU", "driver": "1.2", "memory": "3 MiB"},
        "versions": versions,
        "complete": True,
        "models": [entry],
    }


def test_the_table_holds_everything_that_a_figure_needs(report):
    text = gpu.markdown(json.loads(json.dumps(report, allow_nan=False)))
    assert text.splitlines()[0].startswith("| model ")
    assert "| VGG-16 | 480x480 | 81 windows in batches of 8 |" in text
    assert "15.40 (15.10 to 15.80)" in text
    assert "0.99 to 1.01" in text
    assert "VGG-16: verified (largest error 4.0e-07, tolerance 1.0e-05). 2 of the 20 nodes" in text
    assert "VGG-16, 17x17 windows: not measured, no time left." in text
    last = text.splitlines()[-1]
    assert last == (
        "Measured on Some GPU (driver 1.2); provider cuda, TF32 on; convrewrite 1; ONNX Runtime 9.9; "
        "nvidia-cudnn-cu13 8.8; Python 3.11; 2030-01-31."
    )


def test_a_rehearsal_and_an_unfinished_run_say_so(report):
    text = gpu.markdown(report | {"rehearsal": True, "complete": False, "models": []})
    assert "Nothing was measured." in text
    assert "Rehearsed, which is no result, on" in text
    assert text.endswith("The run was not finished.")


def test_failures_are_in_the_text(report):
    broken = report["models"][0] | {"verify": None, "cells": [], "error": "it was timed on cpu, not on cuda"}
    assert "VGG-16: it was timed on cpu, not on cuda." in gpu.markdown(report | {"models": [broken]})
    bad = Case("native size", "prob", status="failed", note="it does not run")
    failed = report["models"][0] | {"verify": gpu.summary(verified(cases=(bad,)))}
    assert "VGG-16: failed." in gpu.markdown(report | {"models": [failed]})


def test_the_device_is_described():
    assert gpu.describe("cuda", lambda: "NVIDIA H200 NVL, 570.1, 143771 MiB\nNVIDIA T4, 1, 2\n") == {
        "name": "NVIDIA H200 NVL",
        "driver": "570.1",
        "memory": "143771 MiB",
    }

    def absent() -> str:
        raise FileNotFoundError("nvidia-smi")

    assert gpu.describe("cuda", absent) == gpu.describe("cuda", lambda: "") == {"name": "NVIDIA GPU"}
    assert gpu.describe("cpu")["name"]
    assert gpu.slug("NVIDIA H200 NVL") == "nvidia_h200_nvl"
    assert gpu.slug("*") == "device"


def plan(folder: Path, **changes) -> gpu.Plan:
    made = gpu.Plan(
        provider="cpu",
        tf32=False,
        seconds=0.05,
        sets=1,
        width=0.0625,
        models=["mobilenet_v1", "alexnet"],
        jobs=[gpu.Job(), gpu.Job(positions=3)],
        folder=folder,
        target=folder / "device.json",
        budget=gpu.Budget(float("inf")),
        report={"complete": False, "models": []},
    )
    return replace(made, **changes)


def saved(made: gpu.Plan) -> dict:
    return json.loads(made.target.read_text())


@pytest.fixture
def faked(monkeypatch):
    """Every measurement gives one cell at once; `calls` are the arguments."""
    calls: list[dict] = []

    def bench(a, b, **options):
        calls.append(options)
        windows = 9 if options["windows"] else 0
        cells = (cell(windows=windows, size=(options["sizes"] or [(224, 224)])[0]),)
        return Bench(str(a), str(b), "cpu", False, 1, 0.1, cells)

    monkeypatch.setattr(gpu, "bench", bench)
    return calls


def test_a_run_verifies_times_and_saves(tmp_path, faked):
    made = plan(tmp_path)
    assert gpu.run(made) == 0
    result = saved(made)
    assert result["complete"]
    assert [entry["model"] for entry in result["models"]] == ["mobilenet_v1", "alexnet"]
    for entry in result["models"]:
        assert entry["verify"]["verdict"] == "verified"
        assert [found["job"] for found in entry["cells"]] == ["native size, batch 1", "3x3 windows"]
        assert entry["missed"] == []
    assert [call["windows"] for call in faked] == [False, True, False, True]
    assert faked[1]["sizes"] == [(288, 288)]
    assert [file.name for file in tmp_path.iterdir()] == ["device.json"]


def test_without_time_only_the_verification_is_done(tmp_path, faked):
    made = plan(tmp_path, models=["mobilenet_v1"], budget=gpu.Budget(0.0))
    assert gpu.run(made) == 0
    entry = saved(made)["models"][0]
    assert entry["verify"]["passed"]
    assert [missed["reason"] for missed in entry["missed"]] == ["no time left"] * 2
    assert faked == []


def test_a_failing_verification_is_exit_1_and_the_others_go_on(tmp_path, faked, monkeypatch):
    real = gpu.pipeline.compare
    bad = Verification((Case("native size", "prob", status="failed", note="wrong"),))

    def compare(a, b, size, options):
        outcome = real(a, b, size, options)
        return replace(outcome, verification=bad) if "mobilenet" in a else outcome

    monkeypatch.setattr(gpu.pipeline, "compare", compare)
    made = plan(tmp_path)
    assert gpu.run(made) == 1
    assert [entry["verify"]["verdict"] for entry in saved(made)["models"]] == ["failed", "verified"]


def test_an_error_in_one_model_leaves_the_others(tmp_path, faked, monkeypatch):
    def bench(a, b, **options):
        if "mobilenet" in str(a):
            raise UsageError("the provider died")
        return Bench(str(a), str(b), "", False, 1, 0.1, (), (Missed("3x3", "out of memory"),))

    monkeypatch.setattr(gpu, "bench", bench)
    made = plan(tmp_path)
    assert gpu.run(made) == 1
    first, second = saved(made)["models"]
    assert first["error"] == "the provider died"
    assert second["missed"][1] == {"job": "3x3 windows", "reason": "out of memory"}


def test_another_provider_than_the_one_asked_for_is_an_error(tmp_path, faked, monkeypatch):
    monkeypatch.setattr(gpu, "bench", lambda a, b, **options: Bench(str(a), str(b), "cuda", False, 1, 0.1, ()))
    made = plan(tmp_path, models=["mobilenet_v1"])
    assert gpu.run(made) == 1
    assert saved(made)["models"][0]["error"] == "it was timed on cuda, not on cpu"


def test_ctrl_c_keeps_what_was_measured(tmp_path, monkeypatch):
    def bench(a, b, **options):
        return Bench(str(a), str(b), "cpu", False, 1, 0.1, (cell(complete=False),), error=Interrupted("interrupted"))

    monkeypatch.setattr(gpu, "bench", bench)
    made = plan(tmp_path)
    assert gpu.run(made) == 130
    result = saved(made)
    assert not result["complete"]
    assert len(result["models"]) == 1
    assert len(result["models"][0]["cells"]) == 1


def test_a_provider_that_is_not_there_ends_it_at_once(tmp_path, monkeypatch, capsys):
    def refuse(path, provider):
        raise UsageError(f"provider '{provider}' cannot be used here")

    monkeypatch.setattr(gpu.runtime, "open_session", refuse)
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "provider 'cuda' cannot be used here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_from_end_to_end(tmp_path, capsys):
    """The real thing on the CPU: one small model, real measurements."""
    words = ["--provider", "cpu", "--quick", "--models", "mobilenet_v1", "--out", str(tmp_path)]
    assert gpu.main(words) == 0
    (file,) = tmp_path.iterdir()
    report = json.loads(file.read_text())
    assert report["rehearsal"]
    assert report["complete"]
    assert report["tf32"] is False
    assert report["models"][0]["verify"]["nodes"]["rewritten"].keys() <= {"cpu"}
    assert len(report["models"][0]["cells"]) == 2
    printed = capsys.readouterr().out
    assert gpu.main(["--render", str(file)]) == 0
    assert capsys.readouterr().out == printed
