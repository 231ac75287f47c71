"""What commands share: options, each declared once with its help and its parser, and how a command is run."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

if TYPE_CHECKING:
    from convrewrite.outcome import Outcome
    from convrewrite.verification import Progress


class Provider(enum.StrEnum):
    """Where ONNX Runtime runs the models."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"


class Size(tuple[int, ...]):
    """Extents per spatial axis. (A class of its own: a plain tuple would be an option with several values.)"""


def parse_size(text: str) -> Size:
    """Read `L`, `HxW` or `DxHxW`: one parser for every option that takes a size."""
    parts = text.lower().split("x")
    digits = all(part.isascii() and part.isdecimal() and len(part) < 10 and int(part) > 0 for part in parts)
    if not digits or len(parts) > 3:
        raise typer.BadParameter(f"'{text}' is not a size; write HxW, such as 224x224 (L for audio, DxHxW for video)")
    return Size(int(part) for part in parts)


def _finite(value: float | None) -> float | None:
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
        callback=_finite,
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


class Run(Protocol):
    """Does the work of a command, writes its report and prints its text."""

    def __call__(
        self,
        command: str,
        provider: Provider,
        work: Callable[[Progress | None], Outcome],
        report_path: str | None,
        models: list[str],
        *,
        quiet: bool,
        verbose: bool,
    ) -> None: ...
