"""The contract of a pass: what it is, what it is asked, and what it answers with.

A pass is a frozen dataclass that inherits from `Pass`. `candidates` lists the places it would look at, `plan` decides
everything for one of them without touching the graph, and `apply` does what the plan says and cannot fail.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import onnx_graphsurgeon as gs

from convrewrite.engine.context import Context
from convrewrite.engine.evidence import Evidence
from convrewrite.text import parameter

SiteOutcome = Literal["rewritten", "declined", "refused"]
Equivalence = Literal["exact", "reassociated", "approximate"]
JudgeName = Literal["smaller", "always"]


OPTION = "option"
"""Marks a field of a pass in its metadata."""


def option(default: Any) -> Any:
    """A field of a pass that a user sets: `tol: float = option(0.0)`. Its values are checked against its type."""
    return field(default=default, metadata={OPTION: True})


def option_defaults(pass_: Pass | type[Pass]) -> dict[str, Any]:
    """The options of a pass by name, with their defaults."""
    made: Any = pass_
    return {f.name: f.default for f in fields(made) if f.metadata.get(OPTION)}


@dataclass(frozen=True)
class Reason:
    """A namespaced code for why a site was left alone, what it means, and what the user can do.

    `whole`: as the reason of a refusal it refuses the model, whatever else could be rewritten in it.
    """

    code: str
    meaning: str
    remedy: str
    whole: bool = False


@dataclass(frozen=True)
class Refusal:
    """Not legal: the rewrite would not be the same function."""

    reason: Reason
    detail: str


@dataclass(frozen=True)
class Declined:
    """Legal, but there is nothing to do or it is not worth it; `known` has what the pass knows of the place."""

    reason: Reason
    detail: str
    known: Site | None = None


@dataclass(frozen=True)
class Site:
    """One place that a pass looked at, and what came of it.

    Attributes:
        anchor: the output tensor that names the site. op: its operator.
        outcome: what came of it. reason: the code of the outcome, "" where rewritten.
        equivalence: how the rewritten model is equal to the original; "" where nothing was rewritten.
        error: relative Frobenius error of an approximate rewrite, else 0.
        response_error: relative error of the layer's response on real inputs, where the rewrite was fitted to them.
        macs_before, macs_after: multiply-accumulates of the layer at its own size; per cell of its output where that is
            not known; None where the pass does not count them.
        tol_pays, tol_halves: the tolerances from which on the layer would have fewer MACs, and half of them; None
            where the pass does not trade accuracy or none is large enough.
        form, rank: of a factored kernel: the variant of the form, and the rank or ranks that were kept.
    """

    pass_name: str
    anchor: str
    op: str
    outcome: SiteOutcome
    reason: str = ""
    detail: str = ""
    remedy: str = ""
    equivalence: Equivalence | Literal[""] = ""
    error: float = 0.0
    macs_before: int | None = None
    macs_after: int | None = None
    params_before: int = 0
    params_after: int = 0
    response_error: float | None = None
    tol_pays: float | None = None
    tol_halves: float | None = None
    form: str = ""
    rank: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The site as it stands in the report, which has 0 for what is not counted."""
        data = {**vars(self), "macs_before": self.macs_before or 0, "macs_after": self.macs_after or 0}
        data["pass"] = data.pop("pass_name")
        data["rank"] = list(self.rank)
        return data


@dataclass(frozen=True)
class Plan:
    """One way to rewrite one candidate; `apply` does what it says and cannot fail.

    Attributes:
        sites: what the report will say, first the candidate itself.
        payload: what the pass needs to apply it; nobody else looks inside.
        metadata: entries for the model's metadata.
        evidence: facts that verification needs; those of one kind are joined.
        last: it rewrites the graph as a whole, so that no candidate is left.
    """

    sites: tuple[Site, ...]
    payload: Any
    metadata: Mapping[str, str] = field(default_factory=dict)
    evidence: Sequence[Evidence] = ()
    last: bool = False

    def __post_init__(self) -> None:
        if not all(isinstance(fact, Evidence) for fact in self.evidence):
            raise TypeError("the evidence of a plan is a sequence of Evidence, such as [Kernels({anchor: kernel})]")


class Pass(ABC):
    """A rewrite of a graph; a pass inherits from it and is a frozen dataclass.

    Attributes:
        name: in lower case, with hyphens. reasons: all that it can give for leaving a site alone, by code.
        noun: what it rewrites, in "no NOUN"; "" for "place for NAME".
        judge: who decides whether a rewrite is worth it, unless the user says otherwise: "smaller" for a pass whose
            purpose is to save, "always" for one with another purpose.
        command: the command that takes its options, where it has one beside `transform`.
        step_of: the command and the parameter of it that run the pass, where it makes no sense by itself.
        fits: it fits what it makes to `context.responses`, where the user gave real inputs.
    """

    name: ClassVar[str]
    reasons: ClassVar[Mapping[str, Reason]]
    noun: ClassVar[str] = ""
    judge: ClassVar[JudgeName] = "always"
    command: ClassVar[str] = ""
    step_of: ClassVar[tuple[str, str] | None] = None
    fits: ClassVar[bool] = False

    @abstractmethod
    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        """Places worth planning for, among the nodes of the graph.

        They are listed once, and again after all of them were looked at where some were rewritten.
        """

    @abstractmethod
    def plan(self, context: Context, node: gs.Node) -> Sequence[Plan] | Declined | Refusal:
        """Decide everything for one candidate without changing the graph; plans are ranked by cost."""

    @abstractmethod
    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        """Carry out the plan on the graph; it cannot fail."""

    def advice(self) -> str:
        """What the user of the rewritten model has to know, in the place of what was saved; "" for nothing."""
        return ""


Judge = Callable[[gs.Graph, Plan], Declined | None]
"""Says why a legal plan is not worth it, or None to accept it."""


def accept_all(graph: gs.Graph, plan: Plan) -> Declined | None:
    """The judge of passes whose purpose is not speed."""
    return None


BY_PATTERN = Reason(
    "rewrite/left-out", f"{parameter('only')} or {parameter('skip')} leaves this site out", "change the pattern"
)
