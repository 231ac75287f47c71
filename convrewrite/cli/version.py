"""``convrewrite --version -v``: what a report of a fault needs to name. It works where ONNX Runtime does not."""

from __future__ import annotations

import importlib.metadata
import platform

from convrewrite import __version__

LIBRARIES = ("onnx", "onnx-graphsurgeon", "numpy")


def lines() -> list[str]:
    """The versions of the package, of Python and of what a result depends on, and where models can run."""
    from convrewrite.text import columns

    python = f"{platform.python_version()} ({platform.python_implementation()})"
    rows = [("convrewrite", __version__), ("Python", python), ("platform", _platform())]
    rows += [(name, _version(name)) for name in LIBRARIES]
    return columns([*rows, *_runtime()])


def _platform() -> str:
    return f"{platform.system()} {platform.release()}, {platform.machine()}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _runtime() -> list[tuple[str, str]]:
    """ONNX Runtime: its version, the distribution that brings it, and its providers; or why there are none."""
    from convrewrite.running.installed import distributions

    brought = ", ".join(f"{name} {version}" for name, version in distributions().items())
    told = brought or "no package of that name is installed"
    try:
        import onnxruntime

        version, providers = onnxruntime.__version__, onnxruntime.get_available_providers()
    except ModuleNotFoundError as error:
        if error.name == "onnxruntime":
            return [("ONNX Runtime", "not installed")]
        return [("ONNX Runtime", f"does not load: {error} ({told})")]
    except (
        Exception,
        SystemExit,
    ) as error:  # what a broken installation raises is to be read here
        why = " ".join(str(error).split()) or type(error).__name__
        return [("ONNX Runtime", f"does not load: {why} ({told})")]
    return [("ONNX Runtime", f"{version} ({told})"), ("providers", ", ".join(providers))]
