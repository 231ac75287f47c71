"""The commands that trade something, declared for typer: `separable` and `groups`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from convrewrite.cli_options import (
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
    finite,
    options_of,
    paths_of,
)
from convrewrite.errors import UsageError

if TYPE_CHECKING:
    from convrewrite.outcome import Outcome
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
                help="Use one form alone: spatial, depthwise, channel or tucker. Left out: whichever is cheapest.",
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
        """Factor convolutions by singular value decomposition, where that is worth it and within a tolerance."""

        def work(tell: Tell | None) -> Outcome:
            from convrewrite import pipeline
            from convrewrite.passes.separable import Separable

            options = options_of(provider, verify, max_output_error, samples, seed, data, only, skip, tell)
            trade = pipeline.Trade(accept.value, size, timings, fit is Fit.responses)
            return pipeline.trade(*paths_of(source, target), Separable(tol=tol, form=form.value), options, trade)

        files = [source or "-", target or "-"]
        run(
            "separable",
            provider,
            work,
            report,
            files[1:] if files[0] == "-" else files,
            quiet=quiet,
            verbose=verbose,
            html=html,
        )

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

        files = [source or "-", target or "-"]
        run(
            "groups",
            provider,
            work,
            report,
            files[1:] if files[0] == "-" else files,
            quiet=quiet,
            verbose=verbose,
            html=html,
        )
