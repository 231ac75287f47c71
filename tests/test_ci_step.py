"""The GitHub action and the pre-commit hook, as far as a machine without GitHub can run them.

The action's shell steps are run as they stand in action.yml, with the expressions that GitHub would fill in; what
GitHub does itself (setting Python up, keeping caches and artifacts) never ran here.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from cli_models import call
from pre_commit.clientlib import load_manifest

from convrewrite import models

Capture = pytest.CaptureFixture[str]

ROOT = Path(__file__).resolve().parent.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())

CONFIG = """\
models = ["*.onnx"]
output = "out/{name}.onnx"
[[steps]]
pass = "fcn"
[gates]
max_output_error = MAX
min_speedup = 0.01
bench_seconds = 0.5
[reports]
json = "report.json"
html = "report.html"
"""


@pytest.fixture(scope="module")
def action(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The action's folder, as GitHub checks it out."""
    at = tmp_path_factory.mktemp("github") / "action"
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "tests", "benchmarks", "docs")
    shutil.copytree(ROOT, at, symlinks=True, ignore=left_out)  # pip builds in the folder that it is given
    return at


@pytest.fixture(scope="module")
def machine(action: Path) -> Path:
    """What a runner offers: $RUNNER_TEMP, a Python that is set up, and the Python of the job, which nobody may use.

    An environment that is made there sees the packages of this one: nothing is downloaded.
    """
    at = action.parent
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    (at / "temp").mkdir()
    (at / "bin").mkdir()
    script = f"""#!/usr/bin/env bash
"{sys.executable}" "$@" || exit
if [ "$1 $2" = "-m venv" ]; then
    echo "import sys; sys.path.insert(0, '{packages}')" >"$(echo "$3"/lib/python*/site-packages)/outer.pth"
fi
"""
    for name, text in (("set-up", script), *((n, "#!/bin/sh\nexit 99\n") for n in ("bin/python", "bin/python3"))):
        (at / name).write_text(text)
        (at / name).chmod(0o755)
    return at


