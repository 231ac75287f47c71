"""The commands that trade something, `separable` and `groups`: a rewrite is made where a judge finds it worth it.

IN ──load──> graph ──pass, judged site by site──> graph' ──stage──> temporary file ──verify──> rename to OUT
               |                    |                                    |
            refused: exit 3     nothing worth it: IN is copied       against IN with the kernels that the rewrite
                                                                     amounts to; its distance from IN itself is stated
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite import acceptance, model_io, timing, verification
from convrewrite.acceptance import Decisions, Faster
from convrewrite.engine import costs
from convrewrite.engine.graph import control_nodes
from convrewrite.engine.rewrite import Context, Judge, Kernels, Pass, PassResult, option_defaults, run_pass
from convrewrite.errors import UsageError
from convrewrite.model_io import Model
from convrewrite.options import (
    BenchOptions,
    TradeOptions,
    TransformOptions,
    VerifyOptions,
)
from convrewrite.pipeline import fixing
from convrewrite.pipeline.files import (
    as_file,
    copied,
    fixed_defaults,
    input_facts,
    load,
    output_facts,
    refuse_stream_target,
    same_file,
)
from convrewrite.pipeline.native import Native, check_known, native
from convrewrite.pipeline.outcome import STREAM, Log, ModelPair, Outcome
from convrewrite.pipeline.responses import Collected
from convrewrite.pipeline.steps import OTHERWISE, again, check_patterns, check_provider, meaning, obtained, refusal
from convrewrite.pipeline.worth import dearer, helpful
from convrewrite.running.installed import check_installation
from convrewrite.system import atomic
from convrewrite.text import Call, by, parameter
from convrewrite.verification import Verification
from convrewrite.verification.comparison import LARGEST_PART, LARGEST_TOLERANCE, NOISE_FACTOR, TOLERANCE
from convrewrite.verification.stated import joined, output_error, part_error, state
from convrewrite.verification.verdicts import MISMATCHES, RELATIVE

WHOLE_SECONDS = 5.0
"""Of timing the whole model."""


@dataclass(kw_only=True)
class _Run:
    """One run of a command, from the model that was read to the rewritten graph."""

    model: Model
    pass_: Pass
    options: TradeOptions
    at: Native
    original: Path
    folder: Path
    decisions: Decisions
    log: Log
    context: Context
    fixed: fixing.Shapes = dataclasses.field(default_factory=dict)

    def result(self) -> PassResult:
        """The graph with the rewrites that the judge accepts."""
        judge = self._judge()
        limit = self.options.limit
        if limit is None:
            return self._pass(judge)
        return acceptance.within(self._pass, judge, self._error, limit)

    def _pass(self, judge: Judge) -> PassResult:
        options = self.options
        found = run_pass(
            self.pass_, self.model.graph, judge=judge, only=options.only, skip=options.skip, context=self.context
        )
        self.fixed = fixing.fixed(found, self.at)
        return found

    def _judge(self) -> Judge:
        if self.options.accept != "faster":
            return acceptance.COUNTING[self.options.accept]
        provider = obtained(self.options.provider)
        return Faster(
            self.pass_,
            self.at.tensors,
            self.model.ir_version,
            decisions=self.decisions,
            provider=provider,
            threads=timing.cores(),
        )

    def _error(self, result: PassResult) -> float:
        """How far the outputs of a rewritten graph are from the original's."""
        path = model_io.save(replace(self.model, graph=result.graph), self.folder / "trial.onnx")
        return output_error(self._state(self.original, path))

    @property
    def how(self) -> VerifyOptions:
        """What `verification` takes; the bound on the outputs is another one in each comparison."""
        if self.options.data is None:
            check_known(self.model, self.at, _KNOWN)
        return replace(self.options.comparing(size=self.at.size), max_output_error=None)

    def _state(self, a: Path, b: Path, limit: float | None = None) -> Verification:
        return state(a, b, self.how, limit=limit, fixed=self.fixed)

    def verified(self, result: PassResult, staged: Path) -> Verification:
        """The staged file against the original, and where it is approximate against its kernels."""
        limit = self.options.limit
        kernels = result.evidence_of(Kernels)
        if all(site.equivalence != "approximate" for site in result.outcome("rewritten")):
            return self._equal(self.original, staged, kernels, limit)
        if kernels is None:  # a pass that does not say what its kernels amount to: its distance is stated, no more
            return self._state(self.original, staged, limit)
        reference = self._with(kernels, "reference.onnx")
        equal = self._equal(reference, staged, kernels, None)
        return joined(equal, self._state(self.original, staged, limit))

    def _equal(self, reference: Path, staged: Path, kernels: Kernels | None, limit: float | None) -> Verification:
        """Equal to rounding; where it seems not to be, with the rounding of the new kernels themselves as the noise."""
        how = replace(self.how, max_output_error=limit)
        found = verification.verify(reference, staged, how, fixed=self.fixed)
        if found.verdict != "failed" or limit is not None or kernels is None:
            return found
        exact, moved = self._with(kernels, "exact.onnx"), self._with(acceptance.shaken(kernels), "shaken.onnx")
        shaken = self._state(exact, moved)
        noise, part = NOISE_FACTOR * output_error(shaken), NOISE_FACTOR * part_error(shaken)
        if noise >= LARGEST_TOLERANCE or max(noise, part) <= TOLERANCE:
            return found
        return verification.verify(reference, staged, how, fixed=self.fixed, least=(noise, min(part, LARGEST_PART)))

    def _with(self, kernels: Kernels, name: str) -> Path:
        """The original with other kernels, as a file."""
        graph = acceptance.with_kernels(self.model.graph, kernels)
        return model_io.save(replace(self.model, graph=graph), self.folder / name)

    def whole(self, result: PassResult, staged: Path, target: str) -> bool:
        """Whether the whole model is faster too; the benchmark is noted."""
        where = acceptance.device(obtained(self.options.provider), timing.cores())
        key = acceptance.structure_key([self.model.graph, result.graph], self.at.inputs)
        known = self.decisions.get(where, key)
        if known is None:
            sizes = [] if self.at.size is None else [self.at.size]
            how = BenchOptions(sizes=sizes, seconds=WHOLE_SECONDS, provider=self.options.provider, memory=False)
            found = timing.bench(self.original, staged, how).check()
            known = acceptance.Decision.of(found)
            self.decisions.put(where, key, known)
            named = replace(found, a=self.log.outcome.input.path if self.log.outcome.input else "", b=target)
            self.log.note(bench=named)
        return known.verdict == timing.FASTER


