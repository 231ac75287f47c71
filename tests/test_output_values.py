"""Sequences, maps and optional values as outputs: equal ones are equal, and each kind of difference is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import valid_nets
import valid_parts
from onnx import helper, numpy_helper

from convrewrite.verification.precision import roundings
from convrewrite.verification.values import flattened
from helpers import verify


def test_numbers_come_in_the_order_of_the_structure() -> None:
    numbers, structure = flattened([{"b": 2.0, "a": 1.0}, None, np.array([[3.0, 4.0]])])
    assert numbers.tolist() == [1, 2, 3, 4]
    same, same_structure = flattened([{"a": 1.0, "b": 2.0}, None, np.array([[3.0, 4.0]])])
    assert np.array_equal(numbers, same)
    assert np.array_equal(structure, same_structure)


@pytest.mark.parametrize(
    "other",
    [
        [{"a": 1.0, "c": 2.0}, np.zeros(3)],
        [{"a": 1.0}, np.zeros(4)],
        [np.zeros(3), {"a": 1.0, "b": 2.0}],
        [{"a": 1.0, "b": 2.0}, np.zeros((3, 1))],
        [{"a": 1.0, "b": 2.0}, np.zeros(3, np.float32)],
        [{"a": 1.0, "b": 2.0}],
        [{"a": 1.0, "b": 2.0}, np.array(["x", "y"])],
        None,
    ],
)
def test_another_structure_is_another_value(other: object) -> None:
    structure = flattened([{"a": 1.0, "b": 2.0}, np.zeros(3)])[1]
    assert not np.array_equal(structure, flattened(other)[1])


def other_classes(model: onnx.ModelProto) -> None:
    """Two class names change places."""
    attribute = model.graph.node[-1].attribute[0]
    attribute.strings[:] = [b"b", b"a", *attribute.strings[2:]]


def other_weights(model: onnx.ModelProto) -> None:
    """The head's bias moves a little."""
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "c")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32([0.01, 0, 0, 0, 0]), "c"))


def one_more(model: onnx.ModelProto) -> None:
    """The list has one tensor more."""
    model.graph.node[-1].input.append("y")


CASES: list[tuple[str, Callable[[onnx.ModelProto], None]]] = [
    ("zipmap", other_classes),
    ("zipmap", other_weights),
    ("sequence_output", other_weights),
    ("sequence_output", one_more),
    ("optional_output", other_weights),
]


@pytest.mark.parametrize("name", ["zipmap", "sequence_output", "optional_output"])
def test_a_model_equals_itself(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(valid_nets.ALL[name]().SerializeToString())
    result = verify(path, path)
    assert result.passed
    assert any("(structure)" in case.output for case in result.cases)


@pytest.mark.parametrize(("name", "change"), CASES)
def test_a_difference_is_found(name: str, change: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    model = valid_nets.ALL[name]()
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    a.write_bytes(model.SerializeToString())
    change(model)
    b.write_bytes(model.SerializeToString())
    assert not verify(a, b).passed


def test_the_coarsest_type_on_the_way_is_found() -> None:
    """By hand: half precision between the casts, none beside them, and none for a weight that is only stored so."""
    unit = 2.0**-10
    half = roundings(valid_nets.half_inside())
    assert {half[name] for name in ("image", "a", "r", "m", "flat", "scores", "y")} == {unit}
    assert "x" not in half
    stored = roundings(valid_nets.narrow_weights())
    assert stored == {}
    model = valid_parts.plain()
    model.graph.node.extend(
        [helper.make_node("Cast", ["y"], ["h"], to=16), helper.make_node("Cast", ["h"], ["z"], to=1)]
    )
    assert roundings(model) == {"h": 2.0**-7, "z": 2.0**-7}


def test_half_precision_inside_is_no_licence_for_an_error(tmp_path: Path) -> None:
    model = valid_nets.half_inside()
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    a.write_bytes(model.SerializeToString())
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "c")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float16([0.1, 0, 0, 0, 0]), "c"))
    b.write_bytes(model.SerializeToString())
    assert not verify(a, b).passed
