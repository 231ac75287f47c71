"""Thousands of models with something wrong, through the commands: exit codes 0 to 3, nothing left, nothing changed.

pytest tests/test_fuzzing.py                            2,000 cases over small models of the tests
pytest tests/test_fuzzing.py -m fuzz_long --fuzz 50000  more, with the commands that take seconds
... --corpus DIR                                        over real models, too
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import seeds
from fuzzing.cases import Case, case
from fuzzing.checks import faults, told_by_the_command
from fuzzing.mutations import mutate
from fuzzing.runner import TESTS, Found, fuzz
from processes import HANGS

import exported

COUNT = 2000
SHARES = 8
LONG = 20_000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small models, in a folder."""
    folder = tmp_path_factory.mktemp("seeds")
    seeds.write(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("share", range(SHARES))
def test_broken_models_through_every_command(share: int, models: Path, tmp_path: Path) -> None:
    found = fuzz(models, range(share * COUNT // SHARES, (share + 1) * COUNT // SHARES), processes=1)
    assert found.ran == COUNT // SHARES
    assert not left(found, models, tmp_path), f"\n{found.text}"


def left(found: Found, models: Path, folder: Path, *, slow: bool = False) -> set[int]:
    """The faults without those that only ended the worker: there, the command itself says so in one line."""

    def told(number: int) -> bool:
        return told_by_the_command(case(number, models, slow=slow), folder / str(number))

    return {n for n, fault in found.faults.items() if not (fault.startswith("died: ") and told(n))}


@pytest.mark.fuzz_long
def test_many_more_of_them(models: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    count = request.config.getoption("--fuzz") or LONG
    if request.config.getoption("--corpus"):
        for path in exported.files(request.config):
            os.symlink(path.resolve(), models / f"corpus_{path.name}")
    found = fuzz(models, range(10**6, 10**6 + count), processes=os.cpu_count() or 2, slow=True)
    assert found.ran == count
    assert not left(found, models, tmp_path, slow=True), f"\n{found.text}"


# The fuzzer itself ---------------------------------------------------------------------------------------------------


def test_a_number_is_always_the_same_case(models: Path) -> None:
    for number in range(40):
        one, other = case(number, models), case(number, models)
        assert one == other
    assert len({case(number, models).content for number in range(40)}) > 35


def test_every_command_and_kind_of_mutation_comes_up(models: Path) -> None:
    cases = [case(number, models) for number in range(400)]
    assert {made.command for made in cases} == {
        *("fcn", "separable", "groups", "fc-to-conv", "conv-to-fc", "transform", "inspect", "verify", "apply")
    }
    told = " ".join(str(made) for made in cases)
    for word in (
        "strides",
        "group",
        "reads",
        "becomes",
        "weight",
        "declared",
        "opset",
        "metadata",
        "is called",
        "bits",
    ):
        assert word in told
    unchanged = sum(made.content == made.model.read_bytes() for made in cases)
    assert unchanged < 40


def test_text_that_is_not_utf8_gets_into_the_file(models: Path) -> None:
    import random

    mutated = [mutate((models / "plain.onnx").read_bytes(), random.Random(number))[0] for number in range(400)]
    assert any(b"\xff\xfe\xff\xff" in content for content in mutated)


def planted(models: Path, monkeypatch: pytest.MonkeyPatch, fault: object) -> Case:
    monkeypatch.setattr("convrewrite.pipeline.fcn", fault)
    model = models / "plain.onnx"
    return Case(0, model, model.read_bytes(), (), "fcn", ())


def test_an_internal_error_is_found(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*args: object, **named: object) -> None:
        raise KeyError("a fault of ours")

    found = faults(planted(models, monkeypatch, broken), tmp_path)
    assert found.startswith("exit 70: ")
    assert "a fault of ours" in found


def test_what_is_left_behind_is_found(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from convrewrite.errors import UsageError

    def broken(source: str, target: str, *more: object, **named: object) -> None:
        Path(target).write_bytes(b"half")
        raise UsageError("no")

    assert faults(planted(models, monkeypatch, broken), tmp_path).startswith("exit 2 with files: ['out.onnx']")


def test_a_changed_input_is_found(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from convrewrite.errors import UsageError

    def broken(source: str, *more: object, **named: object) -> None:
        Path(source).write_bytes(b"")
        raise UsageError("no")

    assert faults(planted(models, monkeypatch, broken), tmp_path).startswith("input changed")


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGFPE)", "died: status 8, signal 8"),
        ("while True: pass", "hang: "),
        ("bytearray(5 << 30)", "memory: "),
    ],
)
def test_what_kills_or_stops_a_worker_is_one_cases_fault(models: Path, body: str, fault: str, tmp_path: Path) -> None:
    """A server whose third case does that; the others are served all the same."""
    script = f"""
import sys
from fuzzing import cases, checks, server
server.CPU_SECONDS = 2
plain = cases.case
def planted(number, models, *, slow=False):
    if number == 2:
        from convrewrite import pipeline
        def broken(*args, **named):
            {body}
        pipeline.fcn = broken
        model = models / "plain.onnx"
        return cases.Case(2, model, model.read_bytes(), (), "fcn", ())
    return cases.Case(number, models / "plain.onnx", b"", (), "inspect", ())
cases.case = planted
sys.argv = ["server", {str(models)!r}, "0", "5", "1"]
server.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=HANGS, check=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)}, cwd=tmp_path,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert [line.partition('"case": ')[2].partition(",")[0] for line in lines] == list("01234"), done.stderr
    assert [f'"fault": "{fault}' in line for line in lines] == [False, False, True, False, False]
    assert all('"fault": ""' in line for line in (*lines[:2], *lines[3:]))
