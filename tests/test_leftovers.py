"""What a killed process leaves: never half a target, nothing of a live process touched, gone with the next command."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import onnx
import pytest
from cli_models import COMMAND, plain, run, save, snapshot
from processes import leftovers

from convrewrite import model_io
from convrewrite.errors import UsageError
from convrewrite.model_io.publishing import private_folder
from convrewrite.system import atomic
from convrewrite.system import leftovers as system_leftovers
from convrewrite.system.leftovers import FILE, FOLDER, Scratch, create, hidden_name, release, sweep

fcntl = pytest.importorskip("fcntl", reason="Windows has no such locks")


def in_a_fork(work: Callable[[], object]) -> int:
    """The code that a forked process ends with, as `subprocess` gives it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Locks --------------------------------------------------------------------------------------------------------------


def test_what_a_live_process_holds_stays_and_what_a_dead_one_held_goes(tmp_path: Path) -> None:
    def left() -> None:
        create(tmp_path / hidden_name(".onnx"))
        create(tmp_path / hidden_name(""), 0o400)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_fork(left) == -signal.SIGKILL
    assert len(leftovers(tmp_path)) == 2
    mine = atomic.temporary_beside(tmp_path / "out.onnx", ".onnx")
    assert leftovers(tmp_path) == [mine.name]
    sweep(tmp_path, again=True)
    in_a_fork(lambda: sweep(tmp_path, again=True))
    assert mine.exists()
    release(mine)
    sweep(tmp_path, again=True)
    assert not mine.exists()


