"""Is a legal rewrite worth it? The judges, shared by every pass that trades something.

    smaller      fewer multiply-accumulates
    Faster       timed in ONNX Runtime at its real input shape, each site by itself (`regions`); `decisions` remembers
    accept_all   whatever is legal
    within       the sites that save the most per error, while the error of the model's outputs stays under a bound

and `with_kernels`, the original with the kernels that an approximate rewrite amounts to: what it is verified against.
"""

from __future__ import annotations

from convrewrite.acceptance.budget import within
from convrewrite.acceptance.decisions import Decision, Decisions, device
from convrewrite.acceptance.judges import (
    COUNTING,
    NOT_FASTER,
    NOT_SMALLER,
    OVER_BUDGET,
    REASONS,
    WHOLE_NOT_FASTER,
    Faster,
    smaller,
)
from convrewrite.acceptance.reference import shaken, with_kernels
from convrewrite.acceptance.regions import structure_key
from convrewrite.engine.rewrite import accept_all

__all__ = [
    "COUNTING",
    "NOT_FASTER",
    "NOT_SMALLER",
    "OVER_BUDGET",
    "REASONS",
    "WHOLE_NOT_FASTER",
    "Decision",
    "Decisions",
    "Faster",
    "accept_all",
    "device",
    "shaken",
    "smaller",
    "structure_key",
    "with_kernels",
    "within",
]
