"""The report: its schema, held against the reports of every way in which a command can end."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest
from cli_models import (
    call,
    constant_output,
    convolutional,
    mean_image,
    padded,
    plain,
    run,
    save,
    snapshot,
    symbolic,
    unknown_to_runtime,
    with_nan,
)

from convrewrite import model_io
from convrewrite.engine.windows import METADATA_KEY
from convrewrite.errors import UsageError
from convrewrite.pipeline import report

SCHEMA = json.loads(report.SCHEMA_FILE.read_text(encoding="utf-8"))
MODELS = {
    "plain": plain,
    "padded": padded,
    "symbolic": symbolic,
    "done": convolutional,
    "vacuous": constant_output,
    "position": mean_image,
    "double": unknown_to_runtime,
    "nan": lambda: with_nan("Conv"),
}
ENDINGS: dict[str, tuple[str, Sequence[str], int, str, str | None]] = {
    "windows": ("plain", (), 0, "rewritten", "verified"),
    "native-size": ("padded", (), 0, "rewritten", "verified"),
    "window given": ("symbolic", ("--window", "16x12"), 0, "rewritten", "verified"),
    "size fixed": ("plain", ("--size", "20x20"), 0, "rewritten", "verified"),
    "not verified": ("plain", ("--no-verify",), 0, "rewritten", "skipped"),
    "nothing to do": ("done", (), 0, "unchanged", None),
    "left out": ("plain", ("--skip", "*"), 0, "unchanged", None),
    "failed": ("plain", ("--max-output-error", "1e-12"), 1, "failed", "failed"),
    "failed on NaN": ("nan", (), 1, "failed", "failed"),
    "vacuous": ("vacuous", (), 1, "failed", "vacuous"),
    "refused": ("position", (), 3, "refused", None),
    "window needed": ("symbolic", (), 3, "refused", None),
    "operator unknown": ("double", (), 2, "error", None),
    "window wrong": ("plain", ("--window", "9x9"), 2, "error", None),
    "data missing": ("plain", ("--data", "nothing.npz"), 2, "error", None),
    "no model": ("nothing", (), 2, "error", None),
}


def written(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$id"] == report.SCHEMA


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_of_fcn_leaves_a_report(ending: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, options, code, outcome, verdict = ENDINGS[ending]
    if name in MODELS:
        save(MODELS[name](), folder / "in.onnx")
    assert call(monkeypatch, "fcn", "in.onnx", "out.onnx", "--report", "r.json", "--quiet", *options) == code
    found = written(folder / "r.json")
    assert (found["command"], found["exit_code"], found["outcome"]) == ("fcn", code, outcome)
    assert (found["verify"] or {"verdict": None})["verdict"] == verdict
    if name in MODELS and ending != "data missing":
        assert found["input"]["sha256"] == sha256(folder / "in.onnx")
        assert found["input"]["bytes"] == (folder / "in.onnx").stat().st_size
    assert (folder / "out.onnx").exists() == (code == 0)
    assert bool(found["output"]) == (code == 0)
    if code == 0:
        assert found["output"]["sha256"] == sha256(folder / "out.onnx")
        assert found["output"]["path"] == "out.onnx"


def test_the_window_is_that_of_the_metadata(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plain", "padded"):
        save(MODELS[name](), folder / "in.onnx")
        assert call(monkeypatch, "fcn", "in.onnx", "out.onnx", "--report", "r.json", "-q") == 0
        found = written(folder / "r.json")
        assert found["window"] == json.loads(model_io.load("out.onnx").metadata[METADATA_KEY])
        assert found["provider"] in ("cpu", "cuda")
        assert [site["outcome"] for site in found["sites"]] == ["rewritten"]
        assert found["sites"][0]["op"] == "Gemm"
        assert found["input"]["macs"] == found["output"]["macs"] > 0
        assert bool(found["verify"]["deviation"]) == (name == "padded")


def test_an_already_converted_model_has_a_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(plain(), folder / "in.onnx")
    assert call(monkeypatch, "fcn", "in.onnx", "out.onnx", "-q") == 0
    assert call(monkeypatch, "fcn", "out.onnx", "again.onnx", "--report", "r.json", "-q") == 0
    found = written(folder / "r.json")
    assert found["outcome"] == "unchanged"
    assert found["window"]["equivalence"] == "windows"
    assert found["input"]["sha256"] == found["output"]["sha256"]


def test_verify_has_a_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(plain(), folder / "a.onnx")
    assert call(monkeypatch, "fcn", "a.onnx", "b.onnx", "-q") == 0
    for other, options, code in (
        ("b.onnx", (), 0),
        ("a.onnx", (), 0),
        ("b.onnx", ("--max-output-error", "1e-12"), 1),
        ("c.onnx", (), 2),
    ):
        assert call(monkeypatch, "verify", "a.onnx", other, "--report", "r.json", "-q", *options) == code
        found = written(folder / "r.json")
        assert (found["command"], found["exit_code"]) == ("verify", code)
        assert found["outcome"] == {0: "compared", 1: "failed", 2: "error"}[code]
        assert found["input"]["sha256"] == sha256(folder / "a.onnx")
        assert (found["output"] is None) == (code == 2)


def test_the_message_of_a_failure_is_in_the_report(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(mean_image(), folder / "in.onnx")
    assert call(monkeypatch, "fcn", "in.onnx", "out.onnx", "--report", "r.json") == 3
    found = written(folder / "r.json")
    assert capsys.readouterr().err == f"refused: {found['message']}\n"
    (site,) = found["sites"]
    assert site["outcome"] == "refused"
    assert site["reason"] in found["message"]
    assert site["remedy"] in found["message"]


def test_ctrl_c_leaves_a_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_io, "load", interrupted)
    assert call(monkeypatch, "fcn", "in.onnx", "out.onnx", "--report", "r.json") == 130
    assert written(folder / "r.json")["message"] == "interrupted"


def test_a_report_that_cannot_be_written_is_found_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(plain(), folder / "in.onnx")
    (folder / "file").touch()
    (folder / "sub").mkdir()
    before = snapshot(folder)
    for target in ("sub", "nowhere/r.json", "file/r.json", "in.onnx", "out.onnx", "./sub/../in.onnx"):
        assert call(monkeypatch, "fcn", "in.onnx", "out.onnx", "--report", target) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        assert text.count("\n") == 1
        assert snapshot(folder) == before
    assert call(monkeypatch, "verify", "in.onnx", "in.onnx", "--report", "in.onnx") == 2
    assert snapshot(folder) == before


def test_a_report_replaces_an_older_one_whole(folder: Path) -> None:
    save(plain(), folder / "in.onnx")
    (folder / "r.json").write_text("an older report")
    assert run("fcn", "in.onnx", "out.onnx", "--report", "r.json", cwd=folder).returncode == 0
    written(folder / "r.json")
    assert sorted(path.name for path in folder.iterdir()) == ["in.onnx", "out.onnx", "r.json"]


def test_a_report_goes_where_models_do_not() -> None:
    with pytest.raises(UsageError, match="cannot both go to standard output"):
        report.check_target("-", "-")
    report.check_target("-", "out.onnx")


def test_the_schema_finds_what_is_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(padded(), folder / "in.onnx")
    assert call(monkeypatch, "fcn", "in.onnx", "out.onnx", "--report", "r.json", "-q") == 0
    good = written(folder / "r.json")
    validator = jsonschema.Draft202012Validator(SCHEMA)

    def wrong(*path: Any, value: Any) -> bool:
        broken = copy.deepcopy(good)
        place = broken
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return not validator.is_valid(broken)

    assert wrong("schema", value="convrewrite.report/2")
    assert wrong("surprise", value=1)
    assert wrong("exit_code", value=1)
    assert wrong("outcome", value="failed")
    assert wrong("output", value=None)
    assert wrong("output", "sha256", value="abc")
    assert wrong("sites", 0, "reason", value="fcn/no-rule")
    assert wrong("sites", 0, "macs_after", value=-1)
    assert wrong("window", "stride", value=[0, 1])
    assert wrong("verify", "verdict", value="fine")
    assert wrong("verify", "passed", value=False)
    assert wrong("verify", "cases", 0, "figures", value=[1.0])
    assert wrong("bench", value={"provider": "cpu", "speedup": {"median": 2.0, "low": 1.9}})
    assert not wrong("bench", value={"provider": "cpu", "speedup": {"median": 2.0, "low": 1.9, "high": 2.1}})


def test_every_real_model_has_a_report(corpus_model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = call(monkeypatch, "fcn", corpus_model, "out.onnx", "--report", "r.json", "-q", "--no-verify")
    found = written(folder / "r.json")
    assert code in (0, 3)
    assert found["exit_code"] == code
    if code == 0:
        onnx.checker.check_model("out.onnx")
