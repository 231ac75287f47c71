"""The files of a command: what it reads, what it copies, and what the report says of them."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from convrewrite import model_io
from convrewrite.engine import costs
from convrewrite.errors import UsageError
from convrewrite.model_io import Model, Staged
from convrewrite.pipeline.outcome import STREAM, FileFacts, Log
from convrewrite.running import faults
from convrewrite.system.streams import refuse_closed_output

NAMED = 3
"""Names in a line that could have hundreds."""


def load(source: str) -> Model:
    """Read a model from a path, or from standard input.

    Raises:
        UsageError: it cannot be read, or is no valid model.
    """
    if source != STREAM:
        model = model_io.load(source)
    elif sys.stdin is None or sys.stdin.isatty():
        raise UsageError("no model on standard input", remedy="give IN and OUT, or pipe a model in")
    else:
        model = model_io.load(sys.stdin.buffer.read())
    faults.refuse_contradictions(model)
    return model


def refuse_stream_target(target: str) -> None:
    """Raise UsageError where standard output is a terminal."""
    if target == STREAM:
        refuse_closed_output()
    if target == STREAM and sys.stdout.isatty():
        raise UsageError(
            "binary data is not written to a terminal", remedy="give IN and OUT, or redirect with > out.onnx"
        )


def as_file(model: Model, path: Path) -> Path:
    """Copy a model that came from standard input to a path."""
    model_io.copy_bytes(model, path)
    return path


def copied(model: Model, source: str, target: str, log: Log) -> None:
    """Nothing to do: the file goes through byte for byte."""
    if target == STREAM:
        stream: BinaryIO = sys.stdout.buffer
        model_io.copy_bytes(model, stream)
    elif source == STREAM or not same_file(source, target):
        model_io.copy_bytes(model, target)
    facts = None if log.outcome.input is None else replace(log.outcome.input, path=target)
    log.note(status="unchanged", output=facts)


def same_file(source: str, target: str) -> bool:
    """Whether two paths lead to the same file."""
    with contextlib.suppress(OSError):
        return Path(source).samefile(target)
    return False


def input_facts(model: Model, path: str) -> FileFacts:
    """Path, hash, size and costs of a model that was read."""
    return FileFacts(path, lambda: model.sha256, model.nbytes, parameters=costs.parameters(model.graph), macs=None)


def output_facts(model: Model, staged: Staged, target: str) -> FileFacts:
    """Path, hash, size and costs of a model that is written but not published, under its final name."""
    parameters = costs.parameters(model.graph)
    if target == STREAM:  # which takes the weights too, wherever they lie
        size, digest = model_io.content(model)
        return FileFacts(target, lambda: digest, size, parameters=parameters, macs=None)
    size = sum(path.stat().st_size for path in (staged.path, *staged.data))
    data = tuple(path.name for path in staged.data.values())
    return FileFacts(target, lambda: _digest(Path(target)), size, parameters=parameters, macs=None, data=data)


def fixed_defaults(before: Model, after: Model) -> tuple[str, ...]:
    """A line on the inputs with a default value that a rewrite took as constants, where there are any."""
    graph = after.graph
    kept = {name for part in (graph, *graph.subgraphs(recursive=True)) for name in part.tensors()}
    lost = [name for name in before.defaults if name not in kept]
    if not lost:
        return ()
    names = ", ".join(f"'{name}'" for name in lost[:NAMED])
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    return (f"inputs with a default value became constants: {names}{more}; whoever feeds one needs the original",)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
