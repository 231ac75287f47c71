"""Runs one case in this process, and says what should not have happened."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import typer_once  # noqa: F401

from convrewrite.cli import app as cli
from fuzzing.cases import REWRITING, Case

ALLOWED = (0, 1, 2, 3)

MEMORY = re.compile(
    r"not enough memory(?!: (?:Unable to allocate [\d.]+ (?:TiB|PiB|EiB)|the models? needs? about [\d,]*\d{4}\.\d GB))"
)
"""What a machine with more memory would have given: beyond that nothing was taken."""

RUNTIMES_OWN = ".ses"
"""A file that ONNX Runtime itself writes once per process."""


def faults(case: Case, folder: Path, more: Sequence[str] = (), *, quiet: bool = True) -> str:
    """What was wrong, in words that begin with a kind; empty where nothing was.

    A refusal for want of memory counts: the process has a limit, and no small file may need more.
    """
    temporary = folder / "tmp"
    temporary.mkdir()
    case.lay(folder)
    before = _hashes(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    code, out, text = _run([*case.words(folder), *more])
    if not quiet:
        print(out, text, f"exit code {code}", sep="\n")
    after = _hashes(folder)
    line = " ".join(text.split())[-300:]
    new = sorted(after.keys() - before.keys())
    if code not in ALLOWED:
        return f"exit {code}: {line}"
    if "Traceback" in text:
        return f"traceback: {line}"
    if MEMORY.search(text):
        return f"memory: {line}"
    if any(after.get(name) != digest for name, digest in before.items()):
        return f"input changed: {line}"
    new = [name for name in new if name != os.path.join("tmp", RUNTIMES_OWN)]
    if any(name.startswith("tmp") for name in new):
        return f"left in the temporary folder: {new}"
    wanted = {"out.onnx"} if case.command in REWRITING else {"out.npy"} if case.command == "apply" else set()
    if case.command == "run":
        new = [name for name in new if name not in ("convrewrite.lock", os.path.join("made", "in.onnx"))]
    if case.command == "apply" and code == 1:  # tiles that could be computed are kept, and it says so
        new = [name for name in new if not name.startswith("out.npy.tiles.zarr")]
    if code and [name for name in new if name != "convrewrite.lock"]:
        return f"exit {code} with files: {new}; {line}"
    if not code and not {name for name in new if not _is_data(name)} <= wanted:
        return f"left behind: {new}"
    if code and not any(text.strip().splitlines()):
        return f"exit {code} without a word"
    return ""


def _is_data(name: str) -> bool:
    return name.startswith("out-") and name.endswith(".data")


def _run(words: list[str]) -> tuple[int, str, str]:
    out, told = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    sys.argv = ["convrewrite", *words]
    code: object = 0
    with redirect_stdout(out), redirect_stderr(told):
        try:
            cli.main()
        except SystemExit as left:
            code = left.code
        out.flush()
    return int(str(code)), out.buffer.getvalue().decode(errors="replace"), told.getvalue()


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def told_by_the_command(case: Case, folder: Path) -> bool:
    """Whether the command itself, which watches over its process, ends such a case in one line and leaves nothing.

    The workers run commands in their own process, so that what ends ONNX Runtime ends them, too.
    """
    folder.mkdir()
    case.lay(folder)
    before = _hashes(folder)
    words = [sys.executable, "-m", "convrewrite", *case.words(folder)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    return done.returncode == 2 and "Traceback" not in done.stderr and _hashes(folder) == before