def trade(source: str, target: str, pass_: Pass, options: TradeOptions) -> Outcome:
    """Run a pass whose rewrites cost something: read `source`, write `target` ("-" is standard input or output).

    Whatever stops it is the outcome's `error`, and then nothing was written; `Outcome.check` raises it.
    """
    log = Log(Outcome(pass_.name, options.provider, "error"))
    with log.until_error():
        _trade(source, target, pass_, options, log=log)
    return log.outcome


def _trade(source: str, target: str, pass_: Pass, options: TradeOptions, *, log: Log) -> None:
    if options.verify:
        check_installation()
    if pass_.step_of is not None:
        command, option = pass_.step_of
        remedy = f"run {Call(command, given={option: '...'})}"
        raise UsageError(f"the pass {pass_.name} is a step of {command}", remedy=remedy)
    check_provider(options.provider)
    refuse_stream_target(target)
    decisions = Decisions.read(options.timings)
    model = log.reads(load(source))
    check_patterns(model.graph, options)
    at = native(model, options.size, options.data)
    log.note(input=replace(input_facts(model, source), macs=at.macs(model.graph)))
    if options.accept == "faster" and (at.assumed or not at.tensors):
        raise UsageError(
            f"{parameter('accept', 'faster')} times layers at their real shapes, and the input is open", remedy=_SIZE
        )
    with atomic.scratch() as name:
        folder = Path(name)
        original = model.path or as_file(model, folder / "original.onnx")
        _check_finite(options.data)
        context = _context(model, pass_, at, options)
        run = _Run(
            model=model,
            pass_=pass_,
            options=options,
            at=at,
            original=original,
            folder=folder,
            decisions=decisions,
            log=log,
            context=context,
        )
        try:
            result = run.result()
        finally:
            decisions.save()  # what was timed is kept, also where Ctrl-C ends the rest
        result = replace(result, sites=tuple(helpful(site, pass_) for site in result.sites))
        log.note(sites=result.sites)
        _check_refused(pass_, result)
        if not result.changed:
            log.note(advice=_nothing(pass_, result, model.graph))
            copied(model, source, target, log)
        else:
            _publish(run, result, source, target)
            decisions.save()


