"""One command from file to file: load, rewrite, stage, verify, publish. Nothing is published before it was checked.

IN ──load──> graph ──pass──> graph' ──stage──> temporary file ──verify──> rename to OUT
               |                                    |
            refused: exit 3                  failed: exit 1, the temporary file is removed
"""

from __future__ import annotations

from convrewrite.pipeline.any_size import fcn
from convrewrite.pipeline.comparing import compare, time
from convrewrite.pipeline.named import groups, separable, transform
from convrewrite.pipeline.steps import GENERAL, reasons
from convrewrite.pipeline.trading import trade

__all__ = ["GENERAL", "compare", "fcn", "groups", "reasons", "separable", "time", "trade", "transform"]
