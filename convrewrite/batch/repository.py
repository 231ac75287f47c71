"""What git knows of a project: which files it tracks, which it ignores, and what a file was in another commit.

Nothing is checked out, fetched by intent or written. Git is asked through its plumbing, so that no setting of the user
(pagers, colours, filters, external diffs) has a say, and text from strangers never stands where an option could.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from convrewrite.errors import UsageError
from convrewrite.text import as_line, shortened

SECONDS = 120.0
"""So long git may take: a clone that is partial fetches a file when it is asked for."""

LARGEST = 64 << 20
"""Bytes of a file that is read from another commit."""

LONGEST = 1000
"""Characters of the name of a commit."""

OF_A_HOOK = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR")
"""What git tells its hooks about the repository that they run for; here the folder says which one it is."""

POINTER = b"version https://git-lfs.github.com/spec/"


class GitMissing(Exception):
    """There is no git, or it does not speak to us: it could not be asked."""


def tracked(paths: Iterable[Path]) -> set[Path]:
    """Those of the paths that git tracks, in whichever repository each lies; a symbolic link counts as its file, too.

    Where a repository is there and cannot be asked, a file that exists counts as tracked: it may be.
    """
    return {path for path in paths if any(map(_is_tracked, {path, Path(os.path.realpath(path))}))}


def _is_tracked(path: Path) -> bool:
    if not path.parent.is_dir():
        return False
    try:
        return bool(_git(path.parent, ["--literal-pathspecs", "ls-files", "-z", "--", path.name]).stdout)
    except GitMissing:
        return path.exists() and _inside(path.parent)


def ignored(paths: Collection[Path]) -> set[Path]:
    """Those of the paths that git ignores and does not track; none where there is no repository."""
    found: set[Path] = set()
    for path in paths:
        folder = next(parent for parent in path.parents if parent.is_dir())
        try:
            done = _git(folder, ["check-ignore", "-q", "--", os.path.join(".", os.path.relpath(path, folder))])
        except GitMissing:
            continue
        found |= {path} if done.returncode == 0 else set()
    return found


def _inside(folder: Path) -> bool:
    """Whether a folder lies in a repository, as far as one can see without git."""
    return any((parent / ".git").exists() for parent in (folder, *folder.parents))


@dataclass(frozen=True)
class Commit:
    """A commit of the repository that a folder lies in.

    Attributes:
        folder: of the working tree. prefix: its path in the repository. sha: the commit's whole name.
    """

    folder: Path
    prefix: PurePosixPath
    sha: str

    def read(self, name: str) -> bytes | None:
        """What a file was there; None where there was none of that name.

        Args:
            name: the path, relative to the folder.

        Raises:
            UsageError: it was no plain file, is too large, or git does not give it.
        """
        path = os.path.normpath(self.prefix / name).replace(os.sep, "/")
        try:
            listed = _git(
                self.folder, ["--literal-pathspecs", "ls-tree", "-z", "-l", "--full-tree", self.sha, "--", path]
            )
            if not listed.stdout:
                return None
            mode, kind, blob, size = listed.stdout.split(b"\t")[0].split()
            if kind != b"blob" or mode == b"120000":
                raise UsageError(f"'{path}' of {self.sha[:10]} is no plain file")
            if size.isdigit() and int(size) > LARGEST:
                raise UsageError(f"'{path}' of {self.sha[:10]} is too large")
            content = _git(self.folder, ["cat-file", "blob", blob.decode()])
        except GitMissing as missing:
            raise UsageError(f"git cannot be asked: {missing}") from None
        if content.returncode:
            raise UsageError(f"git cannot read '{path}' of {self.sha[:10]}: {_said(content)}")
        if content.stdout.startswith(POINTER):
            raise UsageError(
                f"'{path}' of {self.sha[:10]} is a pointer of Git LFS", remedy="keep that file out of Git LFS"
            )
        return content.stdout


def commit(folder: Path, ref: str) -> Commit | None:
    """The commit that a branch, a tag or another name stands for; None where there is none of that name.

    Raises:
        UsageError: the folder lies in no repository, or git cannot be asked.
    """
    try:
        where = _git(folder, ["rev-parse", "--show-prefix"])
        if where.returncode:
            raise UsageError(f"{folder} cannot be looked up in git: {_said(where)}")
        if (
            ref.startswith("-") or not ref.isprintable() or len(ref) > LONGEST
        ):  # no name of a commit, and it might be an option
            return None
        found = _git(folder, ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"])
    except GitMissing as missing:
        raise UsageError(f"git cannot be asked: {missing}") from None
    sha = found.stdout.decode("ascii", "replace").strip()
    if found.returncode or not sha.isalnum():
        return None
    return Commit(folder, PurePosixPath(os.fsdecode(where.stdout.removesuffix(b"\n"))), sha)


def is_shallow(folder: Path) -> bool:
    """Whether a part of the history is not here, as in the clones of a CI."""
    try:
        return _git(folder, ["rev-parse", "--is-shallow-repository"]).stdout.strip() == b"true"
    except GitMissing:
        return False


def _git(folder: Path, words: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    """Ask git. Raises GitMissing where it is not there, or will not look at this repository."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_HOOK}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *words]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise GitMissing(f"it did not answer within {SECONDS:g} s") from None
    except (OSError, ValueError):
        raise GitMissing("it is not installed") from None
    if done.returncode == 128 and b"dubious ownership" in done.stderr:
        raise GitMissing(f"{folder} belongs to another user: git config --global --add safe.directory {folder}")
    return done


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return shortened(as_line(done.stderr.decode("utf-8", "replace")).removeprefix("fatal: "), 300) or "it says nothing"
