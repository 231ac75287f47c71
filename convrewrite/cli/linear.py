"""`convrewrite fc-to-conv` and `convrewrite conv-to-fc`: fully connected layers as convolutions, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from convrewrite.cli.options import (
    DataOption,
    DebugOption,
    ErrorOption,
    HtmlOption,
    In,
    OnlyOption,
    Out,
    Provider,
    ProviderOption,
    QuietOption,
    ReportOption,
    Run,
    SamplesOption,
    SeedOption,
    SkipOption,
    TradeSizeOption,
    VerboseOption,
    VerifyOption,
    files_of,
    options_of,
    paths_of,
)

if TYPE_CHECKING:
    from convrewrite.pipeline.outcome import Outcome
    from convrewrite.verification import Progress as Tell

COMMANDS = {
    "fc-to-conv": "Write every product with a constant matrix as a 1x1 convolution, for hardware that only runs these.",
    "conv-to-fc": "Write every convolution that sees its whole map at once as a matrix product.",
}


def register(app: typer.Typer, run: Run) -> None:
    """Add the commands to the command line."""
    for name, text in COMMANDS.items():
        app.command(name)(_command(name, text, run))


def _command(name: str, text: str, run: Run) -> Callable[..., Any]:
    """One command: both take the same."""

    def command(
        source: In = None,
        target: Out = None,
        size: TradeSizeOption = None,
        only: OnlyOption = None,
        skip: SkipOption = None,
        verify: VerifyOption = True,
        provider: ProviderOption = Provider.auto,
        max_output_error: ErrorOption = None,
        samples: SamplesOption = 3,
        seed: SeedOption = 0,
        data: DataOption = None,
        report: ReportOption = None,
        html: HtmlOption = None,
        quiet: QuietOption = False,
        verbose: VerboseOption = False,
        debug: DebugOption = False,
    ) -> None:
        def work(tell: Tell | None) -> Outcome:
            from convrewrite import pipeline, plugins

            options = options_of(provider, verify, max_output_error, samples, seed, data, only, skip, tell)
            return pipeline.trade(
                *paths_of(source, target), plugins.make(name, {}), options, pipeline.Trade("always", size)
            )

        files = files_of(source, target, data)
        run(name, provider, work, report, files, quiet=quiet, verbose=verbose, html=html)

    command.__doc__ = text
    return command
