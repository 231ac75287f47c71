"""What a pass is, for passes of other packages: the names of `convrewrite.engine.rewrite`, and how to name options."""

from convrewrite.engine.rewrite import (
    Context,
    Declined,
    Evidence,
    FixedSize,
    Kernels,
    Pass,
    PassResult,
    Plan,
    Reason,
    Refusal,
    Site,
    option,
    run_pass,
)

__all__ = [
    "Context",
    "Declined",
    "Evidence",
    "FixedSize",
    "Kernels",
    "Pass",
    "PassResult",
    "Plan",
    "Reason",
    "Refusal",
    "Site",
    "option",
    "run_pass",
]