def _context(model: Model, pass_: Pass, at: Native, options: TradeOptions) -> Context:
    """What the pass may ask about the model.

    Raises:
        UsageError: the data does not fit the inputs.
    """
    responses: Collected | None = None
    if options.fits and pass_.fits and options.data is not None:
        responses = Collected.read(model, options.data, at, options.provider, seed=options.seed)
    sized = fixing.given(model.graph, at) if at.size is not None and not at.assumed else None
    return Context.of(model.graph, shapes=at.tensors, sized=sized, responses=responses)


_SIZE = f"give {parameter('size')} with the size that it is used at"
_KNOWN = f"give {parameter('size')} with one that it runs at, or real inputs with {parameter('data', 'F.npz')}"


def _check_finite(data: Mapping[str, Any] | None) -> None:
    """Raise UsageError where the user's inputs hold NaN or Inf."""
    for name, array in (data or {}).items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            sample = int(np.argwhere(~np.isfinite(array))[0][0]) if array.ndim else 0
            raise UsageError(
                f"array '{name}' of the data holds NaN or Inf, first in sample {sample}", remedy="correct it"
            )


def _check_refused(pass_: Pass, result: PassResult) -> None:
    """Raise Refused where a site refuses the model as a whole, or where there are only refused sites."""
    refused = result.outcome("refused")
    whole = [site for site in refused if site.reason in pass_.reasons and pass_.reasons[site.reason].whole]
    if whole:
        raise refusal(pass_, whole[0])
    if refused and len(refused) == len(result.sites):
        raise refusal(pass_, refused[0])


def _publish(run: _Run, result: PassResult, source: str, target: str) -> None:
    """Stage the rewritten model, verify the staged file, then publish it or leave no trace."""
    after = replace(run.model, graph=result.graph, metadata={**run.model.metadata, **result.metadata})
    run.log.note(ends=ModelPair(run.model, after, run.at.inputs, run.options.data))
    run.log.note(warnings=(*fixed_defaults(run.model, after), *dearer(result)))
    path = run.folder / "rewritten.onnx" if target == STREAM else Path(target)
    with model_io.staged(after, path) as staged:
        facts = replace(output_facts(after, staged, target), macs=run.at.macs(after.graph))
        if run.options.verify:
            found = replace(
                run.verified(result, staged.path), command=_repeat(run, source, target), otherwise=OTHERWISE
            )
            run.log.note(verification=found, provider=found.provider)
            found.check()
        else:
            run.log.note(verification=Verification.not_run(parameter("verify", False)))
        if run.options.accept == "faster" and not run.whole(result, staged.path, target):
            _taken_back(run, result, source, target)
            return
        if target == STREAM:
            model_io.write_stream(after, sys.stdout.buffer)
        else:
            staged.commit()
    run.log.note(status="rewritten", output=facts)
    run.log.note(advice=_next(run, source, target))


def _taken_back(run: _Run, result: PassResult, source: str, target: str) -> None:
    """The whole model is not faster: the file is copied, and every site says why."""
    reason = acceptance.WHOLE_NOT_FASTER
    sites = tuple(
        replace(
            site,
            outcome="declined",
            reason=reason.code,
            remedy=reason.remedy,
            equivalence="",
            error=0.0,
            response_error=None,
            macs_after=site.macs_before,
            params_after=site.params_before,
            form="",
            rank=(),
        )
        if site.outcome == "rewritten"
        else site
        for site in result.sites
    )
    run.log.note(
        sites=sites, verification=None, ends=None, advice=f"nothing to do: {reason.meaning}; copied byte for byte"
    )
    copied(run.model, source, target, run.log)


