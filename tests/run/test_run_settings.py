"""The file of settings of `run`: a mistake in it is one line, and every key says what it means."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from cli_models import snapshot
from run_projects import STEPS, VGG, call, run_in_process

from convrewrite.batch.settings import SECTIONS, Settings, read
from convrewrite.batch.starter import STARTER
from convrewrite.errors import UsageError
from convrewrite.options import SeparableOptions
from convrewrite.options.keywords import plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = []\nsteps = []", "there is no key 'model'; did you mean 'models'?"),
        (VGG.replace("tol", "tolerance"), "tolerance'; did you mean 'tol'?"),
        (
            VGG.replace('pass = "separable"', 'pass = "seperable"'),
            "there is no pass 'seperable'; did you mean 'separable'?",
        ),
        (VGG.replace('pass = "separable"', ""), 'needs pass = "fcn"'),
        (VGG.replace("max_output_error", "max_error"), "did you mean 'max_output_error'?"),
        (VGG.replace("0.01", "-1.0"), "greater than or equal to 0"),
        (VGG.replace("0.01", '"a"'), "valid number"),
        (VGG.replace("0.01", "nan"), "tol"),
        (VGG.replace("models/*.onnx", "nothing/*.onnx"), "matches no file"),
        (VGG + "[verification", "is not TOML"),
        ("output = '{nam}.onnx'\n" + VGG, "has a field that is not"),
        ("output = 'one.onnx'\n" + VGG, "would both be written to one.onnx"),
        ("output = 'models/{name}.onnx'\n" + VGG, "which is model 'models/"),
        ("lock = 'other.xml'\n" + VGG, "is no lock file"),
        (VGG.replace("report.json", "models/lenet5.onnx"), "would overwrite"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(repository: Path, text: str, message: str) -> None:
    (repository / "convrewrite.toml").write_text(text, encoding="utf-8")
    (repository / "other.xml").write_text("<a/>", encoding="utf-8")
    before = snapshot(repository)
    done = call(repository, "run")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert snapshot(repository) == before


def test_no_file(tmp_path: Path) -> None:
    done = call(tmp_path, "run")
    assert done.returncode == 2
    assert "convrewrite init" in done.stderr


# The file of settings -------------------------------------------------------------------------------------------------

ODD = {
    "deep lists": "a = " + "[" * 50_000 + "]" * 50_000,
    "deep tables": "a = " + "{a=" * 50_000 + "1" + "}" * 50_000,
    "deep keys": ".".join("a" * 3000) + " = 1",
    "deep value of a known key": "jobs = " + "[" * 300 + "]" * 300,
    "many digits": "jobs = " + "9" * 6000,
    "a huge number": f"jobs = {10**400}",
    "a huge tolerance": f"gates.max_output_error = {10**400}",
    "samples": f"verification.samples = {10**12}",
    "seed": f"verification.seed = {10**40}",
    "size": f"verification.size = [{10**30}, 3]",
    "max_bytes": f"gates.max_bytes = {10**30}",
    "infinity": "gates.min_speedup = inf",
    "nan": "gates.bench_seconds = nan",
    "a date": "jobs = 1979-05-27T07:32:00Z",
    "a time as a path": "lock = 07:32:00",
    "tables in place of a table": "[[gates]]\nmax_bytes = 1",
    "a table in place of tables": "steps = {pass = 'groups'}",
    "text in place of a table": "reports = 'r.json'",
    "a number among steps": "steps = [1, 'x', []]",
    "a step of two names": "steps = [{pass = ['fcn']}]",
    "a key twice": "jobs = 1\njobs = 2",
    "a long key": f"{'k' * 100_000} = 1",
    "an odd key": '"a\\nb\\u001b[31m" = 1',
    "no text": "\udcff",
    "a zero byte": "jobs = 1\0",
    "empty": "",
    "a lone bracket": "[",
    "surrogates": 'lock = "\\ud800"',
    "a mebibyte of mistakes": "\n".join(f"k{i} = 1" for i in range(80_000)),
    "too large": "#" * (5 << 20),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_settings_are_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    text = ODD[name]
    more = "" if "steps" in text else "\n" + STEPS
    models_ = "" if not text else "models = ['models/*.onnx']\n"
    content = models_ + text + (more if text else "")
    (project / "convrewrite.toml").write_bytes(content.encode("utf-8", "surrogateescape"))
    for words in (["run", "--dry-run"], ["run"]):
        code, said = run_in_process(monkeypatch, capfd, *words)
        assert code == 2, said
        assert len(said.strip().splitlines()) == 1, said
        assert len(said) < 10_000
        assert "\x1b" not in said


def test_the_starter_says_everything_that_may_be_said(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(STARTER, encoding="utf-8")
    read(tmp_path / "c.toml")
    uncommented = "\n".join(line.removeprefix("# ") if " = " in line else line for line in STARTER.splitlines())
    data = tomllib.loads(uncommented.replace("# [[steps]]", "[[steps]]"))
    settings = Settings.model_validate(data)
    assert settings.jobs == 2
    known = {*Settings.model_fields} - {"models", "steps"}
    assert all(name in STARTER for name in known)
    with pytest.raises(UsageError, match="there is no"):
        read(tmp_path / "nothing.toml")


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_says_what_it_means(name: str) -> None:
    """In the words of the file, which has neither dashes nor markup; from the declaration of the option."""
    for field in SECTIONS[name].model_fields.values():
        assert field.description
        assert field.description.endswith(".")
        assert "--" not in field.description
        assert "[/" not in field.description
    if name == "separable":
        assert SECTIONS[name].model_fields["tol"].description == plain(SeparableOptions.__dict__["tol"].help)
