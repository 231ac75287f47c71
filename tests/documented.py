"""What the tests that run the documentation share: where its pages are, and a shell that runs what they show."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

OF_THESE_TESTS = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
"""What the environment of the tests says about Python; a reader's does not."""


def shell(command: str, folder: Path, *, merged: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run what a page shows, as a script that ends at the first command that fails.

    Args:
        merged: standard error goes into standard output, in the order in which both are printed.
        environment: variables beside those that are set.
    """
    kept = {name: value for name, value in os.environ.items() if name not in OF_THESE_TESTS}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        text=True,
        check=False,
    )
