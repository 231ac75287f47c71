"""The examples of --help, completion, plurals, and what is said of values that do not fit."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from cli_models import run

from convrewrite import __version__
from convrewrite.cli import usage
from convrewrite.cli.app import app
from convrewrite.options import kinds
from convrewrite.options.kinds import CLI

GROUP: Any = typer.main.get_command(app)

COMPLETED = {
    "transform f": ["fc-to-conv", "fcn"],
    "transform ": ["conv-to-fc", "fc-to-conv", "fcn", "groups", "open-batch", "separable", "subpixel-conv"],
    "explain fcn/flat": ["fcn/flat-input"],
    "fcn --provider ": ["auto", "cpu", "cuda", "tensorrt"],
    "separable --form t": ["tucker"],
    "bench --min": ["--min-speedup"],
    "insp": ["inspect"],
}


def lines_of(command: str) -> list[str]:
    """The examples as they are printed."""
    told = run(command, "--help", env={"COLUMNS": "80", "TERM": "dumb"}).stdout.decode()
    _, found, examples = told.partition("Examples")
    assert found, f"{command} --help has no examples"
    return [line.strip() for line in examples.splitlines() if line.strip().startswith("convrewrite")]


@pytest.mark.parametrize("command", sorted(GROUP.commands))
def test_every_command_has_examples_that_parse(command: str) -> None:
    lines = lines_of(command)
    assert lines
    for line in lines:
        for part in line.partition(">")[0].split("|"):
            words = shlex.split(part)
            assert words[0] == "convrewrite"
            root = GROUP.make_context("convrewrite", words[1:])
            name, child, rest = GROUP.resolve_command(root, [*root._protected_args, *root.args])
            child.make_context(name, rest, parent=root)
        assert command in line.split(), line


@pytest.mark.parametrize("line", COMPLETED)
def test_bash_completes(line: str, tmp_path: Path) -> None:
    """A real bash sources the script that --show-completion prints, and asks its function."""
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    environment["PATH"] = f"{_script(tmp_path)}{os.pathsep}{environment['PATH']}"
    words = ["convrewrite", *line.split(" ")]
    asked = f"""
        eval "$(convrewrite --show-completion bash)"
        COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}
        _convrewrite_completion convrewrite
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", asked], capture_output=True, env=environment, text=True, check=True)
    assert sorted(done.stdout.split()) == COMPLETED[line], done.stderr


def _script(folder: Path) -> Path:
    """A folder with a script like the one that is installed."""
    path = folder / "convrewrite"
    path.write_text(f"#!{sys.executable}\nfrom convrewrite.cli.app import main\n\nmain()\n")
    path.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("shell", "variables"),
    [
        ("zsh", {"_TYPER_COMPLETE_ARGS": "convrewrite transform gr"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "convrewrite transform gr", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_other_shells_are_answered(shell: str, variables: dict[str, str]) -> None:
    done = run(env={**variables, "_CONVREWRITE_COMPLETE": f"complete_{shell}"})
    assert b"groups" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("shell", "place"),
    [
        ("bash", ".bash_completions/convrewrite.sh"),
        ("zsh", ".zfunc/_convrewrite"),
        ("fish", ".config/fish/completions/convrewrite.fish"),
    ],
)
def test_completion_is_installed(shell: str, place: str, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = run("--install-completion", shell, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "_CONVREWRITE_COMPLETE" in (tmp_path / place).read_text()


@pytest.mark.parametrize("words", [["--version", "-v"], ["-v", "--version"], ["--version", "--verbose"]])
def test_the_version_with_all_that_a_report_needs(words: list[str]) -> None:
    import numpy
    import onnx
    import onnxruntime

    told = run(*words).stdout.decode()
    for part in (__version__, onnx.__version__, numpy.__version__, onnxruntime.__version__, "CPUExecutionProvider"):
        assert part in told
    assert re.search(r"onnxruntime[\w-]* \d", told), "the distribution that brings it"
    assert f"{sys.version_info.major}.{sys.version_info.minor}." in told
    assert run("--version").stdout.decode() == f"convrewrite {__version__}\n"


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("raise ModuleNotFoundError(\"No module named 'onnxruntime'\", name='onnxruntime')", "not installed"),
        ("raise ImportError('libcudart.so.12: cannot open')", "does not load: libcudart.so.12"),
        ("", "does not load: module 'onnxruntime' has no attribute"),
    ],
    ids=["missing", "broken", "left over"],
)
def test_the_version_without_a_runtime(tmp_path: Path, module: str, told: str) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(module)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-m", "convrewrite", "--version", "-v"]
    done = subprocess.run(words, capture_output=True, env=environment, text=True, check=True)
    assert told in done.stdout
    assert done.stderr == ""


OPTIONS = [
    (command, option)
    for command, options in usage.OPTIONS.items()
    for option in options.values()
    if CLI in option.on and not (isinstance(option, kinds.Flag) and option.words is None)
]


@pytest.mark.parametrize(
    ("command", "option"), OPTIONS, ids=[f"{command} {option.name}" for command, option in OPTIONS]
)
def test_a_missing_value_is_answered_with_one_that_parses(command: str, option: Any) -> None:
    flag = usage.flags_of(option)[0]
    told = usage.needs(option)
    found = re.search(r"for example (\S+)|(?:or|^)\s?(\S+)$", told)
    assert found, told
    example = (found[1] or found[2]).strip("'")
    child = GROUP.commands[command]
    places = [word for param in child.params if param.param_type_name == "argument" for word in ("x",)]
    child.make_context(command, [*places, flag, example])
    with pytest.raises(typer.TyperException) as caught:
        child.make_context(command, [*places, flag])
    assert usage.wrong_value(caught.value) == f"{flag} needs {told}"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fcn", "a", "b", "--size", "x"], "--size needs HxW, for example 32x32, not 'x'; see convrewrite fcn --help"),
        (["fcn", "a", "b", "--size"], "--size needs HxW, for example 32x32; see convrewrite fcn --help"),
        (["fcn", "a", "b", "--provider=gpu"], "--provider needs auto, cpu, cuda or tensorrt, not 'gpu'; see"),
        (["separable", "a", "b", "--tol", "much"], "--tol needs a number of 0 or more, for example 1e-4, not 'much'"),
        (["groups", "a", "b", "--into", "1"], "--into needs a whole number, 2 or more, for example 2, not '1'"),
    ],
)
def test_what_is_said_of_a_value_that_does_not_fit(words: list[str], told: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert f"error: {told}" in done.stderr.decode()
    assert b"Value error" not in done.stderr
    assert b"Input should be" not in done.stderr
