"""What commands share: options, each declared once with its help and its parser, and how a command is run."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from typer.core import TyperGroup

from convrewrite.cli.words import FLAGS
from convrewrite.errors import ConvrewriteError, UsageError

if TYPE_CHECKING:
    from convrewrite.model_io.guards import Files
    from convrewrite.pipeline.outcome import Options, Outcome
    from convrewrite.verification import Progress


class Provider(enum.StrEnum):
    """Where ONNX Runtime runs the models."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"


class Accept(enum.StrEnum):
    """What makes a rewrite worth it."""

    smaller = "smaller"
    faster = "faster"
    always = "always"


class Form(enum.StrEnum):
    """How `separable` may factor a kernel."""

    auto = "auto"
    spatial = "spatial"
    depthwise = "depthwise"
    channel = "channel"
    tucker = "tucker"


class Expand(enum.StrEnum):
    """What a grouped convolution becomes."""

    branches = "branches"
    dense = "dense"


class Fit(enum.StrEnum):
    """What factors are to come near to."""

    responses = "responses"
    weights = "weights"


class Upsample(enum.StrEnum):
    """How `fcn` brings a class map to the size of the image."""

    bilinear = "bilinear"
    nearest = "nearest"


class Softmax(enum.StrEnum):
    """Where `fcn --upsample` has a final Softmax."""

    last = "last"
    none = "none"


class Size(tuple[int, ...]):
    """Extents per spatial axis. (A class of its own: a plain tuple would be an option with several values.)"""


class Words(TyperGroup):
    """The commands. An empty word is no path, no name and no pattern: mostly a variable of a script that is not set."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of the whole line. Raises UsageError where one is empty."""
        before = ["", *args]
        for number, (word, last) in enumerate(zip(args, before, strict=False)):
            if word == "" or (word.startswith("--") and word.endswith("=")):
                option = word[:-1] or (last if last.startswith("--") else "")
                what = f"the value of {option}" if option else f"word {number + 1} of the command"
                raise UsageError(f"{what} is empty", remedy="give a path or a value, or leave it out")
        return list(super().parse_args(ctx, args))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what it raises speaks in options."""
        try:
            return super().invoke(ctx)
        except ConvrewriteError as error:
            error.speak(FLAGS)
            raise


def parse_size(text: str) -> Size:
    """Read `L`, `HxW` or `DxHxW`: one parser for every option that takes a size."""
    parts = text.lower().split("x")
    digits = all(part.isascii() and part.isdecimal() and len(part) < 10 and int(part) > 0 for part in parts)
    if not digits or len(parts) > 3:
        raise typer.BadParameter(f"'{text}' is not a size; write HxW, such as 224x224 (L for audio, DxHxW for video)")
    return Size(int(part) for part in parts)


def finite(value: float | None) -> float | None:
    """The value, where it can be a tolerance."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise typer.BadParameter(f"{value} is not a tolerance; write a number such as 1e-5")
    return value


MAKE, CHECK, TELL = "What is made", "How it is checked", "What is told"

