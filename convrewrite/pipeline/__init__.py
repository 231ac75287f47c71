"""One command from file to file: load, rewrite, stage, verify, publish. Nothing is published before it was checked.

IN ──load──> graph ──pass──> graph' ──stage──> temporary file ──verify──> rename to OUT
               |                                    |
            refused: exit 3                  failed: exit 1, the temporary file is removed
"""

from __future__ import annotations

from convrewrite.pipeline.any_size import Map, fcn
from convrewrite.pipeline.comparing import compare, time
from convrewrite.pipeline.steps import GENERAL, reasons
from convrewrite.pipeline.trading import ACCEPT, Trade, trade

__all__ = ["ACCEPT", "GENERAL", "Map", "Trade", "compare", "fcn", "reasons", "time", "trade"]
