"""Receptive fields worked out by hand, the grid of windows, and the metadata text."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from convrewrite.engine.windows import METADATA_KEY, Field, OutputGrid, Window, keeps_windows
from convrewrite.errors import UsageError

# kernel, stride, pad: of every sliding layer up to the last pool
LENET = [(5, 1, 0), (2, 2, 0), (5, 1, 0), (2, 2, 0)]
ALEXNET = [(11, 4, 0), (3, 2, 0), (5, 1, 2), (3, 2, 0), (3, 1, 1), (3, 1, 1), (3, 1, 1), (3, 2, 0)]


def field_of(layers: list[tuple[int, int, int]]) -> Field:
    field = Field()
    for kernel, stride, pad in layers:
        field = field.slide(kernel, stride, 1, pad)
    return field


def test_field_of_lenet() -> None:
    """1 -> 5 -> 6 -> 6 + 4 * 2 = 14 -> 16, and the first fully connected layer sees 5 cells: 16 + 4 * 4 = 32."""
    trunk = field_of(LENET)
    assert trunk == Field(stride=4, size=16, offset=0)
    assert trunk.slide(5) == Field(stride=4, size=32, offset=0)


def test_field_of_alexnet() -> None:
    """The published numbers: pool5 sees 195 pixels at stride 32; six cells of it 195 + 5 * 32 = 355."""
    trunk = field_of(ALEXNET)
    assert (trunk.stride, trunk.size) == (32, 195)
    assert trunk.offset == -(2 * 8 + 3 * 16)
    assert trunk.slide(6).size == 355


def test_field_with_dilation() -> None:
    assert Field().slide(3, 2, 2, 1) == Field(2, 5, -1)
    assert Field(2, 5, -1).slide(3, 1, 4, 2) == Field(2, 5 + 2 * 4 * 2, -5)


def test_union_of_two_branches() -> None:
    left, right = Field(2, 5, -1), Field(2, 3, 4)
    assert left.union(right) == Field(2, 8, -1)
    assert left.union(right) == right.union(left)


WINDOW = Window(
    input="image/0",
    axes="NHWC",
    size=(32, 40),
    stride=(4, 8),
    offset=(0, 0),
    receptive_field=(36, 31),
    equivalence="native-size",
    why="Conv sees zero padding at the native size ('c1')",
    outputs={
        "scores": OutputGrid((4, 8), (1, 1)),
        "map": OutputGrid((2, 4), (5, 7), ("N", "H", "W", "C")),
        "flat": OutputGrid((4, 8), (3, 2), ("N", "CHW")),
        "one": OutputGrid((4, 8), (1, 1), ("", "C")),
        "number": OutputGrid((4, 8), (1, 1), ()),
    },
)


def test_round_trip() -> None:
    assert Window.from_json(WINDOW.to_json()) == WINDOW
    assert Window.from_metadata({METADATA_KEY: WINDOW.to_json(), "author": "x"}) == WINDOW
    assert Window.from_metadata({}) is None
    audio = Window("x", "NL", (16,), (2,), (0,), (16,), "windows", outputs={"y": OutputGrid((2,), (1,))})
    assert Window.from_json(audio.to_json()) == audio
    assert audio.letters == "L"


def test_plain_outputs_are_written_short() -> None:
    outputs = json.loads(WINDOW.to_json())["outputs"]
    assert outputs["scores"] == {}
    assert outputs["map"] == {"stride": [2, 4], "size": [5, 7], "layout": ["N", "H", "W", "C"]}


def test_positions_and_image_size() -> None:
    assert WINDOW.positions((32, 40)) == (1, 1)
    assert WINDOW.positions((35, 56)) == (1, 3)
    assert WINDOW.positions((31, 400)) == (0, 46)
    assert WINDOW.image_size((1, 1)) == WINDOW.size
    assert WINDOW.image_size((3, 2)) == (40, 48)
    for count in range(1, 9):
        assert WINDOW.positions(WINDOW.image_size((count, count))) == (count, count)


@pytest.mark.parametrize(
    "missing", ["input", "axes", "size", "stride", "offset", "receptive_field", "equivalence", "outputs"]
)
def test_damage_missing_entry(missing: str) -> None:
    data = json.loads(WINDOW.to_json())
    del data[missing]
    with pytest.raises(UsageError, match="damaged") as error:
        Window.from_json(json.dumps(data))
    assert error.value.exit_code == 2
    assert error.value.remedy


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"text"', WINDOW.to_json()[:-9], WINDOW.to_json().replace("[32, 40]", '"a"')]
)
def test_damage(text: str) -> None:
    with pytest.raises(UsageError, match="damaged"):
        Window.from_json(text)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("size", 3), ("size", ["a", 1]), ("stride", None), ("outputs", []), ("outputs", {"y": 3}), ("offset", {"a": 1})],
)
def test_damaged_entry(entry: str, value: object) -> None:
    data = {**json.loads(WINDOW.to_json()), entry: value}
    with pytest.raises(UsageError, match="damaged"):
        Window.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("size", [32]),
        ("stride", [4, 0]),
        ("stride", [4, -8]),
        ("size", [0, 40]),
        ("receptive_field", [1]),
        ("equivalence", "sometimes"),
        ("axes", "NC"),
    ],
)
def test_entries_that_contradict_each_other(entry: str, value: object) -> None:
    data = {**json.loads(WINDOW.to_json()), entry: value}
    with pytest.raises(UsageError, match="damaged"):
        Window.from_json(json.dumps(data))


def test_allow_list() -> None:
    for op in ("Conv", "MaxPool", "Relu", "Add", "Concat", "BatchNormalization", "LRN", "SpaceToDepth", "Transpose"):
        assert keeps_windows(op) is None
    for op in ("ConvTranspose", "Resize", "InstanceNormalization", "GlobalAveragePool", "Attention", ""):
        assert keeps_windows(op) is not None
    assert "as a whole" in str(keeps_windows("Softmax", over_space=True))
    assert "padding" in str(keeps_windows("Conv", sees_padding=True))


def test_windows_are_values() -> None:
    assert replace(WINDOW, why="") != WINDOW
