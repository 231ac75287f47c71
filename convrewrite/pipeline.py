"""One command from file to file: load, rewrite, stage, verify, publish. Nothing is published before it was checked.

IN --load--> graph --pass--> graph' --stage--> temporary file --verify--> rename to OUT
               |                                    |
            refused: exit 3                  failed: exit 1, the temporary file is removed
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import onnx
import onnx_graphsurgeon as gs

from convrewrite import costs, model_io, runtime, timing, verification
from convrewrite.errors import Refused, UsageError
from convrewrite.graph import infer_shapes
from convrewrite.model_io import Model
from convrewrite.outcome import STREAM, FileFacts, Log, Options, Outcome
from convrewrite.passes.fcn import Fcn
from convrewrite.rewrite import BY_PATTERN, Pass, PassResult, Reason, Site, run_pass
from convrewrite.verification import Verification
from convrewrite.windows import Window

PROBE = '<ir_version: 7, opset_import: ["": 13]> probe (float[1] x) => (float[1] y) { y = Neg(x) }'
"""The smallest model, to see whether a provider runs."""

GENERAL = (
    BY_PATTERN,
    Reason(
        "verify/failed",
        "the rewritten model is not equivalent to the original, so it was not written",
        "repeat it with the command in the message; please report it as a fault, with the model",
    ),
    Reason(
        "verify/vacuous",
        "the outputs did not move between inputs, so that their agreement says nothing",
        "give real inputs with --data F.npz, or write unverified with --no-verify",
    ),
)
"""Reasons that belong to no pass."""


def fcn(source: str, target: str, pass_: Fcn, options: Options) -> Outcome:
    """Make a classifier fully convolutional: read `source`, write `target` ("-" is standard input or output).

    Whatever stops it is the outcome's `error`, and then nothing was written; `Outcome.check` raises it.
    """
    log = Log(Outcome("fcn", options.provider, "error"))
    with log.until_error():
        _fcn(source, target, pass_, options, log)
    return log.outcome


def _fcn(source: str, target: str, pass_: Fcn, options: Options, log: Log) -> None:
    runtime.check_installation()
    _check_provider(options.provider)
    _refuse_stream_target(target)
    model = _load(source)
    log.note(input=_input_facts(model, source))
    present = Window.from_metadata(model.metadata)
    if present is not None:
        log.note(window=present, advice=_already(present, pass_))
        return _copied(model, source, target, log)
    _check_patterns(model.graph, options)
    result = run_pass(pass_, model.graph, only=options.only, skip=options.skip)
    log.note(sites=result.sites)
    refused = result.outcome("refused")
    if refused:
        raise _refusal(pass_, refused[0])
    if not result.changed:
        why = "; ".join(_why(pass_, site) for site in result.sites[:1]) or "no node reads the image"
        log.note(advice=f"nothing to do: {why}; copied byte for byte")
        return _copied(model, source, target, log)
    window: Window = result.evidence["window"]
    log.note(window=window, input=_with_macs(log.outcome.input, model.graph, window))
    _check_sizes(pass_, window)
    after = replace(model, graph=result.graph, metadata={**model.metadata, **result.metadata})
    return _publish(pass_, result, model, after, source, target, options, log)


def _publish(
    pass_: Fcn,
    result: PassResult,
    before: Model,
    after: Model,
    source: str,
    target: str,
    options: Options,
    log: Log,
) -> None:
    """Stage the rewritten model, verify the staged file, then publish it or leave no trace."""
    window: Window = result.evidence["window"]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="convrewrite-")))
        path = folder / "rewritten.onnx" if target == STREAM else Path(target)
        staged = stack.enter_context(model_io.staged(after, path))
        facts = _output_facts(after, staged.path, target, window)
        if options.verify:
            original = before.path or _as_file(before, folder / "original.onnx")
            found = verification.verify_fcn(original, staged.path, window, result.evidence["cut"], **_common(options))
            otherwise = ", or write unverified with --no-verify"
            found = replace(found, command=_repeat(source, target, pass_, options), otherwise=otherwise)
            log.note(verification=found, provider=found.provider)
            found.check()
        else:
            log.note(verification=Verification.not_run("--no-verify"))
        if target == STREAM:
            model_io.write_stream(after, sys.stdout.buffer)
        else:
            staged.commit()
        log.note(status="rewritten", output=facts, advice=_next(options, source, target, window, pass_.size))


def _common(options: Options) -> dict[str, Any]:
    return {
        "samples": options.samples,
        "seed": options.seed,
        "data": options.data,
        "tolerance": options.max_output_error,
        "provider": options.provider,
        "progress": options.progress,
    }


def _repeat(source: str, target: str, pass_: Fcn, options: Options) -> str:
    """The command that repeats a failed verification: the rewrite itself, which writes nothing where it fails."""
    words = ["convrewrite", "fcn", source, target]
    for name, extents in (("--window", pass_.window), ("--size", pass_.size)):
        words += [name, _by(extents)] if extents else []
    words += ["--data", options.data_path] if options.data is not None else []
    words += ["--seed", str(options.seed), "--samples", str(options.samples)]
    words += ["--max-output-error", repr(options.max_output_error)] if options.max_output_error is not None else []
    words += ["--provider", options.provider] if options.provider != "auto" else []
    words += [word for pattern in options.only for word in ("--only", pattern)]
    words += [word for pattern in options.skip for word in ("--skip", pattern)]
    return shlex.join(words)


def _next(options: Options, source: str, target: str, window: Window, size: Sequence[int] | None) -> str:
    """What a person does with the result."""
    if not options.verify and STREAM not in (source, target) and not _same_file(source, target):
        return f"it was NOT verified; do so with: {shlex.join(['convrewrite', 'verify', source, target])}"
    if not options.verify:
        return "it was NOT verified; leave --no-verify out to do so"
    if size is not None:
        return f"run it on images of {_by(size)}: it takes no other size; leave --size out for any size"
    steps = window.stride
    corner = ", ".join(f"{step if step > 1 else ''}{letter}" for step, letter in zip(steps, "ijk", strict=False))
    cell = ", ".join("ijk"[: len(steps)])
    return f"run it on a larger image: output cell ({cell}) is the window whose first pixel is ({corner})"


def _already(window: Window, pass_: Fcn) -> str:
    text = f"nothing to do: fcn has converted this model already (window {_by(window.size)}); copied byte for byte"
    if pass_.size is not None:
        text += "; --size is not applied to it: convert the original again"
    return text


def compare(
    source: str, target: str, size: Sequence[int] | None, options: Options, *, repeat: str = "", **more: Any
) -> Outcome:
    """Verify that two model files are the same function; a fully convolutional `target` is held against its windows.

    Whatever stops it is the outcome's `error`; `Outcome.check` raises it. `more` goes to `verification.verify`, before
    what `options` say: several `sizes`, a `batch`, `where`, ... `repeat` is the command that does the same again; the
    verification makes one up where it is left out, without what only its caller knows (the path of the data).
    """
    log = Log(Outcome("verify", options.provider, "error"))
    with log.until_error():
        _compare(source, target, {"size": size, **_common(options), **more}, repeat, log)
    return log.outcome


def _compare(source: str, target: str, given: dict[str, Any], repeat: str, log: Log) -> None:
    runtime.check_installation()
    if STREAM in (source, target):
        raise UsageError("verify reads two files, and none from standard input", remedy="give both paths")
    before = model_io.load(source)
    log.note(input=_input_facts(before, source))
    after = model_io.load(target)
    window = Window.from_metadata(after.metadata)
    log.note(output=_input_facts(after, target))
    if window is not None and Window.from_metadata(before.metadata) is None:
        log.note(window=window)
        if given.pop("shapes", None) or given.pop("reference", "onnxruntime") != "onnxruntime":
            remedy = "leave --shape and --reference out; --size and --batch are for it"
            raise UsageError("a model that fcn wrote is compared window by window", remedy=remedy)
        found = verification.verify_fcn(source, target, window, _cut(before, window), **given)
    else:
        found = verification.verify(source, target, **given)
    found = replace(found, command=repeat or found.command)
    log.note(verification=found, provider=found.provider)
    found.check()
    log.note(status="compared")


def time(source: str, target: str, **how: Any) -> Outcome:
    """Time two model files against each other; `how` goes to `timing.bench`.

    Whatever stops it is the outcome's `error`; sizes that were measured before stay in its `bench`.
    """
    log = Log(Outcome("bench", how.get("provider", "auto"), "error"))
    with log.until_error():
        if STREAM in (source, target):
            raise UsageError("bench reads two files", remedy="give both paths")
        log.note(input=_input_facts(model_io.load(source), source))
        log.note(output=_input_facts(model_io.load(target), target))
        result = timing.bench(source, target, **how)
        log.note(bench=result, provider=result.provider if result.cells else log.outcome.provider, status="compared")
        result.check()
    return log.outcome


def _cut(before: Model, window: Window) -> Sequence[Any]:
    """Where the original's head begins, as the pass sees it; nothing where it refuses the original."""
    result = run_pass(Fcn(window=window.size), before.graph)
    cut: Sequence[Any] = result.evidence.get("cut", ())
    return cut


