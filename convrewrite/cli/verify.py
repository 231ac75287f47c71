"""``convrewrite verify A B``: are two models the same function? What the command takes, and the figures it prints.

convrewrite verify a.onnx b.onnx --size 224,512 --save-failing case.npz --where
convrewrite verify a.onnx b.onnx --data case.npz                         replays what failed
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from convrewrite.cli.options import (
    CHECK,
    TELL,
    DataOption,
    DebugOption,
    HtmlOption,
    Provider,
    ProviderOption,
    QuietOption,
    ReportOption,
    Run,
    SeedOption,
    VerboseOption,
    parse_size,
)
from convrewrite.cli.words import FLAGS
from convrewrite.errors import UsageError
from convrewrite.text import terminal, told

if TYPE_CHECKING:
    from convrewrite.pipeline.outcome import Outcome
    from convrewrite.verification import Progress, Verification
    from convrewrite.verification.verdicts import Case

PLAIN = ("outputs", "ahead of the final operator")
"""Checks whose name says no more than the output's."""

SHORT = 8
"""Up to so many comparisons are listed without --verbose."""


def _check(metavar: str, text: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, rich_help_panel=CHECK, help=text, show_default=False)


def register(app: typer.Typer, run: Run) -> None:
    """Add the command to the application; `run` is how the application runs any command."""

    @app.command()
    def verify(
        a: Annotated[str, typer.Argument(metavar="A", help="The original model.")],
        b: Annotated[str, typer.Argument(metavar="B", help="The rewritten model.")],
        size: Annotated[
            list[str] | None,
            _check("HxW,...", "Compare at these sizes, where inputs are open; may be given several times."),
        ] = None,
        batch: Annotated[
            int | None, typer.Option(min=1, metavar="N", rich_help_panel=CHECK, help="Fill an open batch with N.")
        ] = None,
        shape: Annotated[
            list[str] | None, _check("NAME=1x3x512x512", "Give one input its whole shape; once per input.")
        ] = None,
        provider: ProviderOption = Provider.auto,
        max_output_error: Annotated[
            list[str] | None,
            _check(
                "E|NAME=E",
                "Allow max|a-b| / max|b| up to E for every output, or for one. "
                "Left out: 1e-5, or 10 times the model's own noise.",
            ),
        ] = None,
        samples: Annotated[
            int | None,
            typer.Option(
                min=1, metavar="N", rich_help_panel=CHECK, help="Compare on N inputs: 3 random ones, or all images."
            ),
        ] = None,
        seed: SeedOption = 0,
        data: DataOption = None,
        images: Annotated[
            Path | None, _check("DIR", "Use the images of a folder, resized: (pixel / 255 - mean) / std.")
        ] = None,
        mean: Annotated[str, _check("M,M,M", "Of the images' channels, on 0..1. Left out: 0.")] = "0",
        std: Annotated[str, _check("S,S,S", "Of the images' channels, on 0..1. Left out: 1.")] = "1",
        layout: Annotated[str, _check("NCHW", "The axes of the image input, where they are not plain.")] = "",
        reference: Annotated[
            str, _check("NAME", "Take what onnxruntime, or onnx (slow), makes of A as right.")
        ] = "onnxruntime",
        where: Annotated[
            bool, typer.Option("--where", metavar="", rich_help_panel=CHECK, help="Find the first tensor that differs.")
        ] = False,
        save_failing: Annotated[
            Path | None,
            typer.Option(metavar="F.npz", rich_help_panel=TELL, help="Keep the inputs on which they differ most."),
        ] = None,
        report: ReportOption = None,
        html: HtmlOption = None,
        quiet: QuietOption = False,
        verbose: VerboseOption = False,
        debug: DebugOption = False,
    ) -> None:
        """Run two models in ONNX Runtime and say whether they are the same function; B may be what `fcn` wrote."""
        from convrewrite.model_io.guards import Files, listed

        sizes = [parse_size(part) for text in size or [] for part in text.split(",")]
        limits = dict(_limit(text) for text in max_output_error or [])
        drawn = samples or (None if data or images else 3)
        inputs = _words(size=size, data=data, images=images, layout=layout, samples=drawn)
        inputs += _words(mean=mean if mean != "0" else None, std=std if std != "1" else None)
        how = _words(seed=seed, batch=batch, shape=shape, max_output_error=max_output_error)
        how += _words(provider=provider.value if provider is not Provider.auto else None)
        how += _words(reference=reference if reference != "onnxruntime" else None)
        how += ["--where"] if where else []
        repeat = shlex.join(["convrewrite", "verify", a, b, *inputs, *how])
        replay = shlex.join(["convrewrite", "verify", a, b, *_words(data=save_failing), *how])

        def work(tell: Progress | None) -> Outcome:
            from convrewrite import pipeline
            from convrewrite.pipeline.outcome import Options
            from convrewrite.running import runtime
            from convrewrite.running.sampling import Images, read_data

            if data is not None and images is not None:
                raise UsageError("--data and --images exclude each other")
            given: Any = None if data is None else read_data(data)
            if images is not None:
                given = Images(images, _numbers("--mean", mean), _numbers("--std", std), layout, samples or 0)
            elif layout or (mean, std) != ("0", "1"):
                raise UsageError("--mean, --std and --layout belong to --images")
            options = Options(provider.value, samples=samples or 3, seed=seed, data_path=str(data), progress=tell)
            more: dict[str, Any] = {
                "sizes": sizes,
                "batch": batch,
                "shapes": dict(_shape(text) for text in shape or []),
            }
            more |= {"repeat": repeat}
            with runtime.log_shown(verbose):
                outcome = pipeline.compare(
                    a, b, None, options, data=given, tolerance=limits or None, reference=reference, where=where, **more
                )
            if outcome.verification is not None:
                _tell(outcome.verification, save_failing, replay, quiet=quiet, verbose=verbose)
            return outcome

        files = Files({"A": a, "B": b}, {"--data": data, **listed("--images", images)})
        files = files.writing(save_failing=save_failing)
        run("verify", provider, work, report, files, quiet=quiet, verbose=verbose, html=html)


