"""The commands that trade something, declared for typer: `separable` and `groups`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from convrewrite.cli.options import (
    MAKE,
    Accept,
    AcceptOption,
    BudgetOption,
    DataOption,
    DebugOption,
    Expand,
    Fit,
    Form,
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
    TimingsOption,
    TradeSizeOption,
    VerboseOption,
    VerifyOption,
    files_of,
    finite,
    options_of,
    paths_of,
)
from convrewrite.errors import UsageError

_OPTION = "give it as NAME=VALUE, where VALUE is a number, true, false, a list, or text"

if TYPE_CHECKING:
    from convrewrite.pipeline.outcome import Outcome
    from convrewrite.verification import Progress as Tell


def register(app: typer.Typer, run: Run) -> None:
    """Add the commands to the command line."""

    @app.command()
    def separable(
        source: In = None,
        target: Out = None,
        tol: Annotated[
            float,
            typer.Option(
                metavar="T",
                callback=finite,
                rich_help_panel=MAKE,
                help="Allow each kernel, with its BatchNormalization folded in, a relative error ||W - W~|| / ||W|| "
                "(Frobenius) up to T. 0, the default, allows what rounding costs and no more.",
            ),
        ] = 0.0,
        form: Annotated[
            Form,
            typer.Option(
                metavar="NAME",
                rich_help_panel=MAKE,
                help="Use one form alone: spatial, depthwise, channel or tucker. Left out: whichever is cheapest. "
                "A linear layer has the form 'channel' alone.",
                show_default=False,
            ),
        ] = Form.auto,
        accept: AcceptOption = Accept.smaller,
        timings: TimingsOption = None,
        size: TradeSizeOption = None,
        fit: Annotated[
            Fit,
            typer.Option(
                metavar="NAME",
                rich_help_panel=MAKE,
                help="With --data, fit the factors to the layers' responses on it; 'weights' leaves them as the "
                "decomposition gives them. --tol bounds the kernel's error either way.",
                show_default=False,
            ),
        ] = Fit.responses,
        only: OnlyOption = None,
        skip: SkipOption = None,
        verify: VerifyOption = True,
        provider: ProviderOption = Provider.auto,
        max_output_error: BudgetOption = None,
        samples: SamplesOption = 3,
        seed: SeedOption = 0,
        data: DataOption = None,
        report: ReportOption = None,
        html: HtmlOption = None,
        quiet: QuietOption = False,
        verbose: VerboseOption = False,
        debug: DebugOption = False,
    ) -> None:
        """Factor convolutions and linear layers by singular values, where that is worth it and within a tolerance."""

        def work(tell: Tell | None) -> Outcome:
            from convrewrite import pipeline
            from convrewrite.passes.separable import Separable

            options = options_of(provider, verify, max_output_error, samples, seed, data, only, skip, tell)
            trade = pipeline.Trade(accept.value, size, timings, fit is Fit.responses)
            return pipeline.trade(*paths_of(source, target), Separable(tol=tol, form=form.value), options, trade)

        files = files_of(source, target, data, timings)
        run("separable", provider, work, report, files, quiet=quiet, verbose=verbose, html=html)

    @app.command()
    def groups(
        source: In = None,
        target: Out = None,
        tol: Annotated[
            float,
            typer.Option(
                metavar="T",
                callback=finite,
                rich_help_panel=MAKE,
                help="Allow each kernel a relative error ||W - W~|| / ||W|| (Frobenius) up to T: what lies outside of "
                "its groups. 0, the default, splits only what is in groups already.",
            ),
        ] = 0.0,
        into: Annotated[
            int | None,
            typer.Option(
                min=2, metavar="N", rich_help_panel=MAKE, help="Split into N groups and no other number, within --tol."
            ),
        ] = None,
        expand: Annotated[
            Expand | None,
            typer.Option(
                metavar="HOW",
                rich_help_panel=MAKE,
                help="Do the opposite, exactly, for hardware without grouped convolution: each grouped Conv or "
                "ConvTranspose becomes 'branches' (Split, convolutions, Concat) or one 'dense' convolution with zeros. "
                "Usually slower on ONNX Runtime.",
            ),
        ] = None,
        accept: AcceptOption = Accept.smaller,
        timings: TimingsOption = None,
        size: TradeSizeOption = None,
        only: OnlyOption = None,
        skip: SkipOption = None,
        verify: VerifyOption = True,
        provider: ProviderOption = Provider.auto,
        max_output_error: BudgetOption = None,
        samples: SamplesOption = 3,
        seed: SeedOption = 0,
        data: DataOption = None,
        report: ReportOption = None,
        html: HtmlOption = None,
        quiet: QuietOption = False,
        verbose: VerboseOption = False,
        debug: DebugOption = False,
    ) -> None:
        """Split convolutions into groups of channels, exactly where the weights allow it."""
        if expand is not None and (tol > 0 or into is not None):
            raise UsageError("--expand is exact and undoes groups", remedy="leave --tol and --into out")

        def work(tell: Tell | None) -> Outcome:
            from convrewrite import pipeline
            from convrewrite.passes.groups import Groups

            options = options_of(provider, verify, max_output_error, samples, seed, data, only, skip, tell)
            judged = "always" if expand is not None else accept.value
            pass_ = Groups(tol=tol, into=into, expand=None if expand is None else expand.value)
            return pipeline.trade(*paths_of(source, target), pass_, options, pipeline.Trade(judged, size, timings))

        files = files_of(source, target, data, timings)
        run("groups", provider, work, report, files, quiet=quiet, verbose=verbose, html=html)

    @app.command()
    def transform(
        name: Annotated[str, typer.Argument(metavar="PASS", help="The name of the pass; `explain` lists them.")],
        source: In = None,
        target: Out = None,
        set_: Annotated[
            list[str] | None,
            typer.Option(
                "--set",
                metavar="NAME=VALUE",
                rich_help_panel=MAKE,
                help="An option of the pass, such as --set tol=0.1.",
            ),
        ] = None,
        accept: AcceptOption = Accept.always,
        timings: TimingsOption = None,
        size: TradeSizeOption = None,
        only: OnlyOption = None,
        skip: SkipOption = None,
        verify: VerifyOption = True,
        provider: ProviderOption = Provider.auto,
        max_output_error: BudgetOption = None,
        samples: SamplesOption = 3,
        seed: SeedOption = 0,
        data: DataOption = None,
        report: ReportOption = None,
        html: HtmlOption = None,
        quiet: QuietOption = False,
        verbose: VerboseOption = False,
        debug: DebugOption = False,
    ) -> None:
        """Run any pass by its name: those that other packages bring, too."""

        def work(tell: Tell | None) -> Outcome:
            from convrewrite import pipeline, plugins
            from convrewrite.cli.words import Flags
            from convrewrite.passes.fcn import Fcn

            pass_ = plugins.make(name, dict(_setting(text) for text in set_ or []))
            options = options_of(provider, verify, max_output_error, samples, seed, data, only, skip, tell)
            ends = paths_of(source, target)
            if isinstance(pass_, Fcn):
                outcome = pipeline.fcn(*ends, pass_, options)
            else:
                outcome = pipeline.trade(*ends, pass_, options, pipeline.Trade(accept.value, size, timings))
            if outcome.error is not None:
                outcome.error.speak(Flags(frozenset(plugins.options_of(pass_))))
            return outcome

        files = files_of(source, target, data, timings)
        run("transform", provider, work, report, files, quiet=quiet, verbose=verbose, html=html)


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
