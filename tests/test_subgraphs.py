"""A network inside an If, Loop or Scan: what the passes and the counts say of it, where they do not look inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import valid_nets
import valid_parts
from onnx import TensorProto, helper
from valid_parts import CLASSES, info

from convrewrite import inspection, model_io, pipeline
from convrewrite.engine import costs
from convrewrite.engine.rewrite import Site, run_pass
from convrewrite.options import InspectOptions, TradeOptions
from convrewrite.passes.fc_to_conv import FcToConv
from convrewrite.passes.fcn import Fcn
from convrewrite.passes.groups import Groups
from convrewrite.passes.open_batch import OpenBatch
from convrewrite.passes.separable import Separable


def graph_of(model: onnx.ModelProto):
    return model_io.load(model.SerializeToString()).graph


def fcn_sites(model: onnx.ModelProto) -> tuple[Site, ...]:
    return run_pass(Fcn(), graph_of(model)).sites


def chosen(condition: str = "flag", *, batch: int | str = 1, constant: bool | None = None) -> onnx.ModelProto:
    """One If holds the classifier in both branches; they share the weights, which the outer graph holds."""
    then, other = valid_parts.body(result="o1"), valid_parts.body(result="o2")
    node = valid_parts.choice(condition, "y", then, other)
    node.name = "whole"
    values = valid_parts.weights() | ({} if constant is None else {condition: np.array(constant)})
    flag = [info("flag", kind=TensorProto.BOOL)] if constant is None else []
    return valid_parts.made(
        [node],
        valid_parts.tensors(values),
        inputs=[info("x", batch, 3, 14, 12), *flag],
        outputs=[info("y", batch, CLASSES)],
    )


def looped() -> onnx.ModelProto:
    """A Loop of one step holds the classifier, and reads the image from outside."""
    step = helper.make_graph(
        [*valid_parts.body(result="scores"), helper.make_node("Identity", ["go"], ["going"])],
        "step",
        [info("i", kind=TensorProto.INT64), info("go", kind=TensorProto.BOOL), info("last", 1, CLASSES)],
        [info("going", kind=TensorProto.BOOL), info("scores", 1, CLASSES)],
    )
    node = helper.make_node("Loop", ["one", "", "start"], ["y"], "whole", body=step)
    more = {"one": np.array(1, np.int64), "start": np.zeros((1, CLASSES), np.float32)}
    return valid_parts.made([node], valid_parts.tensors(valid_parts.weights() | more))


def scanned() -> onnx.ModelProto:
    """A Scan over a sequence of one entry holds the classifier, and reads the image from outside."""
    step = helper.make_graph(
        [*valid_parts.body(result="scores"), helper.make_node("Identity", ["entry"], ["kept"])],
        "step",
        [info("entry", 1)],
        [info("scores", 1, CLASSES), info("kept", 1)],
    )
    step.output.pop()
    node = helper.make_node("Scan", ["entries"], ["all"], "whole", body=step, num_scan_inputs=1)
    squeeze = helper.make_node("Squeeze", ["all", "zero"], ["y"])
    more = {"entries": np.zeros((1, 1), np.float32), "zero": np.array([0], np.int64)}
    return valid_parts.made([node, squeeze], valid_parts.tensors(valid_parts.weights() | more))


@pytest.mark.parametrize(("build", "op"), [(chosen, "If"), (looped, "Loop"), (scanned, "Scan")])
def test_fcn_names_the_node_that_holds_the_whole_network(build, op):
    (site,) = fcn_sites(build())
    assert (site.outcome, site.reason) == ("refused", "fcn/no-rule"), site
    assert f"{op} 'whole' reads the image inside a subgraph" in site.detail


@pytest.mark.parametrize("shape", [("N", 3, "h", "w"), (2, "c", 9)])
def test_no_size_helps_where_the_whole_network_is_chosen_by_value(shape):
    """The shape of the image is not known either, but what stands in the way at every size is the If."""
    model = chosen()
    model.graph.input[0].CopyFrom(info("x", *shape))
    (site,) = fcn_sites(model)
    assert site.reason == "fcn/no-rule"
    assert "If 'whole' reads the image inside a subgraph" in site.detail


def test_a_constant_condition_is_followed_into_the_network():
    for constant in (True, False):
        sites = fcn_sites(chosen(constant=constant))
        assert {site.outcome for site in sites} == {"rewritten"}, sites


def test_a_whole_network_without_a_head_is_convolutional_already():
    then, other = valid_parts.body(result="o1")[:2], valid_parts.body(result="o2")[:2]
    node = valid_parts.choice("flag", "y", then, other)
    model = valid_parts.made(
        [node],
        valid_parts.tensors({name: value for name, value in valid_parts.weights().items() if name in "wb"}),
        inputs=[info("x", 1, 3, 14, 12), info("flag", kind=TensorProto.BOOL)],
        outputs=[info("y", 1, valid_parts.OUTPUTS, 12, 10)],
    )
    (site,) = fcn_sites(model)
    assert (site.outcome, site.reason) == ("declined", "fcn/already-convolutional")


# What is counted ------------------------------------------------------------------------------------------------------


def entries(model: onnx.ModelProto) -> int:
    """Of all floating-point initializers, at any depth, by hand."""
    total, todo = 0, [model.graph]
    while todo:
        graph = todo.pop()
        total += sum(int(np.prod(t.dims)) for t in graph.initializer if t.data_type == TensorProto.FLOAT)
        todo += [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return total


@pytest.mark.parametrize(
    "build", [chosen, looped, valid_nets.branches_with_weights, valid_nets.loop_with_weights, valid_parts.plain]
)
def test_parameters_of_subgraphs_count_once(build):
    model = build()
    graph = graph_of(model)
    assert costs.parameters(graph) == costs.parameters(graph.copy()) == entries(model)


def test_constants_of_one_name_in_two_branches_are_two():
    model = valid_nets.branches_with_weights()
    (choice,) = [node for node in model.graph.node if node.op_type == "If"]
    then = choice.attribute[0].g if choice.attribute[0].name == "then_branch" else choice.attribute[1].g
    then.initializer.append(onnx.numpy_helper.from_array(valid_parts.weights()["f"] * 2, "mine"))
    then.node[0].input[1] = "mine"
    assert costs.parameters(graph_of(model)) == entries(model) - valid_parts.weights()["f"].size


def test_macs_of_subgraphs_are_not_taken_for_none():
    counted = costs.count(graph_of(valid_nets.branches_with_weights()))
    choice = counted.layers[-1]
    assert (choice.op, choice.macs, counted.uncounted) == ("If", None, 2)
    assert choice.parameters == 2 * valid_parts.weights()["f"].size + CLASSES
    assert "2 subgraphs are not counted" in str(counted)
    adds = costs.count(graph_of(valid_nets.loop_with_weights()))
    assert (adds.uncounted, [layer.macs for layer in adds.layers if layer.op == "Loop"]) == (0, [0])


def inspected(model: onnx.ModelProto) -> list[str]:
    return str(
        inspection.inspect(model_io.load(model.SerializeToString()), "m.onnx", InspectOptions(passes=False))
    ).splitlines()


def test_inspect_says_what_it_does_not_count():
    model = valid_nets.branches_with_weights()
    lines = inspected(model)
    assert f" {entries(model):,} parameters" in lines[0]
    assert lines[1].startswith("2 subgraphs are not counted")
    assert "subgraph" not in inspected(valid_parts.plain())[1]


def test_macs_without_a_size_are_unknown_and_not_zero():
    model = valid_parts.plain()
    model.graph.input[0].CopyFrom(info("x", 1, 3, "h", "w"))
    assert inspected(model)[0].endswith(" parameters, MACs unknown; give size")
    assert inspected(valid_parts.plain())[0].endswith(" MACs")


def traded(pass_, model: onnx.ModelProto, tmp_path: Path, *, accept: str = "smaller") -> str:
    onnx.save(model, tmp_path / "in.onnx")
    how = TradeOptions(samples=1, accept=accept)
    done = pipeline.trade(str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), pass_, how)
    assert done.error is None, done.error
    return done.advice


def test_separable_says_of_what_it_saved(tmp_path):
    told = traded(Separable(), valid_nets.branches_with_weights(), tmp_path)
    assert "fewer multiply-accumulates (2 subgraphs are not counted)" in told
    assert "subgraph" not in traded(Separable(), valid_parts.plain(), tmp_path)


@pytest.mark.parametrize("pass_", [Separable(), Groups(), FcToConv()])
def test_only_a_model_with_subgraphs_has_an_outside_of_them(pass_, tmp_path):
    assert "outside of subgraphs" in traded(pass_, chosen(), tmp_path)
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    told = traded(pass_, valid_parts.made(nodes, [], outputs=[info("y", 1, 3, 14, 12)]), tmp_path)
    assert "nothing to do: no " in told
    assert "subgraph" not in told


@pytest.mark.parametrize("pass_", [FcToConv(), OpenBatch()])
def test_what_is_not_for_speed_is_not_blamed_for_it(pass_, tmp_path):
    assert "MACs" not in traded(pass_, valid_parts.plain(), tmp_path, accept="always")
