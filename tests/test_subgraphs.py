"""A network inside an If, Loop or Scan: what the passes and the counts say of it, where they do not look inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import valid_nets
from onnx import TensorProto, helper

from convrewrite import costs, model_io
from convrewrite.passes.fcn import Fcn
from convrewrite.rewrite import Site, run_pass
from valid_nets import CLASSES, info


def graph_of(model: onnx.ModelProto):
    return model_io.load(model.SerializeToString()).graph


def fcn_sites(model: onnx.ModelProto) -> tuple[Site, ...]:
    return run_pass(Fcn(), graph_of(model)).sites


def chosen(condition: str = "flag", *, batch: int | str = 1, constant: bool | None = None) -> onnx.ModelProto:
    """One If holds the classifier in both branches; they share the weights, which the outer graph holds."""
    then, other = valid_nets.body(result="o1"), valid_nets.body(result="o2")
    node = valid_nets._choice(condition, "y", then, other)
    node.name = "whole"
    values = valid_nets.weights() | ({} if constant is None else {condition: np.array(constant)})
    flag = [info("flag", kind=TensorProto.BOOL)] if constant is None else []
    return valid_nets.made(
        [node],
        valid_nets.tensors(values),
        inputs=[info("x", batch, 3, 14, 12), *flag],
        outputs=[info("y", batch, CLASSES)],
    )


def looped() -> onnx.ModelProto:
    """A Loop of one step holds the classifier, and reads the image from outside."""
    step = helper.make_graph(
        [*valid_nets.body(result="scores"), helper.make_node("Identity", ["go"], ["going"])],
        "step",
        [info("i", kind=TensorProto.INT64), info("go", kind=TensorProto.BOOL), info("last", 1, CLASSES)],
        [info("going", kind=TensorProto.BOOL), info("scores", 1, CLASSES)],
    )
    node = helper.make_node("Loop", ["one", "", "start"], ["y"], "whole", body=step)
    more = {"one": np.array(1, np.int64), "start": np.zeros((1, CLASSES), np.float32)}
    return valid_nets.made([node], valid_nets.tensors(valid_nets.weights() | more))


def scanned() -> onnx.ModelProto:
    """A Scan over a sequence of one entry holds the classifier, and reads the image from outside."""
    step = helper.make_graph(
        [*valid_nets.body(result="scores"), helper.make_node("Identity", ["entry"], ["kept"])],
        "step",
        [info("entry", 1)],
        [info("scores", 1, CLASSES), info("kept", 1)],
    )
    step.output.pop()
    node = helper.make_node("Scan", ["entries"], ["all"], "whole", body=step, num_scan_inputs=1)
    squeeze = helper.make_node("Squeeze", ["all", "zero"], ["y"])
    more = {"entries": np.zeros((1, 1), np.float32), "zero": np.array([0], np.int64)}
    return valid_nets.made([node, squeeze], valid_nets.tensors(valid_nets.weights() | more))


@pytest.mark.parametrize(("build", "op"), [(chosen, "If"), (looped, "Loop"), (scanned, "Scan")])
def test_fcn_names_the_node_that_holds_the_whole_network(build, op):
    (site,) = fcn_sites(build())
    assert (site.outcome, site.reason) == ("refused", "fcn/no-rule"), site
    assert f"{op} 'whole' reads the image inside a subgraph" in site.detail
