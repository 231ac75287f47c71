"""The table of operators: it knows all of ONNX, and every walk gives each of them a rule or refuses it by a reason.

Where a pass rewrites the one-operator model, ONNX Runtime is the oracle: at the native size, or for several images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from operator_nets import ALL, SHAPE, alone, apply, feeds, opset_of

from convrewrite import model_io
from convrewrite.engine import fields
from convrewrite.engine.graph import infer_shapes
from convrewrite.engine.operators import OPERATORS, axis_of, chosen, named, ruled
from convrewrite.engine.rewrite import PassResult, run_pass
from convrewrite.passes import open_batch
from convrewrite.passes.dense import Dense, grids
from convrewrite.passes.dense.reasons import REASONS as DENSE
from convrewrite.passes.fc_to_conv import FcToConv
from convrewrite.passes.fcn import Fcn, walk
from convrewrite.passes.fcn.reasons import REASONS as FCN
from convrewrite.passes.groups import Groups, neighbours
from convrewrite.verification import slices
from groups_nets import blocks, equal, ops
from nets import Net, run

EVERY = pytest.mark.parametrize("op", ALL)
Names = Collection[str]

WALKS: Mapping[str, tuple[Names, Names]] = {
    "fcn": ({*walk.RULES, *walk.EXTENTS}, walk.REFUSED),
    "groups": ({*neighbours.MADE, *neighbours.READ}, neighbours.STOPPING),
    "dense": (
        {*grids.RULES, *grids.FIELDLESS},
        {*grids.LOWERING, *chosen("map-norm"), *fields.UNRULED} - set(grids.RULES),
    ),
    "open-batch": (
        {*open_batch.RULES, *open_batch.COUNTING} & OPERATORS.keys(),
        open_batch.REFUSED - {*open_batch.COUNTING},
    ),
    "receptive fields": ({*fields.RULES, *fields.FIELDLESS}, fields.UNRULED),
}
"""Of each walk: the operators with a rule, and those that it refuses by name."""


@pytest.mark.parametrize("name", WALKS)
def test_a_walk_decides_about_every_operator(name: str) -> None:
    rules, refused = map(set, WALKS[name])
    assert not OPERATORS.keys() - rules - refused, "neither a rule nor a refusal"
    assert not rules & refused
    assert not (rules | refused) - OPERATORS.keys()


def test_the_table_has_all_operators_of_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert known == OPERATORS.keys(), "say in engine/operators.py what it is"


@pytest.mark.parametrize("op", OPERATORS)
def test_axes_are_those_of_the_operator_pages(op: str) -> None:
    schemas = [s for s in onnx.defs.get_all_schemas_with_history() if s.name == op and s.domain == ""]
    for schema in schemas:
        axis = schema.attributes.get("axis")
        node = onnx.helper.make_node(op, ["x"], ["y"])
        if axis is not None and axis.default_value.name:
            version = schema.since_version
            newer = min((s.since_version for s in schemas if s.since_version > version), default=version + 1)
            assert axis_of(_Node(op), newer - 1) == axis.default_value.i, (version, node)
    with pytest.raises(KeyError):
        axis_of(_Node("Relu"), 13)


class _Node:
    """As much of a node as `axis_of` reads."""

    def __init__(self, op: str) -> None:
        self.op, self.attrs = op, dict[str, Any]()


def test_choices() -> None:
    assert named("softmax") == ("Hardmax", "LogSoftmax", "Softmax")
    assert chosen("matrix Relu") == {"Gemm", "MatMul", "Relu"}
    assert ruled({"Gemm": 1, "matrix": 2, "Relu": 3}) == {"Gemm": 1, "MatMul": 2, "Relu": 3}
    with pytest.raises(KeyError):
        chosen("matrices")


FINER = chosen("transposed-convolution resize DepthToSpace")
MIXED = chosen("dynamic-quantizer list recurrent sampling entries") - {"OneHot"}
"""Operators that have a rule which refuses these models: one scale, one list, or a constant with an entry per image."""
APART = chosen(
    """unary broadcast quantizer convolution transposed-convolution pool global-pool batch-norm map-norm channel-norm
    blocks search concat softmax layer-norm axis-norm split gather top matrix pad reduction reshape slice transpose"""
)
"""Operators of which the structure shows that no image sees another, where the batch comes first."""


# Each pass over the model of each operator ---------------------------------------------------------------------------


def loaded(model: onnx.ModelProto) -> model_io.Model:
    return model_io.load(model.SerializeToString())


def written(model: onnx.ModelProto, result: PassResult) -> onnx.ModelProto:
    source = loaded(model)
    return onnx.load_from_string(model_io.to_bytes(replace(source, graph=result.graph)))


def outcome(result: PassResult, reasons: Collection[str]) -> bool:
    """Whether anything was rewritten; what was not has a reason."""
    assert result.sites
    for site in result.sites:
        assert site.outcome == "rewritten" or (site.reason in reasons and site.detail), site
    return result.changed


def same(got: Mapping[str, Any], want: Mapping[str, Any], error: float = 1e-5) -> None:
    for name, values in want.items():
        assert got[name].shape == values.shape
        np.testing.assert_allclose(got[name], values, rtol=error, atol=error)


def ran(model: onnx.ModelProto, images: Mapping[str, Any]) -> Any:
    """What ONNX Runtime gives; the test ends where it does not have the operator."""
    try:
        return run(model, dict(images))
    except Exception as error:
        if any(sign in str(error) for sign in ("opset", "NOT_IMPLEMENTED", "model.cc")):
            pytest.skip("ONNX Runtime does not have it")
        raise


SCALARS = chosen("loss gate Size")
"""Operators that give one number, or that ONNX Runtime cannot run."""


def classified(op: str) -> onnx.ModelProto:
    net = Net(1, *SHAPE, opset=opset_of(op))
    made = apply(net, op, "x")
    return net.model(made if op in SCALARS else net.fc(net.Flatten(made), 3))


@EVERY
def test_fcn(op: str) -> None:
    model = classified(op)
    result = run_pass(Fcn(), loaded(model).graph)
    changed = outcome(result, FCN)
    assert changed == (op in walk.RULES.keys() - chosen("ReduceProd ReduceLogSum ReduceLogSumExp") - FINER)
    if changed:
        images = feeds(model)
        (got,), (want,) = (ran(m, images).values() for m in (written(model, result), model))
        same({"y": got.reshape(want.shape)}, {"y": want}, 1e-4)


@EVERY
def test_groups(op: str) -> None:
    """The second convolution has two groups, in an order of channels that the first one can have: none is gathered."""
    net = Net(1, *SHAPE, opset=opset_of(op))
    made = apply(net, op, net.Abs(net.conv("x", 4, 1, 1)))
    if op == "SwiGLU" or len(net.shape(made)) != 4 or net.shape(made)[1] != 4:
        pytest.skip("it gives no map of as many channels")
    weight = blocks(net.rng, equal(2, 4), (1, 1))[:, [0, 2, 1, 3]]
    model = net.model(net.Conv(made, net.const(weight)))
    result = run_pass(Groups(tol=0.0), loaded(model).graph)
    changed = outcome(result, Groups.reasons)
    new = written(model, result)
    assert changed == (op in neighbours.MADE)
    assert "Gather" not in ops(new) or op == "Gather"
    if changed:
        images = feeds(model)
        same(ran(new, images), ran(model, images), 1e-4)


@EVERY
def test_dense(op: str) -> None:
    """Behind a pool of stride two, every second cell of the denser map is one of the old map's."""
    net = Net(1, 4, 12, 12, opset=opset_of(op, 19))
    made = apply(net, op, net.MaxPool("x", kernel_shape=[2, 2], strides=[2, 2]))
    model = net.model(net.node("Identity", made, outputs=["y"]))
    graph = loaded(model).graph
    result = run_pass(Dense((1, 1)), graph)
    changed = outcome(result, DENSE)
    whole = chosen("matrix global-pool reduction Flatten Reshape")
    assert changed == (op in grids.RULES.keys() - whole)
    if changed:
        images = feeds(model)
        got, want = (ran(m, images)["y"] for m in (written(model, result), model))
        steps = [2 if new > old else 1 for new, old in zip(got.shape, want.shape, strict=True)]
        cells = got[tuple(slice(None, None, step) for step in steps)]
        same({"y": cells[tuple(slice(n) for n in want.shape)]}, {"y": want})