def _tell(found: Verification, save_failing: Path | None, replay: str, *, quiet: bool, verbose: bool) -> None:
    """Keep the failing case, and print the figures that stand in no other place."""
    console = Console(stderr=True, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200
    measured = [case for case in found.cases if case.metrics is not None]
    if not quiet and measured and (verbose or len(measured) <= SHORT):
        console.print(_table(measured))
    lines = [str(found.divergence)] if found.divergence is not None else []
    lines += [f"warning: {line}" for line in found.warnings]
    if verbose or found.provider != "cpu":
        lines += [f"nodes of the {model}: {_counts(nodes)}" for model, nodes in found.nodes.items() if nodes]
    if save_failing is not None and found.failing is not None:
        found.failing.save(save_failing)
        lines.append(f"the failing inputs are in {save_failing}; replay them with: {replay}")
    elif save_failing is not None:
        lines.append(f"nothing failed: {save_failing} was not written")
    for line in [] if quiet else told(lines, FLAGS):
        console.print(terminal(line), markup=False, highlight=False)


def _table(cases: Sequence[Case]) -> Table:
    """Further figures of every output; the error in units of the model's own noise first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("output", no_wrap=True)
    for column in ("max error", "x own noise", "rms ratio", "1 - cosine", "max absolute", "same class"):
        table.add_column(column, justify="right", no_wrap=True)
    for case in cases:
        metrics = case.metrics
        assert metrics is not None
        times = case.error / case.noise if case.error is not None and case.noise else None
        apart = None if metrics.cosine is None else max(0.0, 1.0 - metrics.cosine)
        top1 = "-" if metrics.top1_agreement is None else f"{metrics.top1_agreement:.0%}"
        figures = [_figure(value) for value in (metrics.rms_ratio, apart, metrics.max_absolute)]
        first = [_figure(case.error), "-" if times is None else f"{times:.1f}"]
        check, _, at = case.name.partition(" at ")
        name = f"{case.output}{at and f' at {at}'}" if check in PLAIN else f"{case.output}, {case.name}"
        table.add_row(escape(terminal(name)), *first, *figures, top1)
    return table


def _counts(nodes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} on {provider}" for provider, count in nodes.items())


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}" if math.isfinite(value) else "NaN/Inf"


def _words(**options: object) -> list[str]:
    """Options as the user would write them again; what was left out stays out, and a list is one option many times."""
    words = []
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", str(one)] if one not in (None, "") else []
    return words


def _limit(text: str) -> tuple[str, float]:
    """Read `E` or `NAME=E`; the name of all outputs is ""."""
    name, _, number = text.rpartition("=")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not (math.isfinite(limit) and limit >= 0):
        raise typer.BadParameter(f"'{text}' is not a tolerance; write E or NAME=E, such as 1e-4 or prob=1e-4")
    return name, limit


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `NAME=1x3x512x512`."""
    name, _, dims = text.rpartition("=")
    parts = dims.lower().split("x")
    if not name or not all(part.isascii() and part.isdecimal() and 0 < int(part) < 10**9 for part in parts):
        raise UsageError(f"'{text}' is not a shape", remedy="write --shape NAME=1x3x512x512")
    return name, tuple(int(part) for part in parts)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """Read `0.5` or `0.485,0.456,0.406`."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f"{option} {text} is not a list of numbers", remedy="write it as in 0.5,0.5,0.5")
    return numbers
