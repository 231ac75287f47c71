"""``convrewrite verify A B``: are two models the same function? What the command takes, and the figures it prints.

convrewrite verify a.onnx b.onnx --size 224,512 --save-failing case.npz --where
convrewrite verify a.onnx b.onnx --data case.npz                         replays what failed
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convrewrite.cli.options import Line, Run, TellOptions, declared, written
from convrewrite.cli.words import FLAGS
from convrewrite.errors import UsageError
from convrewrite.options import VerifyOptions
from convrewrite.options.kinds import TELL, FilePath, Value, option_class
from convrewrite.text import terminal, told
from convrewrite.text.layout import Table, folded

if TYPE_CHECKING:
    from rich.text import Text

    from convrewrite.pipeline.outcome import Outcome
    from convrewrite.verification import Progress, Verification
    from convrewrite.verification.verdicts import Case

PLAIN = ("outputs", "ahead of the final operator")
"""Checks whose name says no more than the output's."""

MANY = 1e6
"""From so many times the noise on, one digit is enough."""

SHORT = 8
"""Up to so many comparisons are listed without --verbose."""


@option_class
class KeepOptions:
    """What is kept of a failure."""

    save_failing: Value[str | None] = FilePath(
        None, "Keep the inputs on which they differ most.", metavar="F.npz", panel=TELL
    )


def register(app: typer.Typer, run: Run) -> None:
    """Add the command to the application; `run` is how the application runs any command."""

    @declared(app, VerifyOptions, KeepOptions, TellOptions)
    def verify(
        a: Annotated[str, typer.Argument(metavar="A", help="The original model.")],
        b: Annotated[str, typer.Argument(metavar="B", help="The rewritten model.")],
        line: Line,
    ) -> None:
        """Run two models in ONNX Runtime and say whether they are the same function; B may be what `fcn` wrote."""
        from convrewrite.model_io.guards import Files, listed

        told, keep = line.options(TellOptions), line.options(KeepOptions).save_failing
        data, images = line.values["data"], line.values["images"]

        def work(tell: Progress | None) -> Outcome:
            from convrewrite import pipeline
            from convrewrite.running import runtime

            if data is not None and images is not None:
                raise UsageError("--data and --images exclude each other")
            options = line.options(VerifyOptions, progress=tell)
            if images is not None:
                options = replace(options, data=_images(options, line.values["samples"] or 0))
            elif options.layout or (options.mean, options.std) != ("0", "1"):
                raise UsageError("--mean, --std and --layout belong to --images")
            with runtime.log_shown(told.verbose):
                outcome = pipeline.compare(a, b, options, repeat=_repeat(a, b, options))
            if keep is not None and outcome.verification is not None:
                kept.append(_kept(outcome.verification, keep, _repeat(a, b, options, keep)))
            return outcome

        def details(outcome: Outcome, width: int) -> Sequence[Text | str]:
            if outcome.verification is None:
                return kept
            return [*_figures_of(outcome.verification, width, verbose=told.verbose), *kept]

        kept: list[str] = []
        files = Files({"A": a, "B": b}, {"--data": data, **listed("--images", images)})
        run("verify", line, work, files.writing(save_failing=keep), details=details)


def _images(options: VerifyOptions, samples: int) -> Any:
    """The folder of images, with what is done to each."""
    from convrewrite.running.sampling import Images

    mean, std = _numbers("--mean", options.mean), _numbers("--std", options.std)
    return Images(Path(options.images or ""), mean, std, layout=options.layout, limit=samples)


def _repeat(a: str, b: str, options: VerifyOptions, kept: str | None = None) -> str:
    """The command that does it again: on the same inputs, or on those that were kept in a file."""
    words = written(options) | {"seed": ["--seed", str(options.seed)]}
    if kept is not None:
        for name in ("sizes", "images", "layout", "samples", "mean", "std"):
            words.pop(name, None)
        words["data"] = ["--data", kept]
    elif options.images is not None:
        words.pop("data", None)
    elif options.data is None:
        words["samples"] = ["--samples", str(options.samples)]
    return shlex.join(["convrewrite", "verify", a, b, *(word for told in words.values() for word in told)])


def _kept(found: Verification, target: str, replay: str) -> str:
    """Keep the failing case; a line that says so."""
    if found.failing is None:
        return f"nothing failed: {target} was not written"
    found.failing.save(Path(target))
    return terminal(f"the failing inputs are in {target}; replay them with: {replay}")


def _figures_of(found: Verification, width: int, *, verbose: bool) -> list[Text | str]:
    """The figures that stand in no other place."""
    from convrewrite.verification import leading

    measured = [case for case in leading.ordered(found.cases) if case.metrics is not None]
    lines: list[Text | str] = []
    if measured and (verbose or len(measured) <= SHORT):
        lines += _table(measured).lines(width)
    facts = [str(found.divergence)] if found.divergence is not None else []
    facts += [f"warning: {line}" for line in found.warnings]
    if verbose or found.provider != "cpu":
        facts += [f"nodes of the {model}: {_counts(nodes)}" for model, nodes in found.nodes.items() if nodes]
    return [*lines, *(part for line in told(facts, FLAGS) for part in folded(terminal(line), width))]


def _table(cases: Sequence[Case]) -> Table:
    """Further figures of every output; the error in units of the model's own noise first."""
    rows = [("output", "max error", "x own noise", "rms ratio", "1 - cosine", "max absolute", "same class")]
    for case in cases:
        metrics = case.metrics
        assert metrics is not None
        times = case.error / case.noise if case.error is not None and case.noise else None
        apart = None if metrics.cosine is None else max(0.0, 1.0 - metrics.cosine)
        top1 = "-" if metrics.top1_agreement is None else f"{metrics.top1_agreement:.0%}"
        own = "-" if times is None else f"{times:.1f}" if times < MANY else f"{times:.1e}"
        check, _, at = case.name.partition(" at ")
        name = f"{case.output}{at and f' at {at}'}" if check in PLAIN else f"{case.output}, {case.name}"
        ratio, cosine, largest = map(_figure, (metrics.rms_ratio, apart, metrics.max_absolute))
        rows.append((name, _figure(case.error), own, ratio, cosine, largest, top1))
    return Table(rows, right=range(1, 7), folds={0: 20})


def _counts(nodes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} on {provider}" for provider, count in nodes.items())


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}" if math.isfinite(value) else "NaN/Inf"


def _numbers(option: str, text: str) -> tuple[float, ...]:
    """Read `0.5` or `0.485,0.456,0.406`."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f"{option} {text} is not a list of numbers", remedy="write it as in 0.5,0.5,0.5")
    return numbers