@EVERY
def test_open_batch(op: str) -> None:
    model = alone(op)
    result = run_pass(open_batch.OpenBatch(), loaded(model).graph)
    changed = outcome(result, open_batch.REASONS)
    assert changed == (op in open_batch.RULES.keys() - MIXED)
    if changed:
        images = feeds(model, batch=3)
        each = [ran(model, {"x": image[None]})["y"] for image in images["x"]]
        same(ran(written(model, result), images), {"y": np.concatenate(each)})


@EVERY
def test_slices(op: str) -> None:
    model = alone(op, batch=4)
    source = loaded(model)
    made = slices.opened(source, infer_shapes(source.graph, {"x": [4, *SHAPE]}), 4)
    assert (made is not None) == (op in APART)
    if made is not None:
        images = feeds(model, batch=4)["x"]
        new = onnx.load_from_string(model_io.to_bytes(made))
        parts = [ran(new, {"x": images[at : at + 2]})["y"] for at in (0, 2)]
        same({"y": np.concatenate(parts)}, ran(model, {"x": images}))


@pytest.mark.parametrize("op", [op for op in ALL if op not in ("RandomNormal", "RandomUniform")])
def test_fields(op: str) -> None:
    model = alone(op)
    graph = loaded(model).graph
    reach = fields.receptive_fields(graph, infer_shapes(graph, {"x": [1, *SHAPE]}), "x").get(
        "y", fields.ReceptiveField()
    )
    ruled_out = op in fields.UNRULED | FINER | chosen("map-norm")
    assert bool(reach.why) == ruled_out or op in fields.FIELDLESS


@pytest.mark.parametrize("op", sorted(chosen("unary quantizer")))
def test_fc_to_conv(op: str) -> None:
    """Between two layers the Reshapes cancel: what looks at one number at a time stays between the convolutions."""
    net = Net(2, 6, opset=opset_of(op))
    hidden = net.Abs(net.fc("x", 5))
    model = net.model(net.fc(apply(net, op, hidden), 3))
    result = run_pass(FcToConv(), loaded(model).graph)
    assert result.changed
    new = written(model, result)
    assert "Reshape" not in ops(new)[1:-1] or op in ("Acosh", "BitwiseNot", "Not", "DequantizeLinear", "QuantizeLinear")
    images = feeds(model, batch=2)
    same(ran(new, images), ran(model, images), 1e-4)
