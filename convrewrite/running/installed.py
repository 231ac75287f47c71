"""Which ONNX Runtime is installed: any distribution of it, none, a damaged one, or several that share one folder.

    check_installation()    an error with the command that helps where there is none, a warning where there are several

`onnxruntime-gpu`, `-directml`, `-openvino` and nightly builds all bring the package `onnxruntime`, so the last one that
was installed wins, and the first one that is uninstalled takes files of the others along. Nothing is imported here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import Distribution
from pathlib import Path

from convrewrite.errors import InstallationWarning, UsageError

PACKAGE = "onnxruntime"

OLDEST = (1, 24)
"""The oldest version that is tested, as the extras ask for it; older ones do not tell which nodes run where."""

INSTALL = 'run: pip install "convrewrite[cpu]", or "convrewrite[gpu]" for an NVIDIA GPU'

_CANDIDATE = re.compile(r"(.*onnxruntime.*|ort[-_.].*)\.(dist|egg)-info", re.IGNORECASE)
"""Folders that may be of such a distribution: to read what every installed package says of itself takes too long."""

_KNOWN = re.compile(
    r"(onnxruntime|ort)(-(gpu|directml|openvino|training|rocm|migraphx|qnn|cann|vitisai|azure|nightly|noopenmp))*"
)
"""Names of distributions of the runtime, for one that does not list its files."""


class RuntimeMissing(UsageError):
    """There is no ONNX Runtime that can be imported: that says nothing of a model."""


def distributions() -> dict[str, str]:
    """The version of each installed distribution that brings the package `onnxruntime`, by its name, in order."""
    found: dict[str, str] = {}
    for folder in sys.path:
        with contextlib.suppress(OSError):  # no folder, or an archive
            for entry in os.listdir(folder or "."):
                if _CANDIDATE.fullmatch(entry):
                    one = Distribution.at(Path(folder, entry))
                    with contextlib.suppress(UnicodeDecodeError):  # damaged: then it says nothing of itself
                        name = re.sub(r"[-_.]+", "-", str(one.metadata["Name"] or "")).lower()
                        if _brings(one, name):
                            found.setdefault(name, one.version)
    return dict(sorted(found.items()))


def check_installation() -> None:
    """Look whether there is an ONNX Runtime to work with, before any work is done, and without importing it.

    Warns once in a process, by InstallationWarning, where several distributions are installed, or an old one.

    Raises:
        RuntimeMissing: there is none, or its folder is damaged.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise missing(distributions())
    _warn_once()


def missing(installed: Mapping[str, str], why: str = "") -> RuntimeMissing:
    """The error where ONNX Runtime cannot be imported.

    Args:
        installed: version by name of its distributions. why: what the import said, where there was something to import.
    """
    if not installed:
        said = f"ONNX Runtime cannot be imported ({why})" if why else "ONNX Runtime is not installed"
        return RuntimeMissing(said, remedy=INSTALL)
    if (place := _elsewhere()) is not None:
        return RuntimeMissing(
            f"{place} is imported in the place of ONNX Runtime{f': {why}' if why else ''}",
            remedy="rename it, or work in another folder",
        )
    if len(installed) > 1:
        return RuntimeMissing(
            f"ONNX Runtime cannot be imported: {clash(installed)}", remedy=f"run: {one_of(installed)}"
        )
    ((name, version),) = installed.items()
    cause = why or "its folder has lost files, as when another distribution of it is uninstalled"
    remedy = f"run: pip install --force-reinstall --no-deps {name}=={version}"
    return RuntimeMissing(f"{name} {version} is installed, but cannot be imported: {cause}", remedy=remedy)


def _elsewhere() -> Path | None:
    """The package that would be imported, where it lies beside no distribution of ONNX Runtime."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        spec = importlib.util.find_spec(PACKAGE)
        if spec is not None and spec.origin is not None:
            place = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
            if not any(_CANDIDATE.fullmatch(entry) for entry in os.listdir(place.parent)):
                return place
    return None


def clash(installed: Mapping[str, str]) -> str:
    """What is wrong with several distributions; empty where there is one at most."""
    if len(installed) < 2:
        return ""
    names = [f"{name} {version}" for name, version in installed.items()]
    both = "both" if len(names) == 2 else "all"
    return f"{', '.join(names[:-1])} and {names[-1]} are {both} installed and overwrite each other's files"


def one_of(installed: Mapping[str, str], wanted: str = "") -> str:
    """The command that leaves one distribution: the one that is wanted, or the most capable of those that are there."""
    special = sorted(installed, key=lambda name: (name != "onnxruntime-gpu", name == PACKAGE, name))
    leave = f"pip uninstall -y {' '.join(installed)} && " if installed else ""
    return f"{leave}pip install {wanted or special[0]}"


def _brings(one: Distribution, name: str) -> bool:
    """Whether a distribution brings the package itself, and no extension of it."""
    if one.files is not None:
        return any(file.parts[0] == PACKAGE for file in one.files)
    top = one.read_text("top_level.txt")
    return PACKAGE in top.split() if top is not None else _KNOWN.fullmatch(name) is not None


@functools.cache
def _warn_once() -> None:
    installed = distributions()
    if len(installed) > 1:
        _warn(f"{clash(installed)}; the one that works is used; to have one alone, run: {one_of(installed)}")
        return
    for name, version in installed.items():
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            _warn(f'{name} {version} is older than {oldest}, the oldest tested; run: pip install "{name}>={oldest}"')


def _warn(message: str) -> None:
    warnings.warn(InstallationWarning(message), stacklevel=4)
