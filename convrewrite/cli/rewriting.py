"""The commands that rewrite a model: `fcn`, `separable`, `groups`, `fc-to-conv`, `conv-to-fc` and `transform`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from convrewrite.cli.completion import passes
from convrewrite.cli.options import In, Line, Out, Run, TellOptions, declared
from convrewrite.errors import UsageError
from convrewrite.options import (
    FcnOptions,
    GroupsOptions,
    LinearOptions,
    SeparableOptions,
    TransformOptions,
)
from convrewrite.options.kinds import MAKE, TELL, FilePath, Globs, Patterns, Value, option_class

if TYPE_CHECKING:
    from convrewrite.engine.windows import Window
    from convrewrite.model_io.guards import Files
    from convrewrite.pipeline.any_size import Fits
    from convrewrite.pipeline.outcome import ModelPair, Outcome
    from convrewrite.verification import Progress as Tell

_OPTION = "give it as NAME=VALUE, where VALUE is a number, true, false, a list, or text"

LINEAR = {
    "fc-to-conv": "Write every product with a constant matrix as a 1x1 convolution, for hardware that only runs these.",
    "conv-to-fc": "Write every convolution that sees its whole map at once as a matrix product.",
}


@option_class
class FcnTellOptions(TellOptions):
    """What `fcn` tells: a class map on the page, too."""

    image: Value[str | None] = FilePath(
        None, "Draw the class map of this image on the page.", metavar="F.png", panel=TELL, after="html"
    )
    labels: Value[str | None] = FilePath(
        None, "Name the classes on the page: one per line of this file.", metavar="F.txt", panel=TELL
    )


@option_class
class SetOptions:
    """Options of a pass, as words."""

    settings: Globs = Patterns(
        (),
        "An option of the pass, such as --set tol=0.1.",
        flag="--set",
        metavar="NAME=VALUE",
        panel=MAKE,
        example="tol=0.1",
    )


def register(app: typer.Typer, run: Run) -> None:
    """Add the commands to the application; `run` is how the application runs any command."""

    @declared(app, FcnOptions, FcnTellOptions)
    def fcn(source: In = None, target: Out = None, *, line: Line) -> None:
        """Make a classifier run on images of any size: its head becomes convolutions."""

        def work(tell: Tell | None) -> Outcome:
            from convrewrite import pipeline

            return pipeline.fcn(
                *paths_of(source, target), line.options(FcnOptions, progress=tell), fits=_drawable(line)
            )

        run("fcn", line, work, files_of(source, target, line))

    @declared(app, SeparableOptions, TellOptions)
    def separable(source: In = None, target: Out = None, *, line: Line) -> None:
        """Factor convolutions and linear layers by singular values, where that is worth it and within a tolerance."""

        def work(tell: Tell | None) -> Outcome:
            from convrewrite import pipeline

            return pipeline.separable(*paths_of(source, target), line.options(SeparableOptions, progress=tell))

        run("separable", line, work, files_of(source, target, line))

    @declared(app, GroupsOptions, TellOptions)
    def groups(source: In = None, target: Out = None, *, line: Line) -> None:
        """Split convolutions into groups of channels, exactly where the weights allow it."""
        if line.values["expand"] is not None and (line.values["tol"] > 0 or line.values["into"] is not None):
            raise UsageError("--expand is exact and undoes groups", remedy="leave --tol and --into out")

        def work(tell: Tell | None) -> Outcome:
            from convrewrite import pipeline

            return pipeline.groups(*paths_of(source, target), line.options(GroupsOptions, progress=tell))

        run("groups", line, work, files_of(source, target, line))

    @declared(app, SetOptions, TransformOptions, TellOptions)
    def transform(
        name: Annotated[
            str,
            typer.Argument(metavar="PASS", help="The name of the pass; `explain` lists them.", autocompletion=passes),
        ],
        source: In = None,
        target: Out = None,
        *,
        line: Line,
    ) -> None:
        """Run any pass by its name: those that other packages bring, too."""

        def work(tell: Tell | None) -> Outcome:
            from convrewrite import pipeline, plugins
            from convrewrite.cli.words import Flags
            from convrewrite.engine.rewrite import option_defaults

            pass_ = plugins.make(name, dict(_setting(text) for text in line.options(SetOptions).settings))
            options = line.options(TransformOptions, progress=tell)
            outcome = pipeline.transform(*paths_of(source, target), pass_, options)
            if outcome.error is not None:
                outcome.error.speak(Flags(frozenset(option_defaults(pass_))))
            return outcome

        run("transform", line, work, files_of(source, target, line))

    for name, text in LINEAR.items():
        _linear(app, run, name, text)


def _linear(app: typer.Typer, run: Run, name: str, text: str) -> None:
    """Add one of the two commands for linear layers: both take the same."""

    def command(source: In = None, target: Out = None, *, line: Line) -> None:
        def work(tell: Tell | None) -> Outcome:
            from convrewrite import pipeline, plugins

            options = line.options(LinearOptions, progress=tell)
            return pipeline.trade(*paths_of(source, target), plugins.make(name, {}), options)

        run(name, line, work, files_of(source, target, line))

    command.__doc__ = text
    declared(app, LinearOptions, TellOptions, name=name)(command)


def _drawable(line: Line) -> Fits | None:
    """What finds an image or names of classes that do not fit the page's map, before a model is written; or nothing."""
    image, labels = line.values["image"], line.values["labels"]
    if image is None and labels is None:
        return None
    from convrewrite.page.class_map import class_map, read_image
    from convrewrite.system.labels import read_labels

    pixels = None if image is None else read_image(image)
    if labels is not None:
        read_labels(labels)

    def fits(ends: ModelPair, window: Window | None) -> None:
        if window is not None:
            class_map(ends.after, window, ends.data, pixels, labels=labels)

    return fits


def paths_of(source: str | None, target: str | None) -> tuple[str, str]:
    """IN and OUT of a rewriting command; both left out is a pipe."""
    if source is not None and target is None:
        raise UsageError(
            f"nothing says where the result of '{source}' goes", remedy="give IN and OUT, or neither for a pipe"
        )
    return source or "-", target or "-"


def files_of(source: str | None, target: str | None, line: Line) -> Files:
    """What a rewriting command reads and writes, apart from its report and its page."""
    from convrewrite.model_io.guards import Files

    read, kept = line.values["data"], line.values.get("timings")
    return Files({"IN": source}, {"--data": read}, writes={"OUT": target or "-", "--timings": kept})


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as TOML has it, or else as text."""
    import tomllib

    name, sign, value = text.partition("=")
    if not sign or not name.strip().isidentifier():
        raise UsageError(f"--set {text} is no setting", remedy=_OPTION)
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value