def _check_provider(provider: str) -> None:
    """Raise UsageError where a provider that was asked for by name is not usable here, even if nothing will run."""
    if provider in ("cuda", "tensorrt"):
        runtime.open_session(onnx.parser.parse_model(PROBE).SerializeToString(), provider)


def _load(source: str) -> Model:
    if source != STREAM:
        return model_io.load(source)
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("no model on standard input", remedy="give IN and OUT, or pipe a model in")
    return model_io.load(sys.stdin.buffer.read())


def _refuse_stream_target(target: str) -> None:
    if target == STREAM and (sys.stdout is None or sys.stdout.isatty()):
        raise UsageError(
            "binary data is not written to a terminal", remedy="give IN and OUT, or redirect with > out.onnx"
        )


def _as_file(model: Model, path: Path) -> Path:
    model_io.copy_bytes(model, path)
    return path


def _copied(model: Model, source: str, target: str, log: Log) -> None:
    """Nothing to do: the file goes through byte for byte."""
    if target == STREAM:
        stream: BinaryIO = sys.stdout.buffer
        model_io.copy_bytes(model, stream)
    elif source == STREAM or not _same_file(source, target):
        model_io.copy_bytes(model, target)
    facts = None if log.outcome.input is None else replace(log.outcome.input, path=target)
    log.note(status="unchanged", output=facts)