In = Annotated[str | None, typer.Argument(metavar="IN", help="The ONNX model; - or nothing is standard input.")]
Out = Annotated[str | None, typer.Argument(metavar="OUT", help="Where it goes; - or nothing is standard output.")]
ProviderOption = Annotated[
    Provider,
    typer.Option(
        metavar="NAME",
        rich_help_panel=CHECK,
        help="Run the models on [bold]auto[/], cpu, cuda or tensorrt.",
        show_default=False,
    ),
]
VerifyOption = Annotated[
    bool, typer.Option(metavar="", rich_help_panel=CHECK, help="Run both models and compare them before writing.")
]
ErrorOption = Annotated[
    float | None,
    typer.Option(
        "--max-output-error",
        metavar="E",
        callback=finite,
        rich_help_panel=CHECK,
        help="Allow max|a-b| / max|b| up to E for every output. Left out: 1e-5, or 10 times the model's own noise.",
    ),
]
SamplesOption = Annotated[
    int, typer.Option(min=1, metavar="N", rich_help_panel=CHECK, help="Compare on N random inputs, at several scales.")
]
SeedOption = Annotated[int, typer.Option(min=0, metavar="N", rich_help_panel=CHECK, help="Draw them from this seed.")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        metavar="F.npz", rich_help_panel=CHECK, help="Use real inputs: one array per input name, axis 0 is samples."
    ),
]
ReportOption = Annotated[
    str | None,
    typer.Option(metavar="F.json", rich_help_panel=TELL, help="Write a report as JSON, on failure too; - is stdout."),
]
HtmlOption = Annotated[
    str | None,
    typer.Option(metavar="F.html", rich_help_panel=TELL, help="Write a page for people, on failure too: one file."),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", metavar="", rich_help_panel=TELL, help="Print nothing but errors.")
]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", metavar="", rich_help_panel=TELL, help="Print every site and every comparison."),
]
DebugOption = Annotated[
    bool, typer.Option("--debug", metavar="", rich_help_panel=TELL, help="Show the traceback of an error.")
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", rich_help_panel=MAKE, help="Rewrite only nodes or tensors of these names."),
]
SkipOption = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", rich_help_panel=MAKE, help="Leave nodes or tensors of these names alone."),
]


AcceptOption = Annotated[
    Accept,
    typer.Option(
        metavar="NAME",
        rich_help_panel=MAKE,
        help="Rewrite a layer if it has [bold]smaller[/] cost (fewer multiply-accumulates), if it is measured to be "
        "faster and so is the whole model, or always.",
        show_default=False,
    ),
]
TimingsOption = Annotated[
    str | None,
    typer.Option(
        metavar="F.json", rich_help_panel=MAKE, help="Keep what --accept faster has timed in this file, and reuse it."
    ),
]
TradeSizeOption = Annotated[
    Size | None,
    typer.Option(
        parser=parse_size,
        metavar="HxW",
        rich_help_panel=MAKE,
        help="Count, time and verify at this size, where the file leaves it open.",
    ),
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--max-output-error",
        metavar="E",
        callback=finite,
        rich_help_panel=CHECK,
        help="Rewrite only as many layers as keep max|a-b| / max|b| of every output within E of the original.",
    ),
]


def paths_of(source: str | None, target: str | None) -> tuple[str, str]:
    """IN and OUT of a rewriting command; both left out is a pipe."""
    if source is not None and target is None:
        raise UsageError(
            f"nothing says where the result of '{source}' goes", remedy="give IN and OUT, or neither for a pipe"
        )
    return source or "-", target or "-"


def files_of(source: str | None, target: str | None, data: Path | None = None, timings: str | None = None) -> Files:
    """What a rewriting command reads and writes, apart from its report and its page."""
    from convrewrite.model_io.guards import Files

    return Files({"IN": source}, {"--data": data}, writes={"OUT": target or "-", "--timings": timings})


def options_of(
    provider: Provider,
    verify: bool,
    max_output_error: float | None,
    samples: int,
    seed: int,
    data: Path | None,
    only: list[str] | None,
    skip: list[str] | None,
    progress: Progress | None,
) -> Options:
    """What every rewriting command takes, read."""
    from convrewrite.pipeline.outcome import Options
    from convrewrite.running.sampling import read_data

    return Options(
        provider=provider.value,
        verify=verify,
        max_output_error=max_output_error,
        samples=samples,
        seed=seed,
        data=None if data is None else read_data(data),
        data_path=str(data),
        only=tuple(only or ()),
        skip=tuple(skip or ()),
        progress=progress,
    )


class Run(Protocol):
    """Does the work of a command, writes its report and prints its text."""

    def __call__(
        self,
        command: str,
        provider: Provider,
        work: Callable[[Progress | None], Outcome],
        report_path: str | None,
        files: Files,
        *,
        quiet: bool,
        verbose: bool,
        html: str | None = None,
        image: Path | None = None,
    ) -> None: ...
