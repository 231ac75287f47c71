"""Options: each is declared once, and the command line, the Python API and `run`'s file show what is declared."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, get_args

import pytest
import typer
import typer.testing
from pydantic import ValidationError

from convrewrite import options
from convrewrite.batch import settings
from convrewrite.cli.options import Line, TellOptions, declared, written
from convrewrite.errors import UsageError
from convrewrite.options import FcnOptions, SeparableOptions, options_of, rewriting
from convrewrite.options.keywords import keywords
from convrewrite.options.kinds import MAKE, Sizes, Value, Whole, option_class
from convrewrite.passes.separable import FORMS
from convrewrite.passes.upsample import MODES

CLASSES = [getattr(options, name) for name in options.__all__ if name.endswith("Options")]


@option_class
class DeeperOptions(FcnOptions):
    """The options of `fcn`, and one more: the only edit that a new option takes."""

    depth: Value[int] = Whole(4, "Look at N layers.", at_least=2, panel=MAKE)


def parsed(*words: str) -> tuple[typer.testing.Result, list[DeeperOptions]]:
    """What a command of these options does with such words."""
    app, found = typer.Typer(), []

    @declared(app, DeeperOptions, TellOptions)
    def deeper(source: str, *, line: Line) -> None:
        """A command."""
        found.append(line.options(DeeperOptions))

    return typer.testing.CliRunner().invoke(app, list(words), env={"COLUMNS": "100", "TERM": "dumb"}), found


def test_a_new_option_is_on_the_command_line() -> None:
    told, _ = parsed("--help")
    line = next(line for line in told.output.splitlines() if "--depth" in line)
    assert "N [x>=2]" in line
    assert "Look at N layers. [default: 4]" in line
    _, found = parsed("a.onnx", "--depth", "7", "--size", "5x6")
    assert found == [DeeperOptions(depth=7, size=(5, 6))]
    assert written(found[0]) == {"depth": ["--depth", "7"], "size": ["--size", "5x6"]}
    refused, found = parsed("a.onnx", "--depth", "1")
    assert refused.exit_code == 2
    assert not found


def test_a_new_option_is_a_keyword_in_python() -> None:
    @keywords(DeeperOptions)
    def deeper(model: str, options: DeeperOptions) -> DeeperOptions:
        """Do it.

        Args:
            model: the network.

        Raises:
            UsageError: never.
        """
        return options

    parameter = inspect.signature(deeper).parameters["depth"]
    assert (parameter.default, parameter.annotation, parameter.kind) == (4, int, parameter.KEYWORD_ONLY)
    assert "\n    depth: Look at N layers.\n" in (deeper.__doc__ or "")
    assert deeper("a.onnx", depth=7, size=5) == DeeperOptions(depth=7, size=(5,))
    with pytest.raises(UsageError, match="depth is 1; give a whole number, 2 or more"):
        deeper("a.onnx", depth=1)
    with pytest.raises(UsageError, match="there is no option 'deep'"):
        deeper("a.onnx", deep=1)  # type: ignore[call-arg]


def test_a_new_option_is_a_key_of_the_file() -> None:
    keys: Any = settings.keys("DeeperStep", DeeperOptions, but=settings.CHECKED)
    schema = keys.model_json_schema()["properties"]["depth"]
    assert (schema["type"], schema["minimum"], schema["default"]) == ("integer", 2, 4)
    assert keys(depth=7).depth == 7
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        keys(depth=1)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_options_are_frozen_keywords_with_help(kind: type) -> None:
    made = kind()
    names = [option.name for option in options_of(kind)]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(kind))
    assert all(option.help.endswith(".") for option in options_of(kind))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, names[0], None)
    with pytest.raises(TypeError):
        kind(None)
    assert written(made) == {}


def test_an_overriding_option_keeps_its_place_and_one_with_after_goes_there() -> None:
    @option_class
    class Other(SeparableOptions):
        window: Value[Any] = Sizes(None, "A window.", after="tol")

    names = [option.name for option in options_of(Other)]
    assert names[:3] == ["tol", "window", "form"]
    assert names.index("fit") == names.index("size") + 1
    assert names.index("max_output_error") == names.index("provider") + 1


def test_choices_are_those_of_the_passes() -> None:
    assert get_args(rewriting.Form) == ("auto", *FORMS)
    assert get_args(rewriting.Upsample) == MODES


def test_what_excludes_each_other_is_told() -> None:
    assert FcnOptions(dense=True).stride == (1,)
    with pytest.raises(UsageError, match="stride"):
        FcnOptions(dense=True, stride=2)