def run_steps(folder: Path, machine: Path, **inputs: str) -> tuple[int, dict[str, str], str]:
    """Exit code of the first step that fails, the action's outputs, and the page of the job."""
    given = {f"inputs.{name}": str(spec["default"]) for name, spec in ACTION["inputs"].items()}
    given |= {f"inputs.{name}": value for name, value in inputs.items()}
    given |= {"runner.temp": str(machine / "temp"), "steps.python.outputs.python-path": str(machine / "set-up")}
    output, page = folder.parent / "output", folder.parent / "summary"
    shutil.rmtree(machine / "temp" / "convrewrite-reports", ignore_errors=True)
    code = 0
    for step in ACTION["runs"]["steps"]:
        if "run" not in step:
            continue
        output.write_text("")
        filled = {name: _filled(value, given) for name, value in step.get("env", {}).items()}
        environment = {
            **os.environ,
            **filled,
            "PATH": f"{machine / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "RUNNER_TEMP": str(machine / "temp"),
            "RUNNER_OS": "Linux",
            "RUNNER_ARCH": "X64",
            "GITHUB_ACTION_PATH": str(machine / "action"),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(page),
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it the other way round: this means without isolation
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        given |= {f"steps.{step['id']}.outputs.{k}": v for k, _, v in (x.partition("=") for x in _lines(output))}
        code = done.returncode
        if code:
            print(done.stdout, done.stderr)
            break
    told = {name: given.get(spec["value"].strip("${} "), "") for name, spec in ACTION["outputs"].items()}
    return code, told, page.read_text() if page.exists() else ""


def _filled(value: str, known: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda found: known[found[1]], value)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with a model and a configuration."""
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(models.lenet5_path(), folder / "lenet5.onnx")
    (folder / "convrewrite.toml").write_text(CONFIG.replace("MAX", "1e-3"))
    return folder


def test_the_action_says_what_it_takes_and_gives() -> None:
    assert set(ACTION["inputs"]) == {"config", "baseline", "arguments", "python-version", "extras", "artifact"}
    assert set(ACTION["outputs"]) == {"report", "html", "markdown", "speedup"}
    assert ACTION["runs"]["using"] == "composite"


def test_inputs_reach_the_shell_through_the_environment_alone() -> None:
    """Text that is put into a script could run as one."""
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
        known = {"run", "env", "shell", "id", "if", "uses", "with"}
        assert set(step) <= known
    (run,) = (step for step in ACTION["runs"]["steps"] if step.get("id") == "run")
    given = {"CONFIG": "config", "BASELINE": "baseline", "ARGUMENTS": "arguments"}
    assert given.items() <= {k: v.strip("${} ").removeprefix("inputs.") for k, v in run["env"].items()}.items()


def test_the_python_of_the_job_stays_as_it_is_and_downloads_are_kept() -> None:
    steps = {step.get("uses", "").split("@")[0]: step for step in ACTION["runs"]["steps"]}
    assert steps["actions/setup-python"]["with"]["update-environment"] is False
    install = next(step for step in ACTION["runs"]["steps"] if step.get("id") == "install")
    assert install["env"]["PIP_CACHE_DIR"] == steps["actions/cache"]["with"]["path"]
    for step in ACTION["runs"]["steps"]:
        for line in step.get("run", "").splitlines():
            assert not re.match(r"\s*(python3?|pip3?)\b", line)
            assert "GITHUB_PATH" not in line
            assert "GITHUB_ENV" not in line


def test_the_reports_are_kept_though_the_run_fails() -> None:
    (upload,) = (
        step for step in ACTION["runs"]["steps"] if step.get("uses", "").startswith("actions/upload-artifact@")
    )
    assert upload["if"] == "${{ always() && inputs.artifact != '' }}"
    run = next(step for step in ACTION["runs"]["steps"] if step.get("id") == "run")
    folder = upload["with"]["path"].removeprefix("${{ runner.temp }}/")
    assert f'--reports "$RUNNER_TEMP/{folder}"' in run["run"]


@pytest.mark.slow
def test_the_action_optimizes_and_tells(repository: Path, machine: Path) -> None:
    code, outputs, page = run_steps(repository, machine)
    assert code == 0
    assert (repository / "out" / "lenet5.onnx").is_file()
    kept = machine / "temp" / "convrewrite-reports"
    assert Path(outputs["report"]).samefile(kept / "report.json")
    assert Path(outputs["html"]).samefile(kept / "report.html")
    assert Path(outputs["markdown"]).read_text() == page
    assert not (repository / "report.json").exists(), "the checkout holds nothing that was not there, but for outputs"
    assert float(outputs["speedup"]) > 0
    assert "| lenet5.onnx | rewritten |" in page
    own = subprocess.run(
        [machine / "temp" / "convrewrite" / "bin" / "python", "-m", "convrewrite", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert own.stdout.strip()


@pytest.mark.slow
def test_the_action_fails_where_a_gate_is_missed(repository: Path, machine: Path) -> None:
    other = repository / "strict.toml"
    other.write_text(CONFIG.replace("MAX", "0.0").replace('"fcn"', '"separable"\ntol = 0.2'))
    code, outputs, page = run_steps(repository, machine, config="strict.toml")
    assert code == 1
    assert not (repository / "out" / "lenet5.onnx").exists()
    assert Path(outputs["report"]).is_file()
    assert "gate max" in page


@pytest.mark.slow
def test_the_action_compares_with_a_branch_that_its_clone_does_not_have(repository: Path, machine: Path) -> None:
    """As on GitHub: a clone of one commit of another branch; and arguments are split, and no more than that."""
    plain = CONFIG.replace("MAX", "1e-3").replace("min_speedup = 0.01\n", "")
    (repository / "convrewrite.toml").write_text(plain)
    made = subprocess.run(
        [sys.executable, "-m", "convrewrite", "run"], cwd=repository, check=False, capture_output=True
    )
    assert made.returncode == 0, made.stderr
    git(repository, "init", "-q")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "main")
    git(repository, "checkout", "-q", "-b", "change")
    clone = repository.parent / "clone"
    git(repository, "clone", "-q", "--depth", "1", "--branch", "change", f"file://{repository}", str(clone))
    code, _, page = run_steps(clone, machine, baseline="origin/main", arguments="--check --jobs  1")
    assert code == 0, page
    assert "against origin/main" in page
    assert "| lenet5.onnx | same |" in page
    assert git(clone, "status", "--porcelain") == ""

    (repository.parent / "summary").unlink()
    hostile = {
        "config": "$(touch pwned).toml; touch pwned",
        "baseline": "--upload-pack=touch pwned",
        "arguments": "* `id`",
    }
    for name, value in hostile.items():
        assert run_steps(clone, machine, **{name: value})[0] == 2
    assert git(clone, "status", "--porcelain") == "", "nothing of it has run"


# The hook -------------------------------------------------------------------------------------------------------------


def git(folder: Path, *words: str, **environment: str) -> str:
    """What git prints. Raises where it fails."""
    done = git_says(folder, *words, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def git_says(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = ("user.name=A", "user.email=a@b.c", "init.defaultBranch=main", "commit.gpgsign=false")
    who = [word for setting in settings for word in ("-c", setting)]
    variables = {**os.environ, **environment}
    command = ["git", *who, *words]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_the_hook_is_a_valid_manifest() -> None:
    (hook,) = load_manifest(str(ROOT / ".pre-commit-hooks.yaml"))
    assert hook["id"] == "convrewrite"
    for name in ("a/b.onnx", "convrewrite.toml", "convrewrite.lock", "data/x.npz", "a/b.onnx.data", ".gitignore"):
        assert bool(re.search(hook["files"], name)) is (name != ".gitignore")
    assert not re.search(hook["files"], "src/model.py")


@pytest.fixture
def hooked(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A repository with the hook of the manifest installed, everything that a run makes committed with it."""
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    entry = shlex.join([sys.executable, "-m", *hook["entry"].split()])
    own = {"entry": entry, "language": "system", "additional_dependencies": []}
    local = {"repos": [{"repo": "local", "hooks": [{**hook, **own}]}]}
    (repository / ".pre-commit-config.yaml").write_text(yaml.safe_dump(local))
    plain = CONFIG.replace("MAX", "1e-3").replace("min_speedup = 0.01\n", "")
    (repository / "convrewrite.toml").write_text(plain)
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "pre-commit"))
    git(repository, "init", "-q")
    subprocess.run([sys.executable, "-m", "pre_commit", "install"], cwd=repository, check=True, capture_output=True)
    return repository


