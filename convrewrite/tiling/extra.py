"""The libraries of the extra `scale`, imported where they are first needed."""

from __future__ import annotations

import importlib
from typing import Any

from convrewrite.errors import UsageError


def library(name: str) -> Any:
    """A module of the extra. Raises UsageError with the remedy where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"apply needs {name.split('.', 1)[0]} ({error})", remedy='run: pip install "convrewrite[scale]"'
        ) from None
