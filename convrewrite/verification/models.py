"""The two models of a verification as it runs them, and their float surrogates where they are quantized.

    original    as it is     |  with the other graph optimizations: its own noise
    rewritten   as it is     |
    both        without their quantization (see `surrogate`): these have to agree as tightly as float models

Where the surrogates agree, and both models round with the same scales and zero points, what is left of a difference is
numbers that fell to the other side of a step. The outputs may then differ by what such steps were seen to do to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convrewrite.errors import UsageError, said
from convrewrite.text import parameter
from convrewrite.verification import exposure, surrogate
from convrewrite.verification.comparison import TOLERANCE
from convrewrite.verification.reference import open_reference
from convrewrite.verification.specimens import Runner, Specimen, open_specimen
from convrewrite.verification.twins import Across, across
from convrewrite.verification.verdicts import Verification

REFERENCES = ("onnxruntime", "onnx")
"""What can say how the original behaves."""

WITHOUT = "without quantization"
"""What sets the checks of the float surrogates apart."""


@dataclass(frozen=True)
class Models:
    """The two models, and the original with the other graph optimizations; `truth`: the original elsewhere, if wanted.

    They run with all optimizations and `otherwise` without; where they hold integers, it is the other way round.

    Attributes:
        bare: the float surrogates; None where nothing rounds, or where they cannot be had: `because` says why.
        same_steps: whether both models round with the same scales and zero points.
        across: their precisions, where these differ and may.
        one_rounds: which of the two is quantized, in words, where the other is not.
    """

    reference: Specimen
    otherwise: Specimen
    rewritten: Specimen
    truth: Specimen | None = None
    bare: Models | None = None
    because: str = ""
    same_steps: bool = True
    across: Across | None = None
    one_rounds: str = ""

    @property
    def twin(self) -> Specimen | None:
        """The rewritten model, where it is of another precision."""
        return self.rewritten if self.across is not None else None

    def facts(self, inner: Verification | None = None) -> dict[str, Any]:
        """What a verification says of where they ran; `inner` is that of the surrogates."""
        sessions = {"original": self.reference.session, "rewritten": self.rewritten.session}
        return {
            "provider": self.rewritten.session.provider,
            "nodes": {model: session.nodes for model, session in sessions.items()},
            "warnings": tuple(self._warnings(sessions.values(), inner)),
        }

    def _warnings(self, sessions: Iterable[Runner], inner: Verification | None) -> Iterator[str]:
        yield from (session.warning for session in sessions if session.warning)
        if self.across is not None:
            yield str(self.across)
        if self.one_rounds:
            accepted = f"{parameter('max_output_error', 'E')} accepts it up to E"
            yield f"{self.one_rounds}: what that does counts as a difference; {accepted}"
        if not self.reference.rounds:
            return
        how = (
            "activations are quantized: the models were compared without graph optimizations, with which ONNX "
            "Runtime rounds otherwise, in the original too (own noise); "
        )
        if inner is not None and inner.worst is not None and inner.worst.error is not None:
            error = f"{inner.worst.error:.1e} (tolerance {inner.worst.tolerance or 0.0:.1e})"
            how += f"without their quantization they differ by {error}"
        elif self.because:
            how += f"they were not compared without their quantization: {self.because}"
        if self.reference.proven:
            yield how + "; with it, by what numbers on the other side of a step were seen to do"
            return
        steps = "" if self.same_steps else "; their scales or zero points differ"
        yield how.rstrip("; ") + (
            f"{steps}; a sum in another order may round to the next step, so one step is tolerated"
        )

    def proven_by(self, inner: Verification | None) -> Models:
        """The models as they are judged once the surrogates are compared."""
        known = inner is not None and inner.passed and self.same_steps
        return replace(self, reference=replace(self.reference, proven=True)) if known else self


def open_models(
    a_path: str | Path, b_path: str | Path, provider: str, reference: str = "onnxruntime", *, twins: bool = False
) -> Models:
    """Open both; `twins` may be of other precision. Raises UsageError where one does not load."""
    if reference not in REFERENCES:
        raise UsageError(f"unknown reference '{reference}'", remedy=f"choose one of {', '.join(REFERENCES)}")
    original = open_specimen(a_path, provider, reference=True)
    otherwise = open_specimen(a_path, provider, usual=False, reference=True)
    truth = open_reference(original) if reference == "onnx" else None
    found = across(*(exposure.read_sketch(path).model for path in (a_path, b_path))) if twins else None
    original = replace(original, twins=twins, coarse=found.eps if found else 0.0)
    rewritten = open_specimen(b_path, provider)
    models = Models(original, otherwise, rewritten, truth, across=found, one_rounds=_one_rounds(original, rewritten))
    if not original.rounds or truth is not None:
        return models
    steps = [surrogate.parameters(exposure.read_sketch(path).model) for path in (a_path, b_path)]
    models = replace(models, same_steps=steps[0] == steps[1])
    try:
        return replace(models, bare=_bare(a_path, b_path, provider))
    except surrogate.NoSurrogate as error:
        return replace(models, because=said(error))
    except (UsageError, ValueError) as error:
        return replace(models, because=f"their surrogates do not load: {said(error)}")


def _bare(a_path: str | Path, b_path: str | Path, provider: str) -> Models:
    how: dict[str, Any] = {"reference": True, "variant": surrogate.remove_rounding}
    original, rewritten = open_specimen(a_path, provider, **how), open_specimen(b_path, provider, **how)
    return Models(original, open_specimen(a_path, provider, usual=False, **how), rewritten)


def joined(found: Verification, inner: Verification | None) -> Verification:
    """One verification of the models and of their surrogates; those are told of where anything differed."""
    if inner is None:
        return found
    differ = any((case.error or 0.0) > TOLERANCE for case in found.cases if case.status == "passed")
    if inner.passed and not differ:
        return found
    cases = [replace(case, name=f"{case.name} {WITHOUT}") for case in inner.cases if case.status != "skipped"]
    failing = found.failing if found.failing is not None else inner.failing
    there, inside = found.divergence, inner.divergence
    if there is not None and inside is not None and not there.tensor and not inner.passed:
        there = replace(inside, note="; ".join(part for part in (WITHOUT, inside.note) if part))
    return replace(found, cases=(*found.cases, *cases), failing=failing, divergence=there)


def _one_rounds(original: Specimen, rewritten: Specimen) -> str:
    """Which of two models is quantized where the other is not; "" where both are or none is."""
    if original.rounds != rewritten.rounds:
        which = ("the other model", "the original") if rewritten.rounds else ("the original", "the other model")
        return f"{which[0]} is quantized (it rounds its activations to integers) and {which[1]} is not"
    stored = [exposure.holds_integers(specimen.read().model) for specimen in (original, rewritten)]
    return "the other model is quantized (it stores its weights as integers)" if stored == [False, True] else ""