def convrewrite(folder: Path, *words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "convrewrite", *words], cwd=folder, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ignoring", [False, True])
def test_the_hook_passes_where_a_run_is_committed_and_fails_where_it_was_forgotten(
    hooked: Path, ignoring: bool
) -> None:
    """With the reports, outputs and lock file under version control; and with the lock file alone."""
    if ignoring:
        convrewrite(hooked, "init", "--gitignore")
        with (hooked / ".gitignore").open("a") as file:
            file.write("/out/\n")
    convrewrite(hooked, "run")
    git(hooked, "add", "-A")
    done = git_says(hooked, "commit", "-m", "first")
    assert done.returncode == 0, done.stderr
    assert "Passed" in done.stdout + done.stderr
    assert ("report.json" in git(hooked, "ls-files")) is not ignoring

    model = onnx.load(hooked / "lenet5.onnx")
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    tensor.raw_data = bytes(2) + tensor.raw_data[2:]
    onnx.save(model, hooked / "lenet5.onnx")
    git(hooked, "add", "-A")
    done = git_says(hooked, "commit", "-m", "second")
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "files were modified by this hook" not in said
    what = (
        "the lock file records another network; run without --check, and commit the lock"
        if ignoring
        else ("its output is another network; run without --check, and commit the result")
    )
    assert what in said
    convrewrite(hooked, "run")
    git(hooked, "add", "-A")
    done = git_says(hooked, "commit", "-m", "second")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.network
def test_the_hook_installs_itself(hooked: Path, tmp_path: Path) -> None:
    """As for whoever names this repository in a configuration: pip installs the package, with an ONNX Runtime."""
    convrewrite(hooked, "run")
    git(hooked, "add", "-A")
    words = [sys.executable, "-m", "pre_commit", "try-repo", str(ROOT), "convrewrite", "--all-files"]
    done = subprocess.run(words, cwd=hooked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passed" in done.stdout


# The lines of .gitignore ----------------------------------------------------------------------------------------------


def test_init_offers_the_lines_and_adds_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["/convrewrite-report.html", "/convrewrite-report.json"]
    assert call(monkeypatch, "init") == 0
    said = capfd.readouterr().err
    assert all(line in said for line in (*lines, "convrewrite init --gitignore"))
    assert not (tmp_path / ".gitignore").exists(), "it was not asked to"
    (tmp_path / ".gitignore").write_bytes(b"*.pyc")
    for _ in range(2):
        assert call(monkeypatch, "init", "--gitignore") == 0
        content = (tmp_path / ".gitignore").read_bytes()
        assert content == b"*.pyc\n# reports of convrewrite run\n" + "".join(f"{x}\n" for x in lines).encode()
    assert "has every report already" in capfd.readouterr().err
    (tmp_path / "convrewrite.toml").unlink()
    assert call(monkeypatch, "init") == 0
    assert "--gitignore" not in capfd.readouterr().err, "nothing is left to offer"


def test_names_of_reports_are_no_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    """What git makes of the lines is the oracle; another .gitignore that has one already counts."""
    monkeypatch.chdir(tmp_path)
    names = ["a/#r.json", "b [x]*.html", "!c.md", "d\\e.xml"]
    kinds = ("json", "html", "markdown", "junit")
    reports = "\n".join(f"{kind} = '{name}'" for kind, name in zip(kinds, names, strict=True))
    (tmp_path / "convrewrite.toml").write_text(f"models = ['x']\n[[steps]]\npass = 'groups'\n[reports]\n{reports}\n")
    git(tmp_path, "init", "-q")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".gitignore").write_bytes(b"*.json\r\n")
    assert call(monkeypatch, "init", "--gitignore") == 0
    content = (tmp_path / ".gitignore").read_text()
    assert "#r.json" not in content
    for name in names:
        assert git_says(tmp_path, "check-ignore", "-q", name).returncode == 0, name
    for name in ("b xy.html", "c.md", "e.xml", "sub/!c.md"):
        assert git_says(tmp_path, "check-ignore", "-q", name).returncode == 1, name


@pytest.mark.parametrize("kind", ["folder", "large"])
def test_a_gitignore_that_is_no_file_of_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "folder":
        (tmp_path / ".gitignore").mkdir()
    else:
        (tmp_path / ".gitignore").write_bytes(b"x" * (2 << 20))
    assert call(monkeypatch, "init", "--gitignore") == 2
    assert "is no plain file of lines" in capfd.readouterr().err
    assert not (tmp_path / "convrewrite.toml").exists()
