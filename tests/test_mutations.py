"""The mutation check: faults planted in the converter, one by one, must each be caught before anything is written.

Every test first converts the same model without the fault, so that it is the fault that is caught.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from cli_models import call, padded, plain, save, snapshot

from convrewrite.engine.layers import PoolLayer
from convrewrite.errors import CheckFailed
from convrewrite.options import FcnOptions
from convrewrite.passes.fcn import lifter, linear, outputs, walk
from convrewrite.passes.fcn.views import Layouts
from convrewrite.pipeline import fcn
from convrewrite.pipeline.outcome import Outcome
from helpers import Net

Patch = Callable[[pytest.MonkeyPatch], None]


# Models -------------------------------------------------------------------------------------------------------------


def nhwc() -> onnx.ModelProto:
    """A TensorFlow head: the map is transposed ahead of the flatten. Not square, three channels."""
    net = Net(1, 2, 10, 7)
    turned = net.Transpose(net.conv("x", 3, 3, 3), perm=[0, 2, 3, 1])
    return net.model(net.fc(net.Reshape(turned, net.const([1, 8 * 5 * 3])), 4))


def softmax(opset: int) -> onnx.ModelProto:
    """A head that ends in a Softmax over the classes, on small weights that do not saturate it."""
    net = Net(1, 2, 10, 7, opset=opset)
    weight = net.const(0.01 * net.numbers_of(4, 3 * 8 * 5))
    scores = net.Gemm(net.Flatten(net.conv("x", 3, 3, 3)), weight, net.ints(4), transB=1)
    return net.model(net.Softmax(scores, axis=1))


def overlapping_pool() -> onnx.ModelProto:
    """A 7 x 7 AveragePool with pads at the end over a 6 x 6 map, as old exporters write a global pool."""
    net = Net(1, 2, 8, 8)
    trunk = net.conv("x", 3, 3, 3)
    pooled = net.AveragePool(trunk, kernel_shape=[7, 7], pads=[0, 0, 1, 1], count_include_pad=0)
    return net.model(net.fc(net.Flatten(pooled), 4))


def two_outputs() -> onnx.ModelProto:
    """Scores, and features of another layer."""
    net = Net(1, 2, 10, 7)
    flat = net.Flatten(net.conv("x", 3, 3, 3))
    return net.model(net.fc(flat, 4), net.fc(flat, 6))


# Faults -------------------------------------------------------------------------------------------------------------


def swapped_extents(patch: pytest.MonkeyPatch) -> None:
    original = linear._weight

    def weight(*args: Any, **more: Any) -> gs.Tensor:
        made = original(*args, **more)
        k, c, h, w = made.values.shape
        made.values = np.ascontiguousarray(made.values.reshape(k, c, w, h).transpose(0, 1, 3, 2))
        return made

    patch.setattr(linear, "_weight", weight)


def doubled_stride(patch: pytest.MonkeyPatch) -> None:
    original = outputs._window

    def window(*args: Any) -> Any:
        found = original(*args)
        stride = tuple(2 * step for step in found.stride)
        grids = {name: replace(grid, stride=stride) for name, grid in found.outputs.items()}
        return replace(found, stride=stride, outputs=grids)

    patch.setattr(outputs, "_window", window)


def softmax_over_rows(patch: pytest.MonkeyPatch) -> None:
    original = walk.RULES["Softmax"]

    def lift(walk: Any, node: gs.Node, states: Any) -> Any:
        results = original(walk, node, states)
        made = next(n for n in reversed(walk.emitter.nodes) if n.op == "Softmax")
        made.attrs["axis"] = 2
        return results

    patch.setitem(walk.RULES, "Softmax", lift)  # type: ignore[misc]


def softmax_over_everything(patch: pytest.MonkeyPatch) -> None:
    """Below opset 13 it runs over all axes from 1 on: the native size never shows it."""
    original = Layouts.split_off

    def split_off(emitter: Any, view: Any, axis: Any, *, last: bool = False, letters: Any = ()) -> Any:
        return original(emitter, view, axis, letters=letters)

    patch.setattr(Layouts, "split_off", split_off)


def pool_with_its_own_kernel(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PoolLayer, "over_whole_map", lambda layer, axes: (layer, 1.0))


def dropped_bias(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(linear, "_with_bias", lambda walk, node, layer, view: view)


def ignored_order(patch: pytest.MonkeyPatch) -> None:
    original = linear._weight

    def weight(*args: Any, axis: Any, **more: Any) -> gs.Tensor:
        return original(*args, axis=tuple(sorted(axis, key=lambda atom: atom.letter != "C")), **more)

    patch.setattr(linear, "_weight", weight)


def claimed_windows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lifter, "keeps_windows", lambda *args, **more: None)


def forgotten_output(patch: pytest.MonkeyPatch) -> None:
    original = walk.finish
    patch.setattr(walk, "finish", lambda *args: _without_last(original(*args)))


def _without_last(lifted: Any) -> Any:
    return replace(lifted, outputs=lifted.outputs[:1])


def forgotten_grid(patch: pytest.MonkeyPatch) -> None:
    """The second output is there, but the metadata does not describe it."""
    original = outputs._window

    def window(*args: Any) -> Any:
        found = original(*args)
        name = next(iter(found.outputs))
        return replace(found, outputs={name: found.outputs[name]})

    patch.setattr(outputs, "_window", window)


@dataclass(frozen=True)
class Fault:
    """A fault, a model that shows it, and what the message must name."""

    plant: Patch
    model: Callable[[], onnx.ModelProto]
    check: str
    exit_code: int = 1


FAULTS = {
    "H/W swapped in the FC weight": Fault(swapped_extents, plain, "native size"),
    "stride doubled in the metadata": Fault(doubled_stride, plain, "every window of"),
    "Softmax over the rows": Fault(softmax_over_rows, lambda: softmax(13), "native size"),
    "Softmax over everything": Fault(softmax_over_everything, lambda: softmax(11), "every window of"),
    "full-map pool with its own kernel": Fault(pool_with_its_own_kernel, overlapping_pool, ""),
    "bias dropped": Fault(dropped_bias, plain, "native size"),
    "NHWC order ignored": Fault(ignored_order, nhwc, "native size"),
    "windows claimed for a padded net": Fault(claimed_windows, padded, "every window of"),
    "second output forgotten": Fault(forgotten_output, two_outputs, "changed the graph's outputs", exit_code=70),
    "second output not described": Fault(forgotten_grid, two_outputs, ""),
}


def convert(folder: Path) -> Outcome:
    return fcn(str(folder / "in.onnx"), str(folder / "out.onnx"), FcnOptions())


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = FAULTS[name]
    save(fault.model(), tmp_path / "in.onnx")
    good = convert(tmp_path).check()
    assert (good.status, good.verification and good.verification.verdict) == ("rewritten", "verified")
    (tmp_path / "out.onnx").unlink()
    before = snapshot(tmp_path)
    fault.plant(monkeypatch)
    outcome = convert(tmp_path)
    message = str(outcome.error)
    assert outcome.exit_code == fault.exit_code, message
    assert fault.check in message
    assert outcome.output is None
    assert snapshot(tmp_path) == before
    if fault.exit_code == 1:
        assert isinstance(outcome.error, CheckFailed)
        assert message.startswith("not equivalent at ")


def test_the_message_says_where_and_how_to_repeat_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(plain(), tmp_path / "in put.onnx")
    report = tmp_path / "report.json"
    dropped_bias(monkeypatch)
    words = ("fcn", model, tmp_path / "out.onnx", "--seed", "11", "--samples", "4", "--size", "20x20")
    assert call(monkeypatch, *words, "--quiet", "--report", report) == 1
    message = capsys.readouterr().err.strip()
    (output,) = (info.name for info in onnx.load(model).graph.output)
    match = re.fullmatch(
        r"failed: not equivalent at [^:]+: output (\S+) is (\S+) instead of (\S+) at \[([\d,]+)\], "
        r"error (\S+) \(max\|a-b\|/max\|b\|\), tolerance (\S+) "
        r"\((?:window at pixel \(\d+, \d+\); )?\S+, (?:random inputs|inputs \d+)\); repeat it with: (.+ --seed 11 .+)",
        message,
    )
    assert match, message
    assert match[1] == output
    got, want = float(match[2]), float(match[3])
    assert got != want
    assert all(index.isdecimal() for index in match[4].split(","))
    assert float(match[5]) > float(match[6])
    command = shlex.split(match[7])
    assert command[:4] == ["convrewrite", "fcn", str(model), str(tmp_path / "out.onnx")]
    assert call(monkeypatch, *command[1:], "--quiet") == 1
    assert capsys.readouterr().err.strip() == message
    assert not (tmp_path / "out.onnx").exists()
    monkeypatch.undo()
    assert call(monkeypatch, *command[1:], "--quiet") == 0


def test_the_worst_output_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(two_outputs(), tmp_path / "in.onnx")
    second = [info.name for info in onnx.load(tmp_path / "in.onnx").graph.output][1]
    original = linear._with_bias

    def drop_second(walk: Any, node: gs.Node, layer: Any, view: Any) -> Any:
        return view if node.outputs[0].name == second else original(walk, node, layer, view)

    monkeypatch.setattr(linear, "_with_bias", drop_second)
    assert f"output {second} is " in str(convert(tmp_path).error)
