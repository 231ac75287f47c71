"""What a person sees on a terminal of 80 columns, and what a file gets."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_models import run

from convrewrite import models

if sys.platform == "win32":
    pytest.skip("there are no such terminals", allow_module_level=True)

from terminals import Shown, on_terminal

LENET = str(models.lenet5_path())
VGG = str(models.trained_path("digits_vgg"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shown]:
    """A model with many rewritten sites and checks, and what its making looked like."""
    folder = tmp_path_factory.mktemp("dense")
    shutil.copy(LENET, folder)
    with contextlib.chdir(folder):  # a path is not folded, however long the temporary folder's is
        return folder / "dense.onnx", on_terminal("fcn", "--dense", Path(LENET).name, "dense.onnx")


def test_a_conversion_fits(dense: tuple[Path, Shown]) -> None:
    shown = dense[1]
    assert shown.code == 0
    assert shown.widest <= 80
    assert "own noise" in " ".join(" ".join(shown.lines).split()) or "noise" in shown.raw
    assert "\x1b[1;32mverified" in shown.raw


COMMANDS = {
    "inspect": ["inspect", VGG],
    "inspect in detail": ["inspect", LENET, "--verbose"],
    "verify": ["verify", LENET, "{dense}"],
    "verify in detail": ["verify", LENET, "{dense}", "--verbose", "--provider", "cpu"],
    "verify where": ["verify", LENET, VGG, "--where"],
    "bench": ["bench", LENET, "{dense}", "--seconds", "0.2", "--profile"],
    "separable": ["separable", "--tol", "0.1", VGG, "{folder}/s.onnx"],
    "groups": ["groups", VGG, "{folder}/g.onnx"],
    "transform": ["transform", "fc-to-conv", LENET, "{folder}/t.onnx"],
    "explain": ["explain"],
    "explain a reason": ["explain", "fcn/flat-input"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_fits(dense: tuple[Path, Shown], name: str) -> None:
    folder = dense[0].parent
    for model in (LENET, VGG):
        if not (folder / Path(model).name).exists():
            shutil.copy(model, folder)
    words = [word.format(dense="dense.onnx", folder=".") for word in COMMANDS[name]]
    words = [Path(word).name if word in (LENET, VGG) else word for word in words]
    with contextlib.chdir(folder):
        shown = on_terminal(*words)
    assert shown.code == (1 if name == "verify where" else 0), shown.raw
    told = [line for line in shown.lines if not line.startswith("failed: ")]  # one line, to be copied
    assert max(map(len, told)) <= 80, [line for line in told if len(line) > 80]


def test_a_wider_terminal_is_used() -> None:
    shown = on_terminal("inspect", LENET, "--no-passes", columns=200)
    assert 130 < shown.widest <= 200
    assert any("receptive field" in line for line in shown.lines)


def test_a_pipe_gets_every_fact_on_one_line() -> None:
    told = run("inspect", LENET, "--no-passes").stdout
    assert any(len(line) > 100 for line in told.splitlines())
    assert b"\x1b" not in told


@pytest.mark.parametrize(
    ("variables", "colours"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)], ids=str
)
def test_verdicts_have_colours(variables: dict[str, str], colours: bool, tmp_path: Path) -> None:
    shown = on_terminal("transform", "fc-to-conv", LENET, str(tmp_path / "t.onnx"), variables=variables)
    assert ("32mverified" in shown.raw) is colours
    if variables.get("TERM") == "dumb":
        assert "\x1b" not in shown.raw


def test_a_pipe_has_colours_where_they_are_forced(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "convrewrite", "transform", "fc-to-conv", LENET, str(tmp_path / "t.onnx")]
    done = subprocess.run(words, capture_output=True, env={**os.environ, "FORCE_COLOR": "1"}, check=True)
    assert b"32mverified" in done.stderr
    assert b"remaining" not in done.stderr, "a bar in a log"
    assert max(map(len, done.stderr.splitlines())) > 90, "nothing folds at a width that nobody has"


def test_the_first_phase_has_a_name(dense: tuple[Path, Shown]) -> None:
    assert "reading the model" in dense[1].raw
    shown = on_terminal("bench", LENET, LENET, "--seconds", "0.2")
    assert "starting workers" in shown.raw
    assert "0/100" not in shown.raw


def test_the_result_of_a_comparison_goes_to_standard_output(dense: tuple[Path, Shown]) -> None:
    done = run("verify", LENET, str(dense[0]))
    assert b"verified" in done.stdout
    assert b"x own noise" in done.stdout
    assert done.stderr == b""
    done = run("bench", LENET, str(dense[0]), "--seconds", "0.2")
    assert b"speedup" in done.stdout
    assert done.stderr == b""


def test_a_failure_has_its_figures_in_the_file_and_its_line_on_standard_error() -> None:
    done = run("verify", LENET, VGG)
    assert done.returncode == 1
    assert b"FAILED" in done.stdout
    assert done.stderr.startswith(b"failed: not equivalent")
    assert done.stderr.count(b"seed") == 1


def test_a_report_on_standard_output_is_alone_there(dense: tuple[Path, Shown]) -> None:
    done = run("verify", LENET, str(dense[0]), "--report", "-")
    assert json.loads(done.stdout)["verify"]["verdict"] == "verified"
    assert b"own noise" in done.stderr
    quiet = run("verify", LENET, str(dense[0]), "--quiet")
    assert quiet.stdout == quiet.stderr == b""
