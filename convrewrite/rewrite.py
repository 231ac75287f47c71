"""What a pass is, for passes of other packages: the names of `convrewrite.engine.rewrite`, and how to name options."""

from convrewrite.engine.rewrite import Context, Declined, Pass, PassResult, Plan, Reason, Refusal, Site, run_pass
from convrewrite.text import parameter

__all__ = ["Context", "Declined", "Pass", "PassResult", "Plan", "Reason", "Refusal", "Site", "parameter", "run_pass"]