def _same_file(source: str, target: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(source).samefile(target)
    return False


def _check_patterns(graph: gs.Graph, options: Options) -> None:
    """Raise UsageError where --only matches no name of the graph: a slip of the pen must not look like success."""
    names = [name for node in graph.nodes for name in (node.name, *(tensor.name for tensor in node.outputs)) if name]
    if options.only and not any(fnmatch.filter(names, pattern) for pattern in options.only):
        patterns = " ".join(options.only)
        raise UsageError(f"--only '{patterns}' matches no node and no tensor of the model")


def _refusal(pass_: Pass, site: Site) -> Refused:
    return Refused(_why(pass_, replace(site, remedy="")), reason=site.reason, remedy=site.remedy)


def _why(pass_: Pass, site: Site) -> str:
    """Where, what it means, what helps, and the code that `explain` takes."""
    remedy = f"; {site.remedy}" if site.remedy else ""
    return f"{site.detail}: {_meaning(pass_, site)} [{site.reason}]{remedy}"


def _meaning(pass_: Pass, site: Site) -> str:
    known = {reason.code: reason for reason in (*pass_.reasons.values(), *GENERAL)}
    return known[site.reason].meaning if site.reason in known else "the pass gives no meaning for its reason"


def _check_sizes(pass_: Fcn, window: Window) -> None:
    if pass_.window is not None and pass_.window != window.size:
        given, fixed = _by(pass_.window), _by(window.size)
        raise UsageError(f"--window {given} does not fit: the model's input is fixed at {fixed}", remedy="leave it out")


def _by(extents: Sequence[int]) -> str:
    return "x".join(map(str, extents))


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
    """Every reason, those of every pass first: code, meaning, remedy."""
    from convrewrite.passes import ALL

    for reason in (*(reason for pass_ in ALL for reason in pass_.reasons.values()), *GENERAL):
        yield reason.code, reason.meaning, reason.remedy
