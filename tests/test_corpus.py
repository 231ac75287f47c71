"""The corpus through `fcn`: the known networks have one known outcome each, any other file must not break a thing.

The corpus is what tests/exported.py builds, or the real models of `--corpus=DIR`.

Weights that ConstantOfShape makes are replaced by random ones: with constant weights no output ever varies, and every
comparison would be vacuous.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

import exported
import oracles
from convrewrite.engine.rewrite import Site
from convrewrite.errors import UsageError
from helpers import Array, run

KNOWN = {name: network.claim for name, network in exported.NETWORKS.items()} | {
    "Avafly__model": "native-size",
    "FYH620__lenet": "windows",
    "Lamakaio__net": "native-size",
    "Linzaer__version-slim-320_simplified": "fcn/position-in-output",
    "NeuralNetworkVerification__KJ_TinyTaxiNet": "windows",
    "NeuralNetworkVerification__cifar_deep_kw": "native-size",
    "NeuralNetworkVerification__cnn_max_mninst2": "windows",
    "dlshriver__mnist_conv_maxpool": "windows",
    "emmtrix__micro_kws_m_static_fp32": "fcn/flat-input",
    "microsoft__mnist": "native-size",
    "onnx__light_bvlc_alexnet": "native-size",
    "onnx__light_shufflenet": "native-size",
    "tracel-ai__mnist": "windows",
    "webonnx__opt-mnist": "native-size",
}
"""What comes of each known model: what is claimed of it, or why it is refused."""

WITHOUT_TRUNK = frozenset(name for name, network in exported.NETWORKS.items() if not network.trunk) | {
    "Avafly__model",
    "onnx__light_shufflenet",
}
"""Models whose own trunk runs at the native size only, since sizes are baked in; their converted one runs at any."""

ROUNDING = 1e-4
POSITIONS = (3, 2)


def reseeded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with random weights instead of those that ConstantOfShape makes, scaled so that signals survive."""
    rng = np.random.default_rng(0)
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = [node for node in graph.node if node.op_type == "ConstantOfShape" and node.input[0] in constants]
    roles = {name: (node.op_type, place) for node in graph.node for place, name in enumerate(node.input)}
    for node in made:
        shape = tuple(int(extent) for extent in constants[node.input[0]])
        tensor = numpy_helper.from_array(_weights(rng, shape, *roles.get(node.output[0], ("", 0))), node.output[0])
        graph.initializer.append(tensor)
        if model.ir_version < 4:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        graph.node.remove(node)
    return model


def _weights(rng: np.random.Generator, shape: tuple[int, ...], op: str, place: int) -> Array:
    if op == "BatchNormalization":
        low, high = {1: (0.4, 0.8), 4: (0.8, 1.2)}.get(place, (-0.1, 0.1))
        return rng.uniform(low, high, shape).astype(np.float32)
    scale = np.sqrt(1 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def load(path: Path) -> onnx.ModelProto:
    """A model of the corpus, with random weights where it has constant ones."""
    model = onnx.load(path)
    if any(node.op_type == "ConstantOfShape" for node in model.graph.node):
        reseeded(model)
    return model


def check(made: oracles.Lift) -> bool:
    """The same numbers at the native size, and on a larger image: on every crop, or as trunk and head.

    Returns:
        Whether the larger image could be compared: not where the original's own trunk runs at the native size only.
    """
    rng = np.random.default_rng(0)
    window = made.window
    feeds = oracles.random_feeds(made.original, rng)
    oracles.check_native(made, feeds, ROUNDING)
    varied = run(made.before, {**feeds, window.input: 2 * feeds[window.input]})
    unvaried = run(made.before, feeds)
    assert any(not np.array_equal(varied[name], unvaried[name]) for name in window.outputs), "no output ever varies"
    positions = POSITIONS[: len(window.size)]
    shape = oracles.image_shape(window, feeds[window.input].shape, window.image_size(positions))
    larger = oracles.resized(made, feeds, rng.standard_normal(shape).astype(feeds[window.input].dtype))
    if window.equivalence == "windows":
        oracles.check_windows(made, larger, positions, ROUNDING, rng.standard_normal)
        return True
    try:
        oracles.check_trunk_and_head(made, larger, positions, ROUNDING)
    except oracles.NoTrunk:
        return False
    return True


def test_corpus_model(corpus_model: Path) -> None:
    """Known models have their known outcome; others convert and match, are declined, or are refused."""
    model = load(corpus_model)
    expected = KNOWN.get(corpus_model.stem)
    try:
        made = oracles.lift(model)
    except UsageError:
        assert expected is None
        return
    if isinstance(made, Site):
        assert expected is None or made.reason == expected, made
        return
    assert expected in (None, made.window.equivalence), made.window
    compared = check(made)
    assert expected is None or compared == (corpus_model.stem not in WITHOUT_TRUNK)
