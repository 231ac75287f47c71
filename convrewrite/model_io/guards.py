"""Every path that a command writes, held against every path that it reads, before any work is done.

Two paths are one file where `identity` says so. What a command reads are also the data files that a model names, and
all that lies in a folder which is read whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from convrewrite import model_io
from convrewrite.errors import UsageError
from convrewrite.system import atomic
from convrewrite.system.identity import Identity, folders, identity
from convrewrite.text import parameter

Given = str | os.PathLike[str] | None
"""A path as the user wrote it; None where there is none, "-" for a standard stream, or an address."""

SAME = frozenset({("OUT", "IN")})
"""What may be one file: OUT replaces IN, but only after every check."""


@dataclass(frozen=True)
class Files:
    """The paths of one command, each under the name that messages give it.

    Attributes:
        models: that are read, with the data files that they name. reads: other files. trees: folders that are read
            whole, where no file may be added. writes: files that are written. replaces: the same of what may be a
            folder, which is replaced with all that lies in it.
    """

    models: Mapping[str, Given] = field(default_factory=dict)
    reads: Mapping[str, Given] = field(default_factory=dict)
    trees: Mapping[str, Given] = field(default_factory=dict)
    writes: Mapping[str, Given] = field(default_factory=dict)
    replaces: Mapping[str, Given] = field(default_factory=dict)

    def reading(self, **reads: Given) -> Files:
        """These files, and others that options name for reading."""
        return replace(self, reads={**self.reads, **_options(reads)})

    def writing(self, **writes: Given) -> Files:
        """These files, and others named for writing, such as `writing(report="r.json")`."""
        return replace(self, writes={**self.writes, **_options(writes)})

    def keep_apart(self) -> None:
        """Raise UsageError, which names both, where a file that is written is one that is read or written as well."""
        taken = _Taken()
        for role, path in self._read():
            taken.add(role, path)
        whole = (*_local(self.trees), *_local(self.replaces))
        trees = {identity(path): (role, path) for role, path in whole}
        for role, path in (*_local(self.replaces), *_local(self.writes)):
            own = identity(path)
            taken.refuse(role, taken.files.get(own, {}))
            if role in self.replaces:
                taken.refuse(role, taken.above.get(own, {}))
            for folder in folders(path) if trees else ():
                if folder in trees:
                    other, tree = trees[folder]
                    raise _clash(role, path, f"which lies in {other} '{tree}'")
            taken.add(role, path)

    def check_targets(self) -> None:
        """Raise UsageError where files are one, or an option's file cannot be written. OUT is tried when it is due."""
        self.keep_apart()
        for role, path in _local(self.writes):
            if role != "OUT":
                atomic.check_target(path, role, ())

    def _read(self) -> Iterator[tuple[str, Path]]:
        for role, path in _local(self.models):
            yield role, path
            yield from ((f"external data of {role} '{path}'", data) for data in model_io.data_files(path))
        yield from _local(self.reads)
        yield from _local(self.trees)


def listed(role: str, folder: str | Path | None) -> dict[str, Given]:
    """The files of a folder that are read one by one, each under its own name: others may be added beside them."""
    try:
        found = [] if folder is None else sorted(path for path in Path(folder).iterdir() if path.is_file())
    except OSError:  # whoever reads them says so
        found = []
    return {f"'{path.name}' of {role}": path for path in found}


class _Taken:
    """What is read, and written so far: by identity, the path of each role; and the same by the folders above."""

    def __init__(self) -> None:
        self.files: dict[Identity, dict[str, Path]] = {}
        self.above: dict[Identity, dict[str, Path]] = {}

    def add(self, role: str, path: Path) -> None:
        self.files.setdefault(identity(path), {}).setdefault(role, path)
        for folder in folders(path):
            self.above.setdefault(folder, {}).setdefault(role, path)

    @staticmethod
    def refuse(role: str, others: Mapping[str, Path]) -> None:
        for other, path in others.items():
            if (role, other) not in SAME:
                raise _clash(role, path, f"which is {other}")


def _options(named: Mapping[str, Given]) -> dict[str, Given]:
    return {parameter(name): path for name, path in named.items()}


def _local(paths: Mapping[str, Given]) -> Iterator[tuple[str, Path]]:
    """Those that are paths of files."""
    for role, given in paths.items():
        text = "" if given is None else os.fspath(given).removeprefix("file://")
        if text and text != "-" and "://" not in text:
            yield role, Path(text)


def _clash(role: str, path: Path, what: str) -> UsageError:
    return UsageError(f"{role} would overwrite '{path}', {what}", remedy="give it a path of its own")
