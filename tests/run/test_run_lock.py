"""The lock file of `run`: what a damaged one is, and what is believed of a good one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_models import snapshot
from onnx import numpy_helper
from run_projects import CONFIG, run_in_process

from convrewrite import model_io, models
from convrewrite.acceptance.decisions import Decisions
from convrewrite.batch.jobs import Job
from convrewrite.batch.lock import Lock
from convrewrite.errors import UsageError

ENTRY = {"key": "0" * 64, "output": "1" * 64, "result": {"status": "rewritten", "exit_code": 0, "message": ""}}


TIMING = {"verdict": "faster", "speedup": 2.0, "low": 1.9, "high": 2.1, "before_ms": 2, "after_ms": 1}


GOOD = {"schema": "convrewrite.lock/1", "models": {"models/a.onnx": ENTRY}, "timings": {"cpu": {"k": TIMING}}}


def changed(**more: Any) -> str:
    return json.dumps({**GOOD, **more})


def entry(**more: Any) -> str:
    return changed(models={"models/a.onnx": {**ENTRY, **more}})


def result(**more: Any) -> str:
    return entry(result={**ENTRY["result"], **more})  # type: ignore[dict-item]


def timing(**more: Any) -> str:
    return changed(timings={"cpu": {"k": {**TIMING, **more}}})


DAMAGED: dict[str, str | bytes] = {
    "empty": "",
    "truncated": changed()[:-40],
    "binary": bytes(range(256)) * 8,
    "utf-16": changed().encode("utf-16"),
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "toml": "schema = 1",
    "nan": changed().replace("2.1", "NaN"),
    "infinity": changed().replace("2.1", "-Infinity"),
    "1e999": changed().replace("2.1", "1e999"),
    "many digits": changed().replace("2.1", "9" * 6000),
    "deep lists": "[" * 100_000,
    "deep tables": '{"a":' * 100_000,
    "deep but closed": changed(timings=json.loads('{"a":' * 60 + "{}" + "}" * 60)),
    "deep in a result": result(more=json.loads("[" * 200 + "]" * 200)),
    "a name twice": changed()[:-1] + ', "models": {}}',
    "a model twice": changed().replace('"models": {', '"models": {"models/a.onnx": {}, '),
    "unknown schema": changed(schema="convrewrite.lock/2"),
    "schema of another type": changed(schema=[1]),
    "no models": json.dumps({"schema": "convrewrite.lock/1", "timings": {}}),
    "models as a list": changed(models=[ENTRY]),
    "models as null": changed(models=None),
    "timings as text": changed(timings="x"),
    "a device as a list": changed(timings={"cpu": []}),
    "a timing as a number": changed(timings={"cpu": {"k": 1}}),
    "a further key": changed(more=1),
    "entry as text": changed(models={"a": "x"}),
    "key as a number": entry(key=7),
    "key of another length": entry(key="0" * 63),
    "output as a list": entry(output=["1" * 64]),
    "entry without a result": changed(models={"a": {"key": "0" * 64, "output": "0" * 64}}),
    "a further fact": entry(more=1),
    "result as text": entry(result="rewritten"),
    "unknown status": result(status="perfect"),
    "failed": result(exit_code=1),
    "exit code as text": result(exit_code="0"),
    "error as text": result(output_error="small"),
    "speedup as a number": result(speedup=2.0),
    "speedup without bounds": result(speedup={"median": 2.0}),
    "unknown class": result(equivalence="nearly"),
    "verdict as a number": timing(verdict=1),
    "speedup as text": timing(speedup="2"),
    "a time as true": timing(low=True),
    "a time as a list": timing(low=[1]),
    "a timing with more": timing(more=1),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_lock_is_one_line_and_stays(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    content = DAMAGED[name]
    (project / "convrewrite.lock").write_bytes(content if isinstance(content, bytes) else content.encode())
    before = snapshot(project)
    code, said = run_in_process(monkeypatch, capfd, "run")
    assert (code, "convrewrite.lock is no lock file of convrewrite" in said) == (2, True), said
    assert "restore it from version control" in said
    assert len(said.strip().splitlines()) == 1
    assert len(said) < 500
    assert snapshot(project) == before


def make_folder(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("make", [make_folder, make_pipe, make_large])
def test_a_lock_that_is_no_file(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], make: Callable[[Path], None]
) -> None:
    make(project / "convrewrite.lock")
    code, said = run_in_process(monkeypatch, capfd, "run", "--dry-run")
    assert code == 2, said
    assert len(said.strip().splitlines()) == 1


def test_a_lock_that_cannot_be_read(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "convrewrite.lock").write_text(changed(), encoding="utf-8")

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(UsageError, match=r"cannot read .*: Permission denied"):
        Lock.read(project / "convrewrite.lock")


def test_a_lock_comes_back(project: Path) -> None:
    path = project / "convrewrite.lock"
    path.write_text(json.dumps(GOOD, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    before = path.read_bytes()
    Lock.read(path).save()
    assert path.read_bytes() == before
    lock = Lock(project / "new.lock")
    job = Job("a", project / "a", project / "models" / "lenet5.onnx")
    lock.keep(job, "0" * 64, {"status": "rewritten", "exit_code": 0, "message": "", "output_error": float("nan")})
    lock.save()
    again = Lock.read(project / "new.lock")
    assert again.fresh(job, "0" * 64) is not None
    assert again.fresh(job, "1" * 64) is None
    job.target.write_bytes(job.target.read_bytes()[:-9])
    assert again.fresh(job, "0" * 64) is None, "what is damaged is made again"


@pytest.mark.parametrize(
    "content", ["[" * 100_000, timing(), '{"schema": "convrewrite.timings/1", "devices": {"a": 1}}']
)
def test_a_damaged_file_of_timings(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="it is no file of timings"):
        Decisions.read(tmp_path / "t.json")


# What is believed -----------------------------------------------------------------------------------------------------


def scaled(path: Path, factor: float) -> None:
    """The same network with one tensor of weights times a factor."""
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    values = (numpy_helper.to_array(tensor).astype(np.float64) * factor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path.write_bytes(model.SerializeToString())


def test_check_believes_no_lock(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A foreign network as the output, and a lock that was changed to fit it."""
    config = CONFIG.replace("0.01", "0.6") + "[reports]\njson = 'r.json'\n"
    (project / "convrewrite.toml").write_text(config, encoding="utf-8")
    output, lock = project / "optimized" / "lenet5.onnx", project / "convrewrite.lock"
    assert run_in_process(monkeypatch, capfd, "run")[0] == 0
    good = output.read_bytes()
    before = snapshot(project)
    assert run_in_process(monkeypatch, capfd, "run", "--check")[0] == 0
    assert {**snapshot(project), "r.json": ""} == {**before, "r.json": ""}, "it writes nothing but the report"
    assert json.loads((project / "r.json").read_text())["models"][0]["cached"] is False

    scaled(output, 1.01)
    data = json.loads(lock.read_text())
    data["models"]["models/lenet5.onnx"]["output"] = model_io.load(output).sha256
    lock.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
    code, said = run_in_process(monkeypatch, capfd, "run", "--check")
    assert (code, "it would be rewritten: its output is another network" in said) == (1, True), said
    code, said = run_in_process(monkeypatch, capfd, "run")
    assert (code, "as before, not verified again" in said, "1 not verified again" in said) == (0, True, True), said
    model = json.loads((project / "r.json").read_text())["models"][0]
    assert (model["cached"], model["note"].startswith("not verified again")) == (True, True)
    assert run_in_process(monkeypatch, capfd, "run", "--force")[0] == 0
    assert output.read_bytes() == good

    scaled(output, 1 + 1e-7)
    assert output.read_bytes() != good
    code, said = run_in_process(monkeypatch, capfd, "run", "--check")
    assert code == 0, said
    assert "last digits" in json.loads((project / "r.json").read_text())["models"][0]["note"]
    output.write_bytes(good[:-50])
    assert run_in_process(monkeypatch, capfd, "run", "--check")[0] == 1
    output.unlink()
    code, said = run_in_process(monkeypatch, capfd, "run", "--check")
    assert (code, "its output is missing" in said) == (1, True), said


def test_check_of_a_model_that_is_copied(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing to rewrite: its output is the model itself, and has to be there."""
    (project / "convrewrite.toml").write_text(CONFIG.replace("0.01", "0.0"), encoding="utf-8")
    code, said = run_in_process(monkeypatch, capfd, "run", "--check")
    assert (code, "it would be copied: its output is missing" in said) == (1, True), said
    (project / "optimized").mkdir()
    output = project / "optimized" / "lenet5.onnx"
    shutil.copy(models.trained_path("digits_dw7"), output)
    code, said = run_in_process(monkeypatch, capfd, "run", "--check")
    assert (code, "it would be copied: its output is another network" in said) == (1, True), said
    shutil.copy(project / "models" / "lenet5.onnx", output)
    assert run_in_process(monkeypatch, capfd, "run", "--check")[0] == 0
