"""An If that shapes decide is the branch they choose; one that anything else decides stays, and is refused by name."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import valid_nets
import valid_parts
from onnx import helper, numpy_helper

from convrewrite import model_io
from convrewrite.engine.branches import settled
from convrewrite.engine.rewrite import Context, Site, run_pass
from convrewrite.passes.fcn import Fcn
from convrewrite.passes.open_batch import OpenBatch

NATIVE = {"x": (1, 3, 14, 12)}


def run(model: onnx.ModelProto | bytes, image: np.ndarray) -> np.ndarray:
    content = model if isinstance(model, bytes) else model.SerializeToString()
    found: np.ndarray = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": image})[0]
    return found


def taken(model: onnx.ModelProto, *variants: dict[str, tuple[int, ...]]) -> tuple[bytes, tuple[str, ...]]:
    """The model with its decided branches, as bytes, and what was decided."""
    loaded = model_io.load(model.SerializeToString())
    before = [node.op for node in loaded.graph.nodes]
    graph, names = settled(loaded.graph, variants or (NATIVE,))
    assert [node.op for node in loaded.graph.nodes] == before, "the graph that was given is not changed"
    assert (graph is loaded.graph) == (not names)
    loaded.graph = graph
    content = model_io.to_bytes(loaded)
    onnx.checker.check_model(onnx.load_from_string(content))
    return content, names


def test_a_chain_of_branches_is_followed() -> None:
    """Whether the second is taken follows only once the first is."""
    model = valid_nets.squeeze_by_shape()
    content, names = taken(model)
    assert sorted(names) == ["pooled1", "pooled2"]
    assert "If" not in {node.op_type for node in onnx.load_from_string(content).graph.node}
    image = np.random.default_rng(0).standard_normal((1, 3, 14, 12)).astype(np.float32)
    assert np.array_equal(run(content, image), run(model, image))


def by_extent(axis: int, extent: int, *, batch: int | str = 1) -> onnx.ModelProto:
    """The classifier, whose scores are doubled by an inner If, where an axis of the image has that extent.

    Both branches have a constant and a tensor of the same names, other ones, which the graph has as well.
    """
    inner = [
        valid_parts.choice(
            "fits",
            "h",
            [helper.make_node("Mul", ["scores", "k"], ["ia"])],
            [helper.make_node("Neg", ["scores"], ["ia"])],
        ),
        helper.make_node("Add", ["h", "k"], ["o"]),
    ]
    branch = valid_parts.choice(
        "fits",
        "y",
        inner,
        [helper.make_node("Sub", ["scores", "k"], ["ia"])],
        [numpy_helper.from_array(np.float32([9]), "k")],
    )
    then = next(attribute.g for attribute in branch.attribute if attribute.name == "then_branch")
    then.initializer.append(numpy_helper.from_array(np.float32([2]), "k"))
    nodes = [
        *valid_parts.body(result="scores"),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "place"], ["extent"]),
        helper.make_node("Equal", ["extent", "wanted"], ["fits"]),
        branch,
    ]
    values = valid_parts.weights() | {"place": np.array(axis, np.int64), "wanted": np.array(extent, np.int64)}
    inputs, outputs = [valid_parts.info("x", batch, 3, 14, 12)], [valid_parts.info("y", batch, 5)]
    return valid_parts.made(nodes, valid_parts.tensors(values), inputs=inputs, outputs=outputs)


@pytest.mark.parametrize("extent", [14, 15])
def test_names_of_a_branch_do_not_clash(extent: int) -> None:
    model = by_extent(2, extent)
    content, names = taken(model)
    assert names[0] == "y"
    assert len(names) == (2 if extent == 14 else 1), "the inner one is in the branch that is taken"
    image = np.random.default_rng(0).standard_normal((1, 3, 14, 12)).astype(np.float32)
    assert np.array_equal(run(content, image), run(model, image))


@pytest.mark.parametrize("wanted", [1, 3, 11, 64])
def test_a_condition_on_an_open_batch_is_not_decided_by_the_batches_that_are_tried(wanted: int) -> None:
    model = by_extent(0, wanted, batch="N")
    variants = [{"x": (batch, 3, 14, 12)} for batch in (1, 2)]
    assert taken(model, *variants)[1] == ()
    assert taken(model, variants[1])[1] == ()
    site = run_pass(Fcn(), model_io.load(model.SerializeToString()).graph).sites[0]
    assert (site.outcome, site.reason) == ("refused", "fcn/no-rule")
    assert "If 'y'" in site.detail


def test_a_condition_on_rows_is_decided_beside_an_open_batch() -> None:
    model = by_extent(2, 14, batch="N")
    variants = [{"x": (batch, 3, 14, 12)} for batch in (1, 2)]
    content, names = taken(model, *variants)
    assert names[0] == "y"
    image = np.random.default_rng(0).standard_normal((11, 3, 14, 12)).astype(np.float32)
    assert np.array_equal(run(content, image), run(model, image))


def test_a_condition_on_values_is_refused_by_name() -> None:
    model = valid_nets.branches_with_weights()
    assert taken(model)[1] == ()
    site = run_pass(Fcn(), model_io.load(model.SerializeToString()).graph).sites[0]
    assert (site.outcome, site.reason) == ("refused", "fcn/no-rule")
    assert "If 'y'" in site.detail


def test_fcn_says_which_branches_it_took() -> None:
    result = run_pass(Fcn(), model_io.load(valid_nets.squeeze_by_shape().SerializeToString()).graph)
    assert {site.anchor for site in result.sites if site.op == "If"} == {"pooled1", "pooled2"}
    assert all(site.equivalence == "exact" for site in result.sites if site.op == "If")


def test_two_outputs_of_one_branch() -> None:
    """Both are connected, also where the branch hands an outer tensor through."""
    nodes = [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Identity", ["outer"], ["i"])]
    graphs = [
        helper.make_graph(nodes, "b", [], [onnx.ValueInfoProto(name=name) for name in names])
        for names in (("n", "i"), ("i", "n"))
    ]
    choice = helper.make_node("If", ["fits"], ["y", "z"], then_branch=graphs[0], else_branch=graphs[1])
    before = [
        helper.make_node("Abs", ["x"], ["outer"]),
        helper.make_node("Size", ["x"], ["size"]),
        helper.make_node("Equal", ["size", "wanted"], ["fits"]),
    ]
    shape = (1, 3, 14, 12)
    model = valid_parts.made(
        [*before, choice],
        valid_parts.tensors({"wanted": np.array(504, np.int64)}),
        outputs=[valid_parts.info("y", *shape), valid_parts.info("z", *shape)],
    )
    content, names = taken(model)
    assert names == ("y",)
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert np.array_equal(run(content, image), -image)


def test_nothing_is_inferred_without_a_branch() -> None:
    """Shapes of which the graph has no input would raise."""
    graph = model_io.load(valid_parts.plain().SerializeToString()).graph
    assert settled(graph, ()) == (graph, ())


# For any number of images ---------------------------------------------------------------------------------------------


def opened(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]] | None = None) -> tuple[bytes, tuple[Site, ...]]:
    """The model for any number of images, as bytes, and what was done."""
    loaded = model_io.load(model.SerializeToString())
    before = [node.op for node in loaded.graph.nodes]
    result = run_pass(OpenBatch(), loaded.graph, context=Context.of(loaded.graph, shapes=shapes))
    assert [node.op for node in loaded.graph.nodes] == before, "the graph that was given is not changed"
    loaded.graph = result.graph
    return model_io.to_bytes(loaded), result.sites


def constant(*, wanted: bool) -> onnx.ModelProto:
    """An If on an initializer: the classifier, with a Reshape for one image, or else its negative."""
    nodes = valid_parts.body(result="o")
    nodes[3] = helper.make_node("Reshape", ["m", "told"], ["flat"])
    negative = [*(onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes)]
    negative[-1].output[0] = "o1"
    negative.append(helper.make_node("Neg", ["o1"], ["o2"]))
    values = valid_parts.weights() | {"fits": np.array(wanted), "told": np.array([1, valid_parts.HIDDEN], np.int64)}
    return valid_parts.made([valid_parts.choice("fits", "y", nodes, negative)], valid_parts.tensors(values))


@pytest.mark.parametrize(
    "model",
    [constant(wanted=True), constant(wanted=False), valid_nets.squeeze_by_shape(), by_extent(2, 14), by_extent(3, 9)],
    ids=["then", "else", "squeeze", "fits", "fits not"],
)
def test_any_number_of_images_take_the_decided_branch(model: onnx.ModelProto) -> None:
    content, sites = opened(model)
    assert {site.outcome for site in sites} == {"rewritten"}, sites
    assert sites[0].anchor == "x"
    assert any(site.op == "If" for site in sites[1:])
    images = np.random.default_rng(0).standard_normal((3, 3, 14, 12)).astype(np.float32)
    want = np.concatenate([run(model, image[None]) for image in images])
    np.testing.assert_allclose(run(content, images), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "shapes", "words"),
    [
        (by_extent(0, 1), None, "computes with the number of images"),
        (valid_nets.branches_with_weights(), None, "ReduceMax"),
        (by_extent(2, 14), {"x": (1, 3, 14, 12)}, "If 'y' reads the images inside a subgraph"),
    ],
    ids=["by batch", "by value", "by an open size"],
)
def test_a_branch_that_may_be_another_for_other_images_is_refused(model, shapes, words) -> None:
    """Of the last one, the file leaves the height open: 14 is one of many."""
    if shapes:
        model.graph.input[0].CopyFrom(valid_parts.info("x", 1, 3, "h", "w"))
    _, (site,) = opened(model, shapes)
    assert site.outcome == "refused"
    assert words in site.detail