def _nothing(pass_: Pass, result: PassResult, graph: gs.Graph) -> str:
    """Why the file was copied."""
    if not result.sites:
        what = pass_.noun or f"place for {pass_.name}"
        where = " outside of subgraphs" if control_nodes(graph) else ""
        return f"nothing to do: no {what}{where}; copied byte for byte"
    first = {site.reason: site for site in result.sites}
    if len(result.sites) == 1:
        site = result.sites[0]
        return f"nothing to do: {site.detail} [{site.reason}]; copied byte for byte"
    told = ", ".join(f"{meaning(pass_, site)} [{reason}]" for reason, site in sorted(first.items()))
    return f"nothing to do at any of {len(result.sites)} sites: {told}; copied byte for byte"


def _next(run: _Run, source: str, target: str) -> str:
    """What it cost and what it saved; what is left to do."""
    outcome = run.log.outcome
    before, after = (facts.macs if facts is not None else None for facts in (outcome.input, outcome.output))
    saved = None if not before or after is None else 1 - after / before
    parts = []
    if saved is not None and (saved > 0 or run.pass_.judge == "smaller"):
        left = costs.told_uncounted(costs.uncounted(run.model.graph))
        fewer = f"{saved:.0%} fewer multiply-accumulates" if saved > 0 else "no fewer MACs"
        parts.append(f"{-saved:.0%} more multiply-accumulates" if saved <= -0.005 else fewer)
        parts[-1] += f" ({left})" if left else ""
    if run.pass_.advice():
        parts = [run.pass_.advice()]
    if isinstance(run.options, TransformOptions) and run.options.accept == "always":
        parts.append(f"whatever could be rewritten was ({parameter('accept', 'smaller')} asks whether it is worth it)")
    stated = [c for c in outcome.verification.cases if c.status == "stated"] if outcome.verification else []
    error = max((case.error or 0.0 for case in stated if case.metric == RELATIVE), default=None)
    changed = any(case.error for case in stated if case.metric == MISMATCHES)
    agreements = [c.metrics.top1_agreement for c in stated if c.metrics and c.metrics.top1_agreement is not None]
    changed |= min(agreements, default=1.0) < 1.0
    if error is not None:
        parts.append(f"outputs moved by {error:.1e} of the largest")
    if stated:
        error = error or 0.0
        if saved is not None and (error > max(saved, 0.0) or changed):
            given = run.options.data is not None
            remedy = f"lower {parameter('tol')}" if "tol" in option_defaults(run.pass_) else "lower the tolerance"
            remedy += "" if given else f", or give real inputs with {parameter('data')}"
            why = "the outputs moved by more than was saved" if error > max(saved, 0.0) else "some classes changed"
            parts.append(f"a bad trade, {why}: {remedy}")
    for input_, shape in run.fixed.items():
        parts.append(
            f"input '{input_}' is fixed at {by(shape)} now, as {parameter('size')} says: it takes no other size"
        )
    if run.at.assumed and run.at.size:
        parts.append(
            f"counted and checked at {by(run.at.size)}, since the input is open ({parameter('size')} names another)"
        )
    if not run.options.verify:
        parts.append(f"it was NOT verified; leave {parameter('verify', False)} out to do so")
    elif run.options.accept != "faster" and STREAM not in (source, target) and not same_file(source, target):
        sizes = [tuple(run.at.size)] if run.at.size else None
        parts.append(f"time it with: {Call('bench', (source, target), {'sizes': sizes})}")
    return "; ".join(parts)


def _repeat(run: _Run, source: str, target: str) -> Call:
    """What repeats it: the rewrite itself, which writes nothing where it fails."""
    pass_, options = run.pass_, run.options
    own = pass_.command
    values = {name: (getattr(pass_, name), default) for name, default in option_defaults(pass_).items()}
    fields = {name: value for name, (value, default) in values.items() if value != default}
    accept = options.accept if options.accept != (pass_.judge if own else "always") else None
    fit = False if options.data is not None and not options.fits and pass_.fits else None
    given = {**(fields if own else {"fields": fields}), "accept": accept, "size": options.size}
    given |= again(options, fit=fit)
    if own:
        return Call(own, (source, target), given)
    return Call("transform", (pass_.name, source, target), given)
