"""`convrewrite explain`: the passes, the reasons, and what each means."""

from __future__ import annotations

import pytest
from cli_models import call, run

from convrewrite import passes, pipeline
from convrewrite.cli.words import FLAGS
from convrewrite.passes import fcn
from convrewrite.text import told

REASONS = told({code: (meaning, remedy) for code, meaning, remedy in pipeline.reasons()}, FLAGS)


def test_it_lists_the_passes_and_the_reasons() -> None:
    result = run("explain")
    assert (result.returncode, result.stderr) == (0, b"")
    lines = [line.strip() for line in result.stdout.decode().splitlines()]
    assert lines[0] == "passes"
    for pass_ in passes.ALL:
        assert any(line.startswith(f"{pass_.name}: ") for line in lines)
    for code, (meaning, _) in REASONS.items():
        assert lines[lines.index(code) + 1] == meaning


def test_it_prints_the_docstring_of_a_pass() -> None:
    result = run("explain", "fcn")
    assert (result.returncode, result.stderr) == (0, b"")
    assert fcn.__doc__ is not None
    assert result.stdout.decode() == fcn.__doc__.strip() + "\n"
    assert "Before" in fcn.__doc__


@pytest.mark.parametrize("code", REASONS)
def test_it_explains_a_reason(code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "explain", code) == 0
    meaning, remedy = REASONS[code]
    captured = capsys.readouterr()
    assert captured.out == f"{code}\n  What it means: {meaning}.\n  What helps: {remedy}.\n"
    assert captured.err == ""


@pytest.mark.parametrize("code", REASONS)
def test_a_reason_reads_well_in_a_sentence(code: str) -> None:
    for text in REASONS[code]:
        assert text
        assert text[0].islower() or text.startswith(("--", "FC", "[")), text
        assert not text.endswith("."), text


def test_every_reason_has_one_meaning() -> None:
    assert len(REASONS) == len(list(pipeline.reasons()))
    assert {"rewrite/left-out", "verify/failed", "verify/vacuous", "fcn/flat-input"} <= set(REASONS)


def test_what_is_unknown_is_a_usage_error() -> None:
    result = run("explain", "fcn/nothing")
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr == b"error: there is no pass or reason 'fcn/nothing'; run 'convrewrite explain' for the list\n"
