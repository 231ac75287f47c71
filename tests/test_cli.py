"""The contract of the command line, through the console script: commands, options, exit codes, help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from cli_models import (
    call,
    constant_output,
    convolutional,
    images,
    padded,
    plain,
    run,
    save,
    snapshot,
    symbolic,
)

from convrewrite import models
from convrewrite.cli import app as cli
from convrewrite.cli.options import parse_size
from convrewrite.engine.windows import Window
from convrewrite.errors import ConvrewriteError
from convrewrite.model_io import load

LENET = models.lenet5_path()
WORKS = {"plain": plain, "padded": padded}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(plain(), tmp_path / "in.onnx")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.onnx"


def window_of(path: Path) -> Window:
    window = Window.from_metadata(load(path).metadata)
    assert window is not None
    return window


# fcn ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORKS)
def test_fcn_writes_a_verified_model(name: str, tmp_path: Path, target: Path) -> None:
    path = save(WORKS[name](), tmp_path / "in.onnx")
    before = path.read_bytes()
    result = run("fcn", path, target)
    text = result.stderr.decode()
    assert (result.returncode, result.stdout) == (0, b""), text
    onnx.checker.check_model(onnx.load(target))
    assert path.read_bytes() == before
    assert [line.split()[0] for line in text.splitlines() if not line.startswith(" ")] == [
        "rewrote",
        "window",
        "verified",
        "wrote",
        "next",
    ]
    assert f"Conv 5 x {'6 x 6 x 4' if name == 'plain' else '4 x 5 x 4'}" in text
    assert str(target) in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]


def test_the_text_says_that_the_input_was_replaced(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(models.lenet5_path().read_bytes())
    kept = run("fcn", source, tmp_path / "out.onnx")
    assert b"replaced" not in kept.stderr
    done = run("fcn", source, source)
    assert done.returncode == 0, done.stderr
    assert b"the input was replaced" in done.stderr
    again = run("fcn", source, source)
    assert b"nothing to do" in again.stderr
    assert b"replaced" not in again.stderr


def test_the_committed_model_converts(target: Path) -> None:
    assert run("fcn", LENET, target).returncode == 0
    assert window_of(target).equivalence == "windows"


def test_the_output_is_the_same_on_every_run(source: Path, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        assert run("fcn", source, tmp_path / name).returncode == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_fcn_on_its_own_output_copies_it_byte_for_byte(source: Path, target: Path, tmp_path: Path) -> None:
    assert run("fcn", source, target).returncode == 0
    result = run("fcn", target, tmp_path / "again.onnx")
    assert result.returncode == 0
    assert b"nothing to do" in result.stderr
    assert (tmp_path / "again.onnx").read_bytes() == target.read_bytes()


def test_a_convolutional_model_is_copied_byte_for_byte(tmp_path: Path, target: Path) -> None:
    path = save(convolutional(), tmp_path / "in.onnx")
    result = run("fcn", path, target)
    assert result.returncode == 0
    assert b"nothing to do" in result.stderr
    assert target.read_bytes() == path.read_bytes()


def test_one_path_may_be_both(source: Path, target: Path, tmp_path: Path) -> None:
    assert run("fcn", source, target).returncode == 0
    assert run("fcn", source, source).returncode == 0
    assert source.read_bytes() == target.read_bytes()
    before = snapshot(tmp_path)
    assert run("fcn", source, source).returncode == 0
    assert snapshot(tmp_path) == before


def test_one_path_for_both_is_unchanged_where_a_check_fails(tmp_path: Path) -> None:
    path = save(constant_output(), tmp_path / "model.onnx")
    before = snapshot(tmp_path)
    result = run("fcn", path, path)
    assert result.returncode == 1
    assert result.stderr.decode().splitlines()[-1].startswith("failed: the verification says nothing")
    assert snapshot(tmp_path) == before


def test_what_cannot_be_verified_can_be_written_unverified(tmp_path: Path, target: Path) -> None:
    path = save(constant_output(), tmp_path / "in.onnx")
    result = run("fcn", path, target, "--no-verify")
    assert result.returncode == 0
    assert b"NOT verified" in result.stderr
    assert f"convrewrite verify {path} {target}".encode() in result.stderr
    assert target.exists()


def test_window_names_the_size_of_a_symbolic_input(tmp_path: Path, target: Path) -> None:
    path = save(symbolic(), tmp_path / "in.onnx")
    assert run("fcn", path, target, "--window", "16x12").returncode == 0
    assert window_of(target).size == (16, 12)


def test_size_fixes_the_new_input(source: Path, target: Path) -> None:
    assert run("fcn", source, target, "--size", "20x18").returncode == 0
    graph = onnx.load(target).graph
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 20, 18]
    assert [d.dim_value for d in graph.output[0].type.tensor_type.shape.dim] == [1, 5, 3, 4]


@pytest.mark.parametrize("options", [("--size", "8"), ("--size", "8x8"), ("--window", "20x20"), ("--window", "9")])
def test_a_size_that_does_not_fit_is_a_usage_error(options: tuple[str, str], source: Path, target: Path) -> None:
    result = run("fcn", source, target, *options)
    assert result.returncode == 2
    assert options[0].encode() in result.stderr
    assert not target.exists()


def test_only_and_skip_leave_the_head_alone(source: Path, target: Path) -> None:
    for options in (("--skip", "hea?"), ("--skip", "other", "--skip", "head")):
        result = run("fcn", source, target, *options)
        assert result.returncode == 0
        assert b"rewrite/left-out" in result.stderr
        assert target.read_bytes() == source.read_bytes()
    typo = run("fcn", source, target, "--only", "haed", "-q")
    assert (typo.returncode, typo.stderr) == (2, b"error: --only 'haed' matches no node and no tensor of the model\n")
    assert run("fcn", source, target, "--only", "h*d", "--skip", "other").returncode == 0
    assert target.read_bytes() != source.read_bytes()


def test_max_output_error_is_the_tolerance(source: Path, target: Path) -> None:
    result = run("fcn", source, target, "--max-output-error", "1e-12")
    assert result.returncode == 1
    assert b"tolerance 1.0e-12" in result.stderr
    assert not target.exists()
    assert run("fcn", source, target, "--max-output-error", "1e-3").returncode == 0


@pytest.mark.parametrize("text", ["nan", "-1", "inf", "much"])
def test_a_tolerance_is_a_number(text: str, source: Path, target: Path) -> None:
    assert run("fcn", source, target, "--max-output-error", text).returncode == 2
    assert not target.exists()


# Sizes and data -----------------------------------------------------------------------------------------------------


def test_one_parser_reads_every_size() -> None:
    assert parse_size("16000") == (16000,)
    assert parse_size("224x192") == (224, 192)
    assert parse_size("16X112x112") == (16, 112, 112)


@pytest.mark.parametrize("text", ["", "x", "224x", "0x8", "-1x3", "1x2x3x4", "3.5", "a", "8 x 8", "٣x٣", "9" * 40])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a size"):
        parse_size(text)


def test_real_inputs_are_cut_into_batches(tmp_path: Path, target: Path) -> None:
    path = save(plain(batch=2), tmp_path / "in.onnx")
    data, report = tmp_path / "data.npz", tmp_path / "report.json"
    np.savez(data, x=images(4, 3, 16, 12))
    assert run("fcn", path, target, "--data", data, "--report", report).returncode == 0
    cases = json.loads(report.read_text())["verify"]["cases"]
    assert any("data" in case["note"] for case in cases)
    held = data.read_bytes()
    assert run("fcn", path, target, "--data", data, "--report", data).returncode == 2
    assert data.read_bytes() == held


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": images(3, 3, 16, 12)}, "3 samples"),
        ({"y": images(2, 3, 16, 12)}, "no array 'x'"),
        ({"x": images(2, 3, 9, 9)}, "the input is 2x3x16x12"),
        ({"x": images(2, 3, 16, 12).astype(np.int64)}, "int64"),
        ({"x": images(0, 3, 16, 12)}, "no sample"),
    ],
    ids=["remainder", "name", "shape", "type", "empty"],
)
def test_data_that_does_not_fit_is_a_usage_error(
    arrays: dict[str, np.ndarray], words: str, tmp_path: Path, target: Path
) -> None:
    path = save(plain(batch=2), tmp_path / "in.onnx")
    np.savez(tmp_path / "data.npz", **arrays)
    result = run("fcn", path, target, "--data", tmp_path / "data.npz")
    assert result.returncode == 2
    assert words in result.stderr.decode()
    assert not target.exists()


def test_seed_and_samples_choose_the_inputs(source: Path, tmp_path: Path) -> None:
    reports = []
    for number, options in enumerate((("--seed", "7"), ("--seed", "7"), ("--seed", "8", "--samples", "5"))):
        report = tmp_path / f"{number}.json"
        assert run("fcn", source, tmp_path / "out.onnx", "--report", report, *options).returncode == 0
        reports.append(json.loads(report.read_text())["verify"])
    assert reports[0] == reports[1]
    assert reports[0]["cases"] != reports[2]["cases"]
    assert {case["seed"] for case in reports[2]["cases"]} == {8}
    assert "--seed 8 --samples 5" in reports[2]["command"]
    assert run("fcn", source, tmp_path / "out.onnx", "--samples", "0").returncode == 2
    assert run("fcn", source, tmp_path / "out.onnx", "--seed", "-1").returncode == 2


# Providers ----------------------------------------------------------------------------------------------------------


def _has_cuda() -> bool:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return False
    return run("verify", LENET, LENET, "--provider", "cuda").returncode == 0


@pytest.mark.parametrize("more", [(), ("--no-verify",)])
def test_a_provider_that_is_not_there_writes_nothing(more: tuple[str, ...], source: Path, target: Path) -> None:
    if _has_cuda():
        pytest.skip("CUDA works here")
    result = run("fcn", source, target, "--provider", "cuda", *more)
    text = result.stderr.decode()
    assert result.returncode == 2
    assert text.startswith("error: provider 'cuda' cannot be used here: ")
    assert 'pip install "convrewrite[cuda]"' in text
    assert text.count("\n") == 1
    assert not target.exists()


# verify -------------------------------------------------------------------------------------------------------------


def test_verify_compares_two_files(source: Path, target: Path, tmp_path: Path) -> None:
    assert run("fcn", source, target).returncode == 0
    result = run("verify", source, target)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"every window of" in result.stdout
    assert run("verify", source, source).returncode == 0
    other = save(plain(opset=12), tmp_path / "other.onnx")
    model = onnx.load(other)
    model.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(model.graph.initializer[0]) + np.float32(0.5), model.graph.initializer[0].name
        )
    )
    result = run("verify", source, save(model, other))
    assert result.returncode == 1
    assert result.stderr.decode().splitlines()[-1].startswith("failed: not equivalent at ")


def test_verify_takes_a_size(source: Path, target: Path) -> None:
    assert run("fcn", source, target).returncode == 0
    result = run("verify", source, target, "--size", "40x40")
    assert result.returncode == 0
    assert b"every window of 40x40" in result.stdout


def test_verify_wants_two_paths(source: Path) -> None:
    assert run("verify", source).returncode == 2
    assert run("verify", source, "-", stdin=source.read_bytes()).returncode == 2
    assert run("verify", source, source.parent / "nothing.onnx").returncode == 2


# Faults of our own --------------------------------------------------------------------------------------------------


def test_an_internal_error_is_70_with_the_command_to_report_it(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the wheel\nis off")

    monkeypatch.setattr("convrewrite.pipeline.any_size.run_pass", broken)
    report = source.parent / "report.json"
    assert call(monkeypatch, "fcn", source, target, "--report", report) == 70
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "internal error: RuntimeError: the wheel is off"
    assert lines[1].endswith(f"convrewrite fcn {source} {target} --report {report} --debug")
    assert len(lines) == 2
    assert json.loads(report.read_text())["exit_code"] == 70
    assert not target.exists()
    assert call(monkeypatch, "fcn", source, target, "--debug") == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_broken_contract_of_a_pass_is_an_internal_error(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ConvrewriteError("pass fcn built a graph that is not valid ONNX")

    monkeypatch.setattr("convrewrite.pipeline.any_size.run_pass", broken)
    assert call(monkeypatch, "fcn", source, target) == 70
    assert capsys.readouterr().err.startswith("internal error: pass fcn built a graph")


def test_debug_shows_the_traceback_of_bad_input(tmp_path: Path) -> None:
    for place in (("fcn", "--debug"), ("--debug", "fcn")):
        result = run(*place, tmp_path / "nothing.onnx", tmp_path / "out.onnx")
        assert result.returncode == 2
        assert b"Traceback" in result.stderr
    assert b"Traceback" not in run("fcn", tmp_path / "nothing.onnx", tmp_path / "out.onnx").stderr


def test_the_parts_of_a_fault_are_not_taken_for_markup(tmp_path: Path) -> None:
    result = run("fcn", "[bold]nothing[/].onnx", tmp_path / "out.onnx")
    assert b"[bold]nothing[/].onnx" in result.stderr


# Help and version ---------------------------------------------------------------------------------------------------


def test_version_goes_to_standard_output() -> None:
    result = run("--version")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode().split() == ["convrewrite", cli.__version__]


@pytest.mark.parametrize("words", [("nothing",), ("fcn", "--nothing"), ("verify",), ("fcn", "a", "b", "c"), ()])
def test_wrong_words_are_a_usage_error(words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.returncode == 2
    assert result.stderr.count(b"\n") == (1 if words else 0)
    assert not words or b"--help" in result.stderr


def test_the_help_fits_a_terminal_and_speaks_in_sentences() -> None:
    for command in ("fcn", "verify", "explain"):
        result = run(command, "--help")
        assert result.returncode == 0
        assert max(len(line) for line in result.stdout.decode().splitlines()) <= 80
    for command in cli.app.registered_commands:
        assert command.callback is not None
        assert (command.callback.__doc__ or "").endswith(".")


def test_help_imports_nothing_heavy() -> None:
    words = [sys.executable, "-X", "importtime", "-m", "convrewrite", "--help"]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    imported = {line.split("|")[-1].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "convrewrite" in imported
    assert not imported & {"onnx", "onnxruntime", "onnx_graphsurgeon", "numpy", "scipy"}
