"""One command from file to file: load, rewrite, stage, verify, publish. Nothing is published before it was checked.

IN --load--> graph --pass--> graph' --stage--> temporary file --verify--> rename to OUT
               |                                    |
            refused: exit 3                  failed: exit 1, the temporary file is removed
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from convrewrite import costs, model_io, runtime, verification
from convrewrite.errors import ConvrewriteError, Refused, UsageError
from convrewrite.graph import infer_shapes
from convrewrite.model_io import Model
from convrewrite.passes.fcn import Fcn
from convrewrite.rewrite import Pass, PassResult, Site, run_pass
from convrewrite.verification import Verification
from convrewrite.verification import Progress
from convrewrite.windows import Window

STREAM = "-"
"""Names standard input or output."""


@dataclass(frozen=True)
class Options:
    """What every rewriting command takes.

    Attributes:
        provider: "auto", "cpu", "cuda" or "tensorrt". verify: run both models before writing.
        max_output_error: tolerance on max|a-b|/max|b| per output; None for the default by noise.
        samples, seed: of the generated inputs. data: real inputs by name instead.
        only, skip: globs on node and tensor names. progress: called as work goes on.
    """

    provider: str = "auto"
    verify: bool = True
    max_output_error: float | None = None
    samples: int = 3
    seed: int = 0
    data: Mapping[str, np.ndarray[Any, Any]] | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    progress: Progress | None = None


@dataclass(frozen=True)
class FileFacts:
    """A model file in the report; `macs` at the native size, None where shapes are not known."""

    path: str
    sha256: str
    bytes: int
    parameters: int
    macs: int | None


@dataclass(frozen=True)
class Outcome:
    """What a command did; `error` is what makes it fail, if anything.

    Attributes:
        status: "rewritten", "unchanged" (the file was copied), "refused", "failed" or, for `verify`, "compared".
        advice: one line that says what to do next.
    """

    command: str
    provider: str
    status: str
    input: FileFacts | None = None
    output: FileFacts | None = None
    sites: tuple[Site, ...] = ()
    window: Window | None = None
    verification: Verification | None = None
    advice: str = ""
    error: ConvrewriteError | None = field(default=None, compare=False)

    @property
    def exit_code(self) -> int:
        """What the process returns."""
        return 0 if self.error is None else self.error.exit_code

    def check(self) -> Outcome:
        """Raise the error, if there is one; for use from Python."""
        if self.error is not None:
            raise self.error
        return self


def fcn(source: str, target: str, pass_: Fcn, options: Options) -> Outcome:
    """Make a classifier fully convolutional: read `source`, write `target` ("-" is standard input or output).

    Raises:
        UsageError: the input is no usable model, or the target cannot be written.
    """
    runtime.check_installation()
    _refuse_stream_target(target)
    model = _load(source)
    base = Outcome("fcn", options.provider, "unchanged", _input_facts(model, source))
    if Window.from_metadata(model.metadata) is not None:
        advice = (
            "nothing to do: the model is fully convolutional already (metadata convrewrite.window); copied unchanged"
        )
        return _copied(model, source, target, replace(base, advice=advice))
    result = run_pass(pass_, model.graph, only=options.only, skip=options.skip)
    base = replace(base, sites=result.sites)
    refused = result.outcome("refused")
    if refused:
        return replace(base, status="refused", error=_refusal(pass_, refused[0]))
    if not result.changed:
        why = result.sites[0] if result.sites else None
        advice = (
            f"nothing to do: {why.detail}, {_meaning(pass_, why)}; {why.remedy}" if why else "nothing to do: no node"
        )
        return _copied(model, source, target, replace(base, advice=f"{advice}. Copied unchanged"))
    window: Window = result.evidence["window"]
    _check_sizes(pass_, window)
    after = replace(model, graph=result.graph, metadata={**model.metadata, **result.metadata})
    base = replace(base, status="rewritten", window=window, input=_with_macs(base.input, model.graph, window))
    return _publish(model, after, source, target, result, options, base)


def _publish(
    before: Model, after: Model, source: str, target: str, result: PassResult, options: Options, base: Outcome
) -> Outcome:
    """Stage the rewritten model, verify the staged file, then publish it or leave no trace."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="convrewrite-")))
        path = folder / "rewritten.onnx" if target == STREAM else Path(target)
        staged = stack.enter_context(model_io.staged(after, path))
        base = replace(base, output=_output_facts(after, staged.path, target, base.window))
        if options.verify:
            original = before.path or _as_file(before, folder / "original.onnx")
            found = verification.verify_fcn(
                original,
                staged.path,
                base.window or Window.from_json(result.metadata["convrewrite.window"]),
                result.evidence["cut"],
                samples=options.samples,
                seed=options.seed,
                data=options.data,
                tolerance=options.max_output_error,
                provider=options.provider,
                progress=options.progress,
            )
            found = replace(found, command=_repeat(source, target, options))
            base = replace(base, verification=found, provider=found.provider)
            try:
                found.check()
            except ConvrewriteError as error:
                return replace(base, status="failed", output=None, error=error)
        else:
            base = replace(base, verification=Verification.not_run("--no-verify"))
        if target == STREAM:
            model_io.write_stream(after, sys.stdout.buffer)
        else:
            staged.commit()
    return replace(base, advice=_next(base, target))


