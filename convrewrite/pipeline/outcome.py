"""What came of a command."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from convrewrite import text
from convrewrite.engine.rewrite import Site
from convrewrite.engine.windows import Window
from convrewrite.errors import ConvrewriteError
from convrewrite.model_io import Model
from convrewrite.running.faults import blaming
from convrewrite.text import Words
from convrewrite.timing import Bench
from convrewrite.verification import Verification

STREAM = "-"
"""Names standard input or output."""

Status = Literal["rewritten", "unchanged", "compared", "failed", "error", "refused"]

FAILURES: Mapping[int, Status] = {1: "failed", 3: "refused"}
"""The status of a command that ended with that exit code; any other is an "error"."""


@dataclass(frozen=True)
class FileFacts:
    """A model file in the report; `macs` at the native size, None where shapes are not known.

    Attributes:
        digest: computes the hash of the file, which takes as long as reading it: only a report asks.
        bytes: of the file and of those with its external data. data: their names, where the model was written.
    """

    path: str
    digest: Callable[[], str]
    bytes: int
    parameters: int
    macs: int | None
    data: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file."""
        return self.digest()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {name: getattr(self, name) for name in ("path", "sha256", "bytes", "parameters", "macs")}


@dataclass(frozen=True)
class ModelPair:
    """The two models of a rewrite, for whoever draws them; `after` may not have been written, or not be equivalent.

    Attributes:
        before, after: the models. inputs: shapes by name at which both are looked at, {} where they are not known.
        data: the user's real inputs.
    """

    before: Model
    after: Model
    inputs: Mapping[str, tuple[int, ...]]
    data: Mapping[str, np.ndarray[Any, Any]] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a command did; `error` is what makes it fail, if anything.

    Attributes:
        status: "rewritten", "unchanged" (the file was copied) or, for `verify`, "compared"; where the command fails,
            "failed" (a check), "error" (usage, input, an internal error) or "refused".
        provider: where the models ran; where none ran, what was asked for.
        warnings: lines on what was made that nobody asked for. advice: one line that says what to do next.
        ends: the models, where something was rewritten.
    """

    command: str
    provider: str
    status: Status
    input: FileFacts | None = None
    output: FileFacts | None = None
    sites: tuple[Site, ...] = ()
    window: Window | None = None
    verification: Verification | None = None
    bench: Bench | None = None
    warnings: tuple[str, ...] = ()
    advice: str = ""
    error: ConvrewriteError | None = field(default=None, compare=False)
    ends: ModelPair | None = field(default=None, compare=False, repr=False)

    @property
    def exit_code(self) -> int:
        """The exit code of the process."""
        return 0 if self.error is None else self.error.exit_code

    def stopped(self, error: ConvrewriteError) -> Outcome:
        """The outcome of a command that an error ended."""
        return replace(self, status=FAILURES.get(error.exit_code, "error"), error=error, advice="")

    def told(self, words: Words) -> Outcome:
        """The outcome with all parameters in these words."""
        return replace(text.told(replace(self, ends=None), words), ends=self.ends)

    def check(self) -> Outcome:
        """Raise the error, if there is one; for use from Python."""
        if self.error is not None:
            raise self.error
        return self


@dataclass
class Log:
    """What is known of a command while it runs; the error that ends it becomes part of the outcome.

    Attributes:
        models: what it has read: an error that nobody foresaw may be theirs.
    """

    outcome: Outcome
    models: list[Model] = field(default_factory=list)

    def note(self, **facts: Any) -> None:
        """Add facts to the record of this command."""
        self.outcome = replace(self.outcome, **facts)

    def reads(self, model: Model) -> Model:
        """Record that a model was read."""
        self.models.append(model)
        return model

    @contextlib.contextmanager
    def until_error(self) -> Iterator[None]:
        """Run the command; an error that is none of ours, nor of a model that was read, passes through."""
        try:
            with blaming(self.models):
                yield
        except ConvrewriteError as error:
            self.outcome = self.outcome.stopped(error)
