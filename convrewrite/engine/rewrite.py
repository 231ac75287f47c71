"""The one runner that no pass can skip.

`contract` says what a pass is. `run_pass` owns the rest: the copy, the context, the judge, the iteration bound, the
clean-up and the checks on the result.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from convrewrite.engine.context import Context, Responses
from convrewrite.engine.contract import (
    BY_PATTERN,
    Declined,
    Equivalence,
    Judge,
    JudgeName,
    Pass,
    Plan,
    Reason,
    Refusal,
    Site,
    SiteOutcome,
    accept_all,
    option,
    option_defaults,
)
from convrewrite.engine.evidence import Density, Evidence, FixedSize, Kernels, Lifting
from convrewrite.engine.graph import add_types, sort_nodes
from convrewrite.engine.skeletons import skeleton, tolerant
from convrewrite.errors import ConvrewriteError, PassFault, Terminated, UsageError
from convrewrite.system.board import doing
from convrewrite.system.children import no_fork_returns
from convrewrite.text import PYTHON, told

__all__ = [
    "BY_PATTERN",
    "Context",
    "Declined",
    "Density",
    "Equivalence",
    "Evidence",
    "FixedSize",
    "Judge",
    "JudgeName",
    "Kernels",
    "Lifting",
    "Pass",
    "PassResult",
    "Plan",
    "Reason",
    "Refusal",
    "Responses",
    "Site",
    "SiteOutcome",
    "accept_all",
    "option",
    "option_defaults",
    "run_pass",
]


Fact = TypeVar("Fact", bound=Evidence)


@dataclass(frozen=True)
class PassResult:
    """What a pass made of a graph.

    Attributes:
        graph: the rewritten graph (a copy; the input's is untouched). sites: every place that was looked at.
        metadata: entries for the model's metadata. evidence: facts that verification needs, one of each kind.
    """

    graph: gs.Graph
    sites: tuple[Site, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    evidence: Sequence[Evidence] = ()

    def evidence_of(self, kind: type[Fact]) -> Fact | None:
        """The fact of that kind, if a plan gave one."""
        return next((fact for fact in self.evidence if isinstance(fact, kind)), None)

    def outcome(self, outcome: SiteOutcome) -> tuple[Site, ...]:
        """The sites that have this outcome."""
        return tuple(site for site in self.sites if site.outcome == outcome)

    @property
    def changed(self) -> bool:
        """Whether anything was rewritten."""
        return bool(self.outcome("rewritten"))

    def __str__(self) -> str:
        rows = (f"{s.outcome:9}  {s.op:12}  {s.anchor}  {s.detail}" for s in self.sites)
        return told("\n".join(rows), PYTHON) or "no candidate"


def run_pass(
    pass_: Pass,
    graph: gs.Graph,
    *,
    judge: Judge = accept_all,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    context: Context | None = None,
) -> PassResult:
    """Run one pass over a copy of a graph and check the contract around it. What a plan made is not planned again.

    Args:
        pass_: the pass. graph: left as it is; the copy shares its tensors.
        judge: accepts or declines each legal plan; the first accepted plan of a candidate is applied.
        only, skip: globs on node and tensor names that choose the candidates.
        context: what is known of `graph`; left out, all of it is found from the graph.

    Raises:
        ConvrewriteError: the pass broke the contract (an internal error: the result does not pass the checks).
    """
    came = Context.of(graph) if context is None else context
    work = graph.copy()
    untyped = add_types(work)  # for the passes; the file goes on without
    sites: list[Site] = []
    metadata: dict[str, str] = {}
    evidence: dict[type[Evidence], Evidence] = {}
    walk = _Walk(pass_, work)
    for _ in range(2 * len(graph.nodes) + 16):
        node = walk.next()
        if node is None:
            break
        walk.seen.add(_anchor(node))
        outcome = _plan(pass_, came.at(work), node, judge, only=only, skip=skip)
        if isinstance(outcome, Plan):
            with _blamed(pass_, f"apply at {_anchor(node)}"):
                pass_.apply(work, outcome)
            metadata.update(outcome.metadata)
            _join(evidence, outcome.evidence)
            sites.extend(outcome.sites)
            walk.seen.update(site.anchor for site in outcome.sites)
            walk.rewrote(node)
            if outcome.last:
                break
        else:
            sites.append(outcome)
    if any(site.outcome == "rewritten" for site in sites):
        try:
            sort_nodes(work.cleanup(remove_unused_graph_inputs=False))
        except UsageError as error:  # the graph that came had an order
            raise ConvrewriteError(f"pass '{pass_.name}' gave a graph without an order: {error.message}") from error
        for name, tensor in work.tensors().items():
            if name in untyped and isinstance(tensor, gs.Variable):
                tensor.dtype = None
        _check(pass_, graph, work)
    return PassResult(work, tuple(sites), metadata, tuple(evidence.values()))


class _Walk:
    """The candidates of a pass among the nodes that were there, each once, while the graph changes.

    They are listed at the beginning, and again at the end of a list during which something was rewritten: a rewrite may
    make candidates of nodes that were none.
    """

    def __init__(self, pass_: Pass, graph: gs.Graph) -> None:
        self.seen: set[str] = set()
        self._pass, self._graph = pass_, graph
        self._old = list(graph.nodes)  # kept alive, so that the identity of none of them is given to a new node
        self._known = {id(node) for node in self._old}
        self._there: set[int] | None = None
        self._listed: Iterator[gs.Node] | None = None
        self._changed = False

    def next(self) -> gs.Node | None:
        """The next one; None after the last."""
        while True:
            if self._listed is None:
                with _blamed(self._pass, "candidates"):
                    self._listed = iter([n for n in self._pass.candidates(self._graph) if id(n) in self._known])
                self._changed = False
            for node in self._listed:
                if _anchor(node) not in self.seen and self._is_there(node):
                    return node
            if not self._changed:
                return None
            self._listed = None

    def rewrote(self, node: gs.Node) -> None:
        """Note that the graph is another; a candidate that stayed under another name comes next, if it still is one."""
        self._changed, self._there = True, None
        if _anchor(node) not in self.seen and self._is_there(node):
            self._listed = None

    def _is_there(self, node: gs.Node) -> bool:
        if self._there is None:
            self._there = {id(other) for other in self._graph.nodes}
        return id(node) in self._there


@contextlib.contextmanager
def _blamed(pass_: Pass, part: str) -> Iterator[None]:
    """Note which part of a pass runs; what one of another package raises, also to end the process, is its own fault."""
    module = type(pass_).__module__
    foreign = module.partition(".")[0] != __name__.partition(".")[0]
    whose = f" of {module}" if foreign else ""
    with doing(f"in the {part} by pass '{pass_.name}'{whose}"), no_fork_returns():
        try:
            yield
        except (ConvrewriteError, Terminated, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            if not foreign:
                raise
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise PassFault(
                f"pass '{pass_.name}'{whose} failed in the {part}: {text}", remedy="tell its authors"
            ) from error


def _join(evidence: dict[type[Evidence], Evidence], more: Sequence[Evidence]) -> None:
    for fact in more:
        known = evidence.get(type(fact))
        evidence[type(fact)] = fact if known is None else known.joined(fact)


def _anchor(node: gs.Node) -> str:
    return str(next((tensor.name for tensor in node.outputs if tensor.name), node.name))


def _plan(
    pass_: Pass, context: Context, node: gs.Node, judge: Judge, only: Sequence[str], skip: Sequence[str]
) -> Plan | Site:
    """The accepted plan for a candidate, or the site that says why there is none.

    A pattern means the candidate, or any other site of a plan that rewrites several as one.
    """
    site = Site(pass_.name, _anchor(node), node.op, "declined")
    with _blamed(pass_, f"plan of {_anchor(node)}"):
        outcome = () if _matches(skip, [node]) else pass_.plan(context, node)
    plans = () if isinstance(outcome, Refusal | Declined) else outcome
    anchors = {site.anchor for plan in plans[:1] for site in plan.sites}  # those of the others are the same
    named = [node]
    if anchors and (only or skip):
        named += [n for n in context.graph.nodes if any(t.name in anchors for t in n.outputs)]
    if (only and not _matches(only, named)) or _matches(skip, named):
        detail = f"{node.op} '{node.name or _anchor(node)}'"
        return replace(site, reason=BY_PATTERN.code, detail=detail, remedy=BY_PATTERN.remedy)
    if isinstance(outcome, Refusal | Declined):
        kind: SiteOutcome = "refused" if isinstance(outcome, Refusal) else "declined"
        reason = outcome.reason
        if isinstance(outcome, Declined) and outcome.known is not None:
            return _left_alone(site, outcome.known, reason.code, outcome.detail, remedy=reason.remedy)
        return replace(site, outcome=kind, reason=reason.code, detail=outcome.detail, remedy=reason.remedy)
    declined: Declined | None = None
    for plan in outcome:
        verdict = judge(context.graph, plan)
        if verdict is None:
            return plan
        declined = declined or verdict
    if declined is None:
        raise ConvrewriteError(f"pass {pass_.name} returned no plan for {site.anchor} and no reason")
    told = declined.reason.code, declined.detail, declined.reason.remedy
    return _left_alone(site, outcome[0].sites[0], *told)


def _left_alone(site: Site, first: Site, reason: str, detail: str, remedy: str) -> Site:
    """A site that stays as it is, with what the pass knows of its cost."""
    return replace(
        site,
        reason=reason,
        detail=detail,
        remedy=remedy,
        macs_before=first.macs_before,
        macs_after=first.macs_before,
        params_before=first.params_before,
        params_after=first.params_before,
        tol_pays=first.tol_pays,
        tol_halves=first.tol_halves,
    )


def _matches(patterns: Sequence[str], nodes: Sequence[gs.Node]) -> bool:
    names = {name for node in nodes for name in (node.name, *(tensor.name for tensor in node.outputs))}
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _check(pass_: Pass, before: gs.Graph, after: gs.Graph) -> None:
    """The contract: a valid graph with the same inputs and outputs of the same types."""
    for kind, old, new in (("input", before.inputs, after.inputs), ("output", before.outputs, after.outputs)):
        types = [(t.name, _dtype(t)) for t in old], [(t.name, _dtype(t)) for t in new]
        if types[0] != types[1]:
            raise ConvrewriteError(f"pass {pass_.name} changed the graph's {kind}s from {types[0]} to {types[1]}")
    result = skeleton(after)
    for check in (_checker_fault, _inference_fault):
        fault = check(result)
        if fault and not check(skeleton(before)):  # what the file itself does not pass is not asked of the result
            raise ConvrewriteError(f"pass {pass_.name} built a graph that is not valid ONNX: {fault}")


def _checker_fault(model: onnx.ModelProto) -> str:
    """What the ONNX checker has against a model; empty where nothing."""
    try:
        onnx.checker.check_model(tolerant(model))
    except onnx.checker.ValidationError as error:
        return " ".join(str(error).split())
    return ""


def _inference_fault(model: onnx.ModelProto) -> str:
    """What shape and type inference have against a model; empty where nothing."""
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        return " ".join(str(error).split())
    return ""


def _dtype(tensor: gs.Tensor) -> str:
    dtype = tensor.dtype
    return str(dtype if dtype is None or isinstance(dtype, int | onnx.TypeProto) else np.dtype(dtype))
