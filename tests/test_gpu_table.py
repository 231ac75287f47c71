"""The tables of the GPU benchmark, and how it names the device."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from convrewrite.timing import Cost
from convrewrite.verification.verdicts import Case
from gpu_results import cell, verified

sys.path.append(str(Path(__file__).resolve().parent.parent))  # benchmarks/ is not installed

from benchmarks.gpu.device import describe, slug
from benchmarks.gpu.table import markdown
from benchmarks.gpu.work import summary, timed

ON_THE_CPU = "2 of the 20 nodes of a.onnx run on the CPU, not on cuda: Shape"


@pytest.fixture
def report():
    moved = Case("the original itself", "prob", error=2e-3, status="stated")
    converted = {
        "pass": "fcn",
        "model": "vgg16",
        "title": "VGG-16",
        "verify": summary(verified(warnings=(ON_THE_CPU,))),
        "sites": None,
        "cells": [{"job": "9x9 windows", "tf32": True, **timed(cell())}],
        "missed": [{"job": "17x17 windows", "reason": "no time left"}],
        "error": "",
    }
    one_batch = cell(size=(224, 224), windows=0, limit=None, b=Cost(0.25, 8, 40, None))
    traded = {
        **converted,
        "pass": "separable",
        "title": "VGG-16, half rank",
        "verify": summary(verified(cases=(*verified().cases, moved))),
        "sites": [12, 13],
        "cells": [{"job": "native size, batch 8", "tf32": True, **timed(one_batch)}],
        "missed": [],
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
        "models": [converted, traded],
    }


def cells_of(line: str) -> list[str]:
    return [part.strip() for part in line.strip("|").split("|")]


def test_the_table_holds_everything_that_a_figure_needs(report):
    lines = markdown(json.loads(json.dumps(report, allow_nan=False))).splitlines()
    what = "81 windows in batches of 8"
    head = ["model", "image", "what", "original, ms", "fcn, ms", "speedup", "limit by FLOPs", "A/A", "verdict"]
    row = ["VGG-16", "480x480", what, "500", "30", "15.40 (15.10 to 15.80)", "15.60", "0.99 to 1.01", "faster"]
    assert cells_of(lines[0]) == head
    assert cells_of(lines[2]) == row
    assert f"VGG-16: verified (largest error 4.0e-07, tolerance 1.0e-05). {ON_THE_CPU}." in lines
    assert "VGG-16, 17x17 windows: not measured, no time left." in lines
    assert lines[-1] == (
        "Measured on Some GPU (driver 1.2); provider cuda, TF32 on; convrewrite 1; ONNX Runtime 9.9; "
        "nvidia-cudnn-cu13 8.8; Python 3.11; 2030-01-31."
    )


def test_a_pass_that_trades_has_a_table_of_its_own(report):
    lines = markdown(json.loads(json.dumps(report, allow_nan=False))).splitlines()
    at = next(i for i, line in enumerate(lines) if "separable, ms" in line)
    assert "MACs before/after" in cells_of(lines[at])
    assert cells_of(lines[at + 2]) == [
        *("VGG-16, half rank", "224x224", "batch 8", "500", "250"),
        *("15.40 (15.10 to 15.80)", "2.50", "0.99 to 1.01", "faster"),
    ]
    assert lines[at + 4] == (
        "VGG-16, half rank: verified (largest error 4.0e-07, tolerance 1.0e-05); outputs moved by 2.0e-03 of the "
        "largest; 12 of 13 convolutions rewritten."
    )


def test_a_rehearsal_and_an_unfinished_run_say_so(report):
    text = markdown(report | {"rehearsal": True, "complete": False, "models": []})
    assert "Nothing was measured." in text
    assert "Rehearsed, which is no result, on" in text
    assert text.endswith("The run was not finished.")


def test_failures_are_in_the_text(report):
    broken = report["models"][0] | {"verify": None, "cells": [], "error": "it was timed on cpu, not on cuda"}
    text = markdown(report | {"models": [broken]})
    assert "VGG-16: it was timed on cpu, not on cuda." in text
    assert "fcn: nothing was measured." in text
    bad = Case("native size", "prob", status="failed", note="it does not run")
    failed = report["models"][0] | {"verify": summary(verified(cases=(bad,)))}
    assert "VGG-16: failed." in markdown(report | {"models": [failed]})
    unknown = report["models"][0] | {"verify": None}
    assert "VGG-16: not verified." in markdown(report | {"models": [unknown]})


def test_the_device_is_described():
    assert describe("cuda", lambda: "NVIDIA H200 NVL, 570.1, 143771 MiB\nNVIDIA T4, 1, 2\n") == {
        "name": "NVIDIA H200 NVL",
        "driver": "570.1",
        "memory": "143771 MiB",
    }

    def absent() -> str:
        raise FileNotFoundError("nvidia-smi")

    assert describe("cuda", absent) == describe("cuda", lambda: "") == {"name": "NVIDIA GPU"}
    assert describe("cpu")["name"]
    assert slug("NVIDIA H200 NVL") == "nvidia_h200_nvl"
    assert slug("*") == "device"