def test_a_lock_of_another_process_is_heeded(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from convrewrite.system import atomic;"
    script += "print(atomic.temporary_beside(Path(sys.argv[1]), '.onnx'), flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", script, str(tmp_path / "out.onnx")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        path = Path(other.stdout.readline().strip())
        sweep(tmp_path, again=True)
        assert path.exists()
        other.kill()
    sweep(tmp_path, again=True)
    assert not path.exists()


class Sweeper:
    """`fcntl` in which another process comes upon the first new entry between its making and its lock."""

    LOCK_EX, LOCK_NB = fcntl.LOCK_EX, fcntl.LOCK_NB

    def __init__(self, folder: Path, *, fast: bool) -> None:
        self.folder, self.fast = folder, fast
        self.found: Path | None = None
        self.handle = -1

    def flock(self, handle: int, operation: int) -> None:
        if self.found is None:
            (self.found,) = self.folder.iterdir()
            self.handle = os.open(self.found, os.O_RDONLY)
            fcntl.flock(self.handle, operation)
            if self.fast:
                self.finish()
        fcntl.flock(handle, operation)

    def finish(self) -> None:
        """Remove what was locked."""
        assert self.found is not None
        if self.handle >= 0:
            self.found.rmdir() if self.found.is_dir() else self.found.unlink()
            os.close(self.handle)
            self.handle = -1


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("kind", ["file", "folder beside a model", "folder of the system"])
def test_what_is_swept_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fast: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = Sweeper(tmp_path, fast=fast)
    monkeypatch.setattr(system_leftovers, "fcntl", other)
    with ExitStack() as stack:
        if kind == "file":
            path = atomic.temporary_beside(tmp_path / "out.onnx", ".onnx")
            stack.callback(atomic.discard, path)
        elif kind == "folder beside a model":
            path = stack.enter_context(private_folder(tmp_path / "out.onnx"))
        else:
            path = Path(stack.enter_context(Scratch()))
        other.finish()
        assert path.exists()
        assert path != other.found
    assert not list(tmp_path.iterdir())


def test_only_names_of_ours_are_swept(tmp_path: Path) -> None:
    token = "0123456789abcdef"
    kept = [".convrewrite-notes", f".convrewrite-{token[:-1]}.onnx", f"convrewrite-{token}.onnx", f".{token}.onnx"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / f".convrewrite-{token}.link").symlink_to(tmp_path / kept[0])
    (tmp_path / f".convrewrite-{token}.folder").mkdir()
    for name in ("convrewrite-packages", f"convrewrite-{token}"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / f".convrewrite-{token}.pipe")
    before = sorted(os.listdir(tmp_path))
    sweep(tmp_path, again=True)
    assert sorted(os.listdir(tmp_path)) == before
    (tmp_path / f".convrewrite-{token}.onnx").write_text("left")
    sweep(tmp_path, again=True)
    assert sorted(os.listdir(tmp_path)) == before


def test_scratch_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def left() -> None:
        made = Scratch()
        (Path(made.name) / "part.onnx").write_text("left")
        os.kill(os.getpid(), signal.SIGKILL)

    in_a_fork(left)
    dead = leftovers(tmp_path)
    assert len(dead) == 1
    assert FOLDER.fullmatch(dead[0])
    with atomic.scratch() as folder:
        sweep(tmp_path, again=True)
        assert leftovers(tmp_path) == [Path(folder).name]
        (Path(folder) / "part.onnx").write_text("live")
    assert os.listdir(tmp_path) == []
    kept = atomic.scratch()
    del kept
    assert os.listdir(tmp_path) == []


def test_no_handle_stays_open(tmp_path: Path) -> None:
    handles = Path(f"/proc/{os.getpid()}/fd")
    if not handles.exists():
        pytest.skip("only Linux lists the handles of a process")
    before = len(os.listdir(handles))
    for _ in range(5):
        atomic.write_whole(tmp_path / "a.json", [b"{}"], ".json")
        atomic.check_target(tmp_path / "b.json", "--report", [])
        with atomic.scratch():
            pass
    assert len(os.listdir(handles)) == before


def test_a_long_suffix_makes_no_name_that_is_too_long(tmp_path: Path) -> None:
    target = tmp_path / ("a." + "b" * 250)
    atomic.write_whole(target, [b"x"], target.suffix)
    assert target.read_bytes() == b"x"
    assert FILE.fullmatch(hidden_name(target.suffix))


# Mode and owner -----------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_follows_the_umask(umask: int, tmp_path: Path) -> None:
    old = os.umask(umask)
    try:
        model_io.save(model_io.load(plain().SerializeToString()), tmp_path / "out.onnx")
        atomic.write_whole(tmp_path / "r.json", [b"{}"], ".json")
    finally:
        os.umask(old)
    assert mode(tmp_path / "out.onnx") == mode(tmp_path / "r.json") == 0o666 & ~umask


@pytest.mark.parametrize("wanted", [0o600, 0o640, 0o666, 0o755, 0o444])
def test_a_replaced_file_keeps_its_mode(wanted: int, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"old")
    target.chmod(wanted)
    with model_io.staged(model_io.load(plain().SerializeToString()), target) as staged:
        assert mode(staged.path) & ~wanted & ~0o600 == 0  # nobody reads the new one who could not read the old one
        staged.commit()
    assert mode(target) == wanted
    assert target.stat().st_size > 100


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_replaced_file_keeps_its_owner(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    target.write_bytes(b"old")
    os.chown(target, 12345, 54321)
    target.chmod(0o640)
    atomic.write_whole(target, [b"new"], ".json")
    assert (target.stat().st_uid, target.stat().st_gid, mode(target)) == (12345, 54321, 0o640)
    assert target.read_bytes() == b"new"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root becomes somebody else")
def test_leftovers_of_others_stay(tmp_path: Path) -> None:
    path = tmp_path / hidden_name(".onnx")
    path.write_bytes(b"theirs")
    os.chown(path, 12345, 54321)
    sweep(tmp_path, again=True)
    assert path.exists()


# Kills --------------------------------------------------------------------------------------------------------------


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Run in a fork that is killed at its n-th step in the file system; False where it has fewer."""
    counted = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal counted
        if event in ("open", "os.rename", "os.remove", "os.chmod", "os.chown", "os.mkdir", "os.listdir", "os.scandir"):
            counted += 1
            if counted == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def steps() -> None:
        sys.addaudithook(hook)
        work()

    return in_a_fork(steps) == -signal.SIGKILL


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_kill_at_every_step_leaves_the_target_whole_or_as_it_was(
    external: bool, replaced: bool, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    if external:
        onnx.save(plain(), tmp_path / "in.onnx", save_as_external_data=True, location="in.data", size_threshold=0)
    else:
        save(plain(), tmp_path / "in.onnx")
    model = model_io.load(tmp_path / "in.onnx")
    inputs = snapshot(tmp_path)
    folder = tmp_path / "to"
    folder.mkdir()
    target = folder / "out.onnx"
    want = model_io.to_bytes(model)
    old = b"an older result"
    number = 0
    while True:
        target.unlink(missing_ok=True)
        if replaced:
            target.write_bytes(old)
        number += 1
        if not killed_at(number, lambda: model_io.save(model, target)):
            break
        assert {name: value for name, value in snapshot(tmp_path).items() if name in inputs} == inputs
        if target.exists() and target.read_bytes() != old:
            assert model_io.to_bytes(model_io.load(target)) == want
        else:
            assert target.exists() == replaced
        sweep(folder, again=True)
        assert leftovers(folder) == []
    record_property("kills", number - 1)
    assert number > 4


@pytest.mark.parametrize("count", [25, pytest.param(500, marks=pytest.mark.fuzz_long)])
def test_a_kill_at_any_moment_leaves_the_target_whole_or_absent(count: int, tmp_path: Path) -> None:
    """A command that has everything imported is forked and killed, at moments drawn over the time that it takes."""
    (tmp_path / "tmp").mkdir()
    save(plain(), tmp_path / "in.onnx")
    script = KILLS.format(tests=str(Path(__file__).parent), count=count)
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout.strip())
    counts = json.loads(done.stdout)
    assert counts["runs"] == count
    assert counts["killed"] > count // 3
    assert counts["left"] > 0  # else no kill hit where it matters
    assert leftovers(tmp_path) == []


KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import onnxruntime
from convrewrite import pipeline
from convrewrite.cli import app as cli
from processes import leftovers
here, source, target = Path.cwd(), Path("in.onnx"), Path("out.onnx")
sys.argv = ["convrewrite", "fcn", "in.onnx", "out.onnx", "--quiet"]
def run(wait=None):
    child = os.fork()
    if child == 0:
        os._exit(cli._command())
    if wait is not None:
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
began = time.monotonic()
assert run() == 0
seconds, before, want = time.monotonic() - began, source.read_bytes(), target.read_bytes()
draw, killed, left, whole = random.Random({count}), 0, 0, 0
for _ in range({count}):
    target.unlink(missing_ok=True)
    killed += run(draw.uniform(0, 1.2 * seconds)) == -signal.SIGKILL
    left += bool(leftovers(here))
    assert source.read_bytes() == before
    if target.exists():
        assert target.read_bytes() == want
        whole += 1
assert run() == 0
assert target.read_bytes() == want
assert leftovers(here) == [], leftovers(here)
print(json.dumps(dict(runs={count}, killed=killed, left=left, whole=whole)))
"""


def test_a_command_that_is_killed_from_outside_leaves_the_target_whole_or_absent(tmp_path: Path) -> None:
    """The command as it is called, with its two processes, killed after it was heard of."""
    (tmp_path / "tmp").mkdir()
    source, target = save(plain(), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    before = source.read_bytes()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    words = [*COMMAND, "fcn", str(source), str(target)]
    with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as process:
        while not leftovers(tmp_path) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert source.read_bytes() == before
    assert run("fcn", source, target, env=environment).returncode == 0
    assert leftovers(tmp_path) == []
    assert onnx.load(target).graph.node


def test_a_target_in_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        atomic.temporary_beside(tmp_path / "no" / "out.onnx", ".onnx")
