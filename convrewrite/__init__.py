"""convrewrite: every equivalent form of a convolution layer, for ONNX, proved equal before it is written."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("convrewrite")
except PackageNotFoundError:  # a checkout on PYTHONPATH
    __version__ = "0.1.0"

__all__ = ["__version__"]