def _repeat(source: str, target: str, options: Options) -> str:
    """The command that repeats a failed verification: the rewrite itself, which writes nothing where it fails."""
    inputs = "--data F.npz" if options.data is not None else f"--seed {options.seed} --samples {options.samples}"
    return f"convrewrite fcn {source} {target} {inputs}"


def _next(outcome: Outcome, target: str) -> str:
    place = "standard output" if target == STREAM else target
    if outcome.verification is not None and outcome.verification.verdict == "skipped":
        return f"written to {place}, NOT verified. Next: convrewrite verify ORIGINAL {place}"
    cells = "cell i of an output looks at the pixels from i * stride to i * stride + window"
    return f"written to {place}. Next: run it on a larger image; {cells}"


def compare(source: str, target: str, size: Sequence[int] | None, options: Options) -> Outcome:
    """Verify that two model files are the same function; a fully convolutional `target` is held against its windows.

    Raises:
        UsageError: a file is no usable model, or the two cannot be compared.
    """
    runtime.check_installation()
    if STREAM in (source, target):
        raise UsageError("verify reads two files", remedy="give both paths")
    before, after = model_io.load(source), model_io.load(target)
    window = Window.from_metadata(after.metadata)
    facts = _input_facts(before, source), _input_facts(after, target)
    base = Outcome("verify", options.provider, "compared", *facts, window=window)
    common: dict[str, Any] = {
        "samples": options.samples,
        "seed": options.seed,
        "data": options.data,
        "tolerance": options.max_output_error,
        "provider": options.provider,
        "progress": options.progress,
    }
    if window is not None and Window.from_metadata(before.metadata) is None:
        found = verification.verify_fcn(source, target, window, _cut(before, window), size=size, **common)
    else:
        found = verification.verify(source, target, size=size, **common)
    base = replace(base, verification=found, provider=found.provider)
    try:
        found.check()
    except ConvrewriteError as error:
        return replace(base, status="failed", error=error)
    return base


def _cut(before: Model, window: Window) -> Sequence[Any]:
    """Where the original's head begins, as the pass sees it; nothing where it refuses the original."""
    result = run_pass(Fcn(window=window.size), before.graph)
    cut: Sequence[Any] = result.evidence.get("cut", ())
    return cut


def _load(source: str) -> Model:
    if source != STREAM:
        return model_io.load(source)
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("no model on standard input", remedy="give IN and OUT, or pipe a model in")
    return model_io.load(sys.stdin.buffer.read())


def _refuse_stream_target(target: str) -> None:
    if target == STREAM and sys.stdout.isatty():
        raise UsageError(
            "binary data is not written to a terminal", remedy="give IN and OUT, or redirect with > out.onnx"
        )


def _as_file(model: Model, path: Path) -> Path:
    model_io.copy_bytes(model, path)
    return path


def _copied(model: Model, source: str, target: str, outcome: Outcome) -> Outcome:
    """Nothing to do: the file goes through byte for byte."""
    if target == STREAM:
        stream: BinaryIO = sys.stdout.buffer
        model_io.copy_bytes(model, stream)
    elif source == STREAM or not _same_file(source, target):
        model_io.copy_bytes(model, target)
    facts = None if outcome.input is None else replace(outcome.input, path=target)
    return replace(outcome, output=facts)


def _same_file(source: str, target: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(source).samefile(target)
    return False


def _refusal(pass_: Pass, site: Site) -> Refused:
    return Refused(f"{site.detail}: {_meaning(pass_, site)} [{site.reason}]", reason=site.reason, remedy=site.remedy)


def _meaning(pass_: Pass, site: Site) -> str:
    return pass_.reasons[site.reason].meaning if site.reason in pass_.reasons else site.reason


def _check_sizes(pass_: Fcn, window: Window) -> None:
    if pass_.window is not None and pass_.window != window.size:
        fixed = "x".join(map(str, window.size))
        raise UsageError(f"--window does not fit: the model's input is fixed at {fixed}", remedy="leave --window out")


def _input_facts(model: Model, path: str) -> FileFacts:
    return FileFacts(path, model.sha256, model.nbytes, costs.parameters(model.graph), None)


def _output_facts(model: Model, staged: Path, target: str, window: Window | None) -> FileFacts:
    digest, size = hashlib.sha256(), 0
    with staged.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    facts = FileFacts(target, digest.hexdigest(), size, costs.parameters(model.graph), None)
    return _with_macs(facts, model.graph, window) or facts


def _with_macs(facts: FileFacts | None, graph: gs.Graph, window: Window | None) -> FileFacts | None:
    """The facts with the MACs of one sample at the native size, where all shapes follow from it."""
    if facts is None or window is None:
        return facts
    shapes = {t.name: [d if isinstance(d, int) else 1 for d in t.shape or ()] for t in graph.inputs}
    for letter, extent in zip(window.letters, window.size, strict=True):
        shapes[window.input][window.axes.index(letter)] = extent
    with contextlib.suppress(onnx.shape_inference.InferenceError):
        return replace(facts, macs=costs.graph_macs(graph, infer_shapes(graph, shapes)))
    return facts


def reasons() -> Iterator[tuple[str, str, str]]:
    """Every reason of every pass: code, meaning, remedy."""
    from convrewrite.passes import ALL

    for pass_ in ALL:
        for reason in pass_.reasons.values():
            yield reason.code, reason.meaning, reason.remedy
