"""Every equivalent form of a convolution layer, for ONNX."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("convrewrite")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.0.0+unknown"

__all__ = ["__version__"]
