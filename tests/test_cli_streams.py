"""Standard input, output and error of the command: pipes, terminals, signals, and what is printed where."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
from cli_models import COMMAND, call, plain, run, save, snapshot
from processes import HANGS

from convrewrite import model_io, models
from convrewrite.model_io import load

LENET = models.lenet5_path()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(plain(), tmp_path / "in.onnx")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.onnx"


# Pipes --------------------------------------------------------------------------------------------------------------


def test_a_model_goes_through_pipes(source: Path, target: Path) -> None:
    assert run("fcn", source, target).returncode == 0
    content = source.read_bytes()
    for words, stdin in (((), content), (("-", "-"), content), ((source, "-"), b"")):
        result = run("fcn", *words, stdin=stdin)
        assert result.returncode == 0, result.stderr
        assert result.stdout == target.read_bytes()
        assert b"wrote      standard output" in result.stderr
    other = target.with_name("other.onnx")
    result = run("fcn", "-", other, stdin=content)
    assert (result.returncode, result.stdout) == (0, b"")
    assert other.read_bytes() == target.read_bytes()


def test_two_commands_in_one_pipe(source: Path, target: Path) -> None:
    """The second copies what the first wrote, since it is converted already."""
    words = " ".join(COMMAND)
    line = f"{words} fcn {source} - | {words} fcn --quiet > {target}"
    assert subprocess.run(line, shell=True, check=False, capture_output=True).returncode == 0
    onnx.checker.check_model(onnx.load(target))
    assert run("verify", source, target).returncode == 0


def test_a_model_with_nothing_to_do_goes_through_a_pipe_byte_for_byte(source: Path, target: Path) -> None:
    assert run("fcn", source, target).returncode == 0
    result = run("fcn", stdin=target.read_bytes())
    assert (result.returncode, result.stdout) == (0, target.read_bytes())


def test_a_source_without_a_target_is_a_usage_error(source: Path) -> None:
    for word in (source, "-"):
        result = run("fcn", word, stdin=source.read_bytes())
        assert (result.returncode, result.stdout) == (2, b"")
        assert b"give IN and OUT" in result.stderr


def test_what_fails_writes_nothing_to_standard_output(tmp_path: Path) -> None:
    for content in (b"", b"no model", LENET.read_bytes()[:5000]):
        result = run("fcn", stdin=content)
        assert (result.returncode, result.stdout) == (2, b"")
        assert result.stderr.startswith(b"error: standard input")
        assert result.stderr.count(b"\n") == 1


def test_external_data_cannot_come_through_a_pipe(source: Path, target: Path) -> None:
    model = onnx.load(source)
    onnx.save(model, target, save_as_external_data=True, size_threshold=0, location="weights.data")
    result = run("fcn", stdin=target.read_bytes())
    assert (result.returncode, result.stdout) == (2, b"")
    assert b"give the model's path" in result.stderr
    assert run("fcn", target, "-").returncode == 0


def test_the_facts_of_a_model_with_external_data_are_those_of_all_of_its_files(target: Path, tmp_path: Path) -> None:
    """On a file they name the second one, and the size is of both; on a stream they are of what was written."""
    model = onnx.load(LENET)
    onnx.save(model, target, save_as_external_data=True, size_threshold=0, location="weights.data")
    report = tmp_path / "report.json"

    result = run("fcn", target, "-", "--report", report)
    facts = json.loads(report.read_text())["output"]
    assert facts["bytes"] == len(result.stdout)
    assert facts["sha256"] == hashlib.sha256(result.stdout).hexdigest()

    written = tmp_path / "any-size.onnx"
    result = run("fcn", target, written, "--report", report)
    (data,) = tmp_path.glob("any-size-*.data")
    assert json.loads(report.read_text())["output"]["bytes"] == written.stat().st_size + data.stat().st_size
    assert f"its weights are in {data.name}, which has to lie beside it".encode() in result.stderr


def test_over_2_gb_cannot_go_to_standard_output(
    source: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(model_io.writing, "MAX_FILE_BYTES", 1000)
    assert call(monkeypatch, "fcn", source, "-") == 2
    captured = capfdbinary.readouterr()
    assert captured.out == b""
    assert b"over 2 GB" in captured.err


def unread(*words: str | Path) -> tuple[int, str]:
    """Exit code and standard error of a command whose standard output nobody reads."""
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        text = process.stderr.read().decode()
    return process.returncode, text


@pytest.mark.skipif(os.name == "nt", reason="a shell of Unix")
def test_a_model_that_nobody_reads_is_one_line() -> None:
    code, text = unread("fcn", LENET, "-")
    assert code == 2
    assert "Broken pipe" in text
    assert "Traceback" not in text
    assert "Exception ignored" not in text


@pytest.mark.skipif(os.name == "nt", reason="a shell of Unix")
@pytest.mark.parametrize(
    "words",
    [
        ("explain",),
        ("explain", "fcn"),
        ("inspect", LENET),
        ("verify", LENET, LENET),
        ("verify", LENET, LENET, "--quiet", "--report", "-"),
    ],
    ids=lambda words: " ".join(map(str, words[:1] + words[3:])),
)
def test_a_reader_that_goes_away_ends_the_command_without_a_word(words: Sequence[str | Path]) -> None:
    assert unread(*words) == (128 + signal.SIGPIPE, "")


@pytest.mark.skipif(os.name == "nt", reason="a shell of Unix")
@pytest.mark.parametrize("more", [(), ("--report", "-")])
def test_a_reader_that_goes_away_hides_no_failure(tmp_path: Path, more: Sequence[str]) -> None:
    model = onnx.load(LENET)
    weights = next(t for t in model.graph.initializer if len(t.dims) == 4)
    weights.CopyFrom(onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(weights), weights.name))
    code, text = unread("verify", LENET, save(model, tmp_path / "other.onnx"), *more)
    assert code == 1
    assert text.splitlines()[-1].startswith("failed: ")
    assert "pipe" not in text


def test_a_report_may_go_to_standard_output(source: Path, target: Path) -> None:
    result = run("fcn", source, target, "--report", "-")
    assert result.returncode == 0
    assert json.loads(result.stdout)["output"]["path"] == str(target)
    for words in ((source, "-"), ()):
        result = run("fcn", *words, "--report", "-", stdin=source.read_bytes())
        assert (result.returncode, result.stdout) == (2, b"")


# Terminals ----------------------------------------------------------------------------------------------------------

if os.name != "nt":
    import pty

    def on_terminal(words: Sequence[str | Path], streams: Sequence[str], stdin: bytes = b"") -> tuple[int, str]:
        """Run with some of the streams on a terminal of 80 columns; the exit code and what the terminal showed."""
        ours, theirs = pty.openpty()
        chosen = {name: theirs if name in streams else subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
        environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
        with subprocess.Popen([*COMMAND, *map(str, words)], env=environment, **chosen) as process:
            os.close(theirs)
            if process.stdin is not None:
                process.stdin.write(stdin)
                process.stdin.close()
            shown = b""
            try:
                while part := os.read(ours, 65536):
                    shown += part
            except OSError:  # how Linux says that the other end is closed
                pass
            rest = b"".join(stream.read() for stream in (process.stdout, process.stderr) if stream is not None)
        os.close(ours)
        return process.returncode, (shown + rest).decode()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such terminals")
def test_binary_never_goes_to_a_terminal(source: Path) -> None:
    for words, stdin in ((("fcn", source, "-"), b""), (("fcn",), source.read_bytes())):
        code, shown = on_terminal(words, ["stdout"], stdin)
        assert code == 2
        assert shown.startswith("error: binary data is not written to a terminal")
        assert shown.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such terminals")
def test_nothing_is_read_from_a_terminal(target: Path) -> None:
    for words in (("fcn", "-", target), ("fcn",)):
        code, shown = on_terminal(words, ["stdin"])
        assert code == 2
        assert shown.startswith("error: no model on standard input")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such terminals")
def test_a_terminal_gets_a_bar_and_folded_lines(source: Path, target: Path) -> None:
    code, shown = on_terminal(("fcn", source, target), ["stderr"])
    assert code == 0
    assert "\x1b[" in shown
    assert "━" in shown
    plain_text = "".join(part.partition("m")[2] if i else part for i, part in enumerate(shown.split("\x1b[")))
    printed = plain_text[plain_text.rindex("rewrote") :].splitlines()
    assert max(len(line) for line in printed if str(target) not in line) <= 80
    quiet = on_terminal(("fcn", source, target, "--quiet"), ["stderr"])
    assert quiet == (0, "")


def test_elsewhere_there_is_no_bar_and_no_line_is_folded(source: Path, target: Path) -> None:
    result = run("fcn", source, target, env={"COLUMNS": "40"})
    text = result.stderr.decode()
    assert not {"\x1b", "━", "\r"} & set(text)
    assert all(line == line.rstrip() for line in text.splitlines())
    assert any(len(line) > 80 for line in text.splitlines())


# What is printed where ----------------------------------------------------------------------------------------------


def test_quiet_prints_nothing_but_errors(source: Path, target: Path) -> None:
    result = run("fcn", source, target, "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert run("verify", source, target, "-q").stderr == b""
    assert run("fcn", target, target.with_name("copy.onnx"), "-q").stderr == b""
    result = run("fcn", source, target, "-q", "--max-output-error", "1e-12")
    assert result.returncode == 1
    assert result.stderr.count(b"\n") == 1
    assert result.stderr.startswith(b"failed: ")


def test_verbose_names_every_output(source: Path, target: Path) -> None:
    brief = run("fcn", source, target).stderr.decode()
    full = run("fcn", source, target, "--verbose").stderr.decode()
    output = load(source).graph.outputs[0].name
    lines = [line.split()[0] for line in full.splitlines()]
    assert output in lines
    assert output not in [line.split()[0] for line in brief.splitlines()]


# Signals ------------------------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from convrewrite import verification
from convrewrite.cli import app as cli
def slow(*args, **kwargs):
    print("running", file=sys.stderr, flush=True)
    time.sleep(60)
verification.verify_fcn = slow
cli.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_behind(sent: signal.Signals, code: int, source: Path, target: Path) -> None:
    before = snapshot(source.parent)
    words = [sys.executable, "-c", SLOW, "fcn", str(source), str(target)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "running\n"
        time.sleep(0.1)
        process.send_signal(sent)
        text = process.stderr.read()
    assert process.returncode == code
    assert text == ("interrupted\n" if sent == signal.SIGINT else "")
    assert snapshot(source.parent) == before


# Streams that are closed or full ------------------------------------------------------------------------------------

UNIX = pytest.mark.skipif(os.name == "nt", reason="a shell of Unix")


def shell(line: str, folder: Path) -> tuple[int, str]:
    """The exit code of a line of shell, and what it said; $C is the command."""
    script = line.replace("$C", " ".join(COMMAND))
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False, timeout=HANGS
    )
    return done.returncode, done.stderr


@UNIX
@pytest.mark.parametrize("ends", ["2>/dev/full", ">&-", ">&- 2>&- <&-"])
def test_a_file_is_written_whatever_can_be_said(ends: str, source: Path, target: Path) -> None:
    code, said = shell(f"$C fcn in.onnx out.onnx --report r.json {ends}", source.parent)
    assert code == 0, said
    assert ("wrote" in said) == ("2>" not in ends)
    assert run("verify", source, target, "-q").returncode == 0
    assert json.loads((source.parent / "r.json").read_text())["exit_code"] == 0


@UNIX
@pytest.mark.parametrize("ends", ["2>/dev/full", "2>&-"])
@pytest.mark.parametrize(
    ("words", "code"), [("fcn no.onnx out.onnx", 2), ("fcn in.onnx out.onnx --max-output-error 1e-12", 1)]
)
def test_what_fails_fails_the_same_where_nothing_can_be_said(words: str, code: int, ends: str, source: Path) -> None:
    assert shell(f"$C {words} {ends}", source.parent) == (code, "")


@UNIX
@pytest.mark.parametrize(
    "words", ["fcn in.onnx - -q", "inspect in.onnx", "inspect in.onnx --json -", "explain fcn", "--version"]
)
@pytest.mark.parametrize("ends", [">/dev/full", ">&-"])
def test_what_was_asked_for_and_cannot_be_written_is_one_line(words: str, ends: str, source: Path) -> None:
    code, said = shell(f"$C {words} {ends}", source.parent)
    assert code == 2
    assert said.startswith("error: cannot write ")
    assert said.count("\n") == 1


@UNIX
def test_nothing_comes_from_a_closed_input(source: Path, target: Path) -> None:
    code, said = shell("$C fcn - out.onnx <&-", source.parent)
    assert code == 2
    assert said.startswith("error: no model on standard input")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("fcn", "in.onnx", ""), "word 3 of the command"),
        (("fcn", "", "out.onnx"), "word 2 of the command"),
        (("fcn", "", ""), "word 2 of the command"),
        (("fcn", "in.onnx", "out.onnx", "--report", ""), "the value of --report"),
        (("fcn", "in.onnx", "out.onnx", "--html="), "the value of --html"),
        (("fcn", "in.onnx", "out.onnx", "--data", ""), "the value of --data"),
        (("separable", "--timings", "", "in.onnx", "out.onnx", "--tol", "0"), "the value of --timings"),
        (("verify", "in.onnx", ""), "word 3 of the command"),
        (("inspect", "in.onnx", "--json", ""), "the value of --json"),
        (("run", ""), "word 2 of the command"),
    ],
)
def test_an_empty_word_is_a_usage_error_and_never_a_stream(
    words: Sequence[str],
    what: str,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(source.parent)
    before = snapshot(source.parent)
    assert call(monkeypatch, *words) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {what} is empty; ")
    assert snapshot(source.parent) == before


@UNIX
def test_ctrl_c_that_reaches_both_processes_is_one(source: Path, target: Path) -> None:
    """A terminal sends it to the whole group."""
    before = snapshot(source.parent)
    words = [sys.executable, "-c", SLOW, "fcn", str(source), str(target)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "running\n"
        os.killpg(process.pid, signal.SIGINT)
        text = process.stderr.read()
    assert (process.returncode, text) == (130, "interrupted\n")
    assert snapshot(source.parent) == before


@pytest.mark.parametrize("columns", ["0", "00", "", "-5", "abc", "1"])
def test_a_terminal_without_a_width_hides_nothing(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    result = run("fcn", "there-is-none.onnx", "out.onnx")
    assert result.returncode == 2
    assert b"there-is-none.onnx" in b"".join(result.stderr.split())
