"""What a pass is, for passes of other packages: the names of `convrewrite.engine.rewrite`."""

from convrewrite.engine.rewrite import Context, Declined, Pass, PassResult, Plan, Reason, Refusal, Site, run_pass

__all__ = ["Context", "Declined", "Pass", "PassResult", "Plan", "Reason", "Refusal", "Site", "run_pass"]
