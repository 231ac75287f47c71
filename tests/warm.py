"""A process that has imported everything and forks for each command: a second of imports is paid once, not every time.

    pytest ── run("fcn", ...) ──words, folder, pipes──> server ──fork──> the command, as the console script runs it

The command is a process of its own all the same: its streams are pipes, its folder and environment are its own, and it
watches over a child as it always does. ONNX Runtime is left for it to import, since a process that holds it has no
child. What a fork cannot show is how Python starts: the tests of that start the console script itself.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from processes import HANGS

OWN = frozenset({"GITHUB_STEP_SUMMARY", "PYTEST_CURRENT_TEST", "PYTHONPATH", "TMPDIR"})
"""Variables that a command may have for itself: no module reads them when it is imported."""

START = "import sys; sys.path.insert(0, sys.argv[1]); import warm; warm.serve(int(sys.argv[2]))"
"""No file, which the processes that a command starts would read again."""

IMPORTED = (
    "convrewrite.acceptance",
    "convrewrite.inspection",
    "convrewrite.model_io.guards",
    "convrewrite.page",
    "convrewrite.passes",
    "convrewrite.pipeline",
    "convrewrite.running",
    "convrewrite.timing",
    "convrewrite.verification",
)


class Server:
    """The process at the other end, which lives as long as this object."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = _without_own(environment)
        self.lock = threading.Lock()
        self.line, theirs = socket.socketpair()
        words = [sys.executable, "-P", "-c", START, str(Path(__file__).resolve().parent), str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(
                words,
                pass_fds=[theirs.fileno()],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Whether commands here see that environment: some of it counts when a module is imported."""
        return self.process.poll() is None and _without_own(environment) == self.environment

    def run(
        self, words: Sequence[str], folder: Path, given: bytes, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[bytes]:
        """A command, as `subprocess.run` gives it."""
        pipes = [os.pipe() for _ in range(3)]
        (ours_in, theirs_in), *outs = (pipes[0][::-1], *pipes[1:])
        ours, theirs = [ours_in, *(read for read, _ in outs)], [theirs_in, *(write for _, write in outs)]
        own = {name: environment.get(name) for name in OWN}
        order = json.dumps({"words": list(words), "folder": str(folder), "own": own}).encode()
        said: list[bytes] = [b"", b""]

        def read(place: int) -> None:
            with os.fdopen(ours[1 + place], "rb") as stream:
                said[place] = stream.read()

        with self.lock:
            self.line.settimeout(HANGS)
            socket.send_fds(self.line, [len(order).to_bytes(4, "big") + order], theirs)
            for number in theirs:
                os.close(number)
            readers = [threading.Thread(target=read, args=(place,), daemon=True) for place in range(2)]
            for reader in readers:
                reader.start()
            with contextlib.suppress(BrokenPipeError), os.fdopen(ours[0], "wb") as stream:
                stream.write(given)
            try:
                code = int.from_bytes(self.line.recv(4), "big", signed=True)
            except TimeoutError:
                self.process.kill()
                raise
        for reader in readers:
            reader.join()
        return subprocess.CompletedProcess(list(words), code, *said)


def _without_own(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in OWN}


def serve(number: int) -> None:
    """Fork for each order, one after the other, and answer with the exit code as `subprocess` gives it."""
    import typer_once  # noqa: F401

    from convrewrite.cli import app

    for module in IMPORTED:
        importlib.import_module(module)
    sys.argv = ["convrewrite", "explain", "fcn"]
    app._command()  # what the command line imports late, it imports now; standard output leads nowhere
    assert "onnxruntime" not in sys.modules
    assert threading.active_count() == 1
    line = socket.socket(fileno=number)
    while True:
        content, streams, _, _ = socket.recv_fds(line, 1 << 16, 3)
        if not content:
            return
        while len(content) < 4 + int.from_bytes(content[:4], "big"):
            content += line.recv(1 << 16)
        child = os.fork()
        if not child:
            line.close()
            _be_the_command(streams, **json.loads(content[4:]))
        for stream in streams:
            os.close(stream)
        _, status = os.waitpid(child, 0)
        line.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))


def _be_the_command(streams: Sequence[int], words: Sequence[str], folder: str, own: Mapping[str, str | None]) -> None:
    from convrewrite.cli import app

    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    for name, value in own.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    sys.path[:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))  # in the place of this folder
    os.chdir(folder)
    tempfile.tempdir = None
    sys.argv = ["convrewrite", *words]
    app.main()
