"""A model for maps of any size, and a worker that tells times of its own."""

from __future__ import annotations

import sys

import pytest
from timed_nets import conv_net

from convrewrite.timing import process as worker_process


@pytest.fixture
def any_size(tmp_path):
    return conv_net(tmp_path / "any.onnx", side="s", channels=4)


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
