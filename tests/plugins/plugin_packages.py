"""A pass of another package, well-behaved and otherwise, installed as far as entry points see it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cli_models import run

TOY = '''\
"""scale: multiplies the weight of the first convolution.

Before      Conv W
After       Conv W (1 + by)
"""
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
import onnx_graphsurgeon as gs
from convrewrite.rewrite import Declined, Pass, Plan, Reason, Site, option

DONE = Reason("scale/done", "it is scaled already", "nothing")


@dataclass(frozen=True)
class Scale(Pass):
    name: ClassVar[str] = "scale"
    reasons: ClassVar[dict] = {DONE.code: DONE}
    by: float = option(0.0)
    claim: str = option("exact")
    unmarked: int = 0

    def candidates(self, graph):
        yield from [node for node in graph.nodes if node.op == "Conv"][:1]

    def plan(self, context, node):
        if "scaled" in node.inputs[1].name:
            return Declined(DONE, node.name)
        site = Site("scale", node.outputs[0].name, "Conv", "rewritten", detail="scaled", equivalence=self.claim)
        return [Plan((site,), node)]

    def apply(self, graph, plan):
        weight = plan.payload.inputs[1]
        plan.payload.inputs[1] = gs.Constant(
            weight.name + ".scaled", np.asarray(weight.values * np.float32(1 + self.by), np.float32)
        )
'''


def package(folder: Path, name: str, entries: dict[str, str], source: str) -> None:
    """An installed package, as far as entry points see it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    lines = [f"{entry} = {name}:{what}" for entry, what in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[convrewrite.passes]", *lines, ""]))


def call(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    done = run(*words, cwd=folder, env={"PYTHONPATH": str(folder / "site"), **more})
    return subprocess.CompletedProcess(words, done.returncode, done.stdout.decode(), done.stderr.decode())


CONFIG = """\
models = ["m.onnx"]
output = "out/{name}.onnx"
[[steps]]
pass = "fcn"
[[steps]]
pass = "scale"
claim = "approximate"
by = BY
[gates]
max_output_error = 1e-4
"""


# Passes that do not behave ------------------------------------------------------------------------------------------

ENDS = '        if "scaled" in node.inputs[1].name:'
"""The first line of the toy's plan, before which a test has something happen."""


def broken(folder: Path, line: str, at: str = ENDS) -> None:
    """Let the toy do something before one of its lines."""
    indent = at[: len(at) - len(at.lstrip())]
    source = TOY.replace(at, f"{indent}{line}\n{at}").replace(
        "import numpy", "import os, sys, time, signal\nimport numpy"
    )
    (folder / "site" / "toy.py").write_text(source)


APPLY = "        weight = plan.payload.inputs[1]"
