"""The process of one model: a task as JSON on standard input, the result as one line of JSON on standard output."""

from __future__ import annotations

import json
import os
import sys
import warnings

from convrewrite.batch.work import do
from convrewrite.errors import InstallationWarning
from convrewrite.system import board, children


def main() -> None:
    """Do one task; whatever else prints goes to standard error."""
    children.die_with(os.getppid())
    board.join()
    warnings.simplefilter("ignore", InstallationWarning)  # of which the process that started this one has told
    answer = os.dup(1)
    os.dup2(2, 1)
    result = do(json.load(sys.stdin))
    with os.fdopen(answer, "w", encoding="utf-8") as file:
        json.dump(result, file, allow_nan=True)
    children.leave(0)


if __name__ == "__main__":
    main()
