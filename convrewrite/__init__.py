"""convrewrite: every equivalent form of a convolution layer, for ONNX, proved equal before it is written.

    import convrewrite as cr

    m = cr.load("classifier.onnx")
    r = cr.fcn(m)
    cr.verify(m, r.model)
    r.save("any-size.onnx")

`convrewrite.api` documents the functions. They are imported when they are first asked for.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convrewrite.api import Result, apply, bench, fcn, groups, inspect, load, separable, transform, verify
    from convrewrite.errors import CheckFailed, ConvrewriteError, Refused, UsageError

try:
    __version__ = version("convrewrite")
except PackageNotFoundError:  # a checkout on PYTHONPATH
    __version__ = "0.2.0"

__all__ = [
    "CheckFailed",
    "ConvrewriteError",
    "Refused",
    "Result",
    "UsageError",
    "__version__",
    "apply",
    "bench",
    "fcn",
    "groups",
    "inspect",
    "load",
    "separable",
    "transform",
    "verify",
]

_ERRORS = ("CheckFailed", "ConvrewriteError", "Refused", "UsageError")


def __getattr__(name: str) -> Any:
    """Import what is public on its first use: the command line starts without it."""
    if name not in __all__:
        raise AttributeError(f"module 'convrewrite' has no attribute '{name}'")
    return getattr(import_module(f"convrewrite.{'errors' if name in _ERRORS else 'api'}"), name)


def __dir__() -> list[str]:
    """The public names alone."""
    return sorted(__all__)
