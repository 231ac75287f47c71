"""`convrewrite run` and `init`: several models through the same steps, what is left alone, and what fails."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from cli_models import COMMAND, constant_output, flat_input, save, snapshot
from run_projects import VGG, call, outputs, told

from convrewrite import models
from convrewrite.batch import pool
from convrewrite.batch.results import Result
from convrewrite.batch.run import exit_code, processes
from convrewrite.batch.settings import Settings
from convrewrite.batch.starter import STARTER
from helpers import run as run_model


def test_three_models_and_the_starter_file(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name in models.TRAINED:
        shutil.copy(models.trained_path(name), tmp_path / "models")
    made = call(tmp_path, "init")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "convrewrite.toml").read_text(encoding="utf-8") == STARTER
    again = call(tmp_path, "init")
    assert again.returncode == 2
    assert "is there already" in again.stderr
    done = call(tmp_path, "run")
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in (tmp_path / "optimized").iterdir()} == set(models.TRAINED)
    assert done.stdout == ""
    assert "3 models" in done.stderr


def test_models_are_rewritten_within_the_gates_and_the_results_are_told(repository: Path) -> None:
    page = repository / "page.md"
    page.write_text("before\n", encoding="utf-8")
    done = call(repository, "run", GITHUB_STEP_SUMMARY=str(page))
    assert done.returncode == 0, done.stderr
    entries = told(repository)
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "lenet5": "unchanged",
        "digits_vgg": "rewritten",
        "digits_dw7": "rewritten",
    }
    images = models.digit_images("test")[0][:32] if isinstance(models.digit_images("test"), tuple) else None
    draw = np.random.default_rng(3).uniform(size=(8, 1, 32, 32)).astype(np.float32) if images is None else images
    feeds = {"image": np.asarray(draw, np.float32)}
    want = next(iter(run_model(onnx.load(models.trained_path("digits_vgg")), feeds).values()))
    got = next(iter(run_model(onnx.load(repository / "optimized" / "digits_vgg.onnx"), feeds).values()))
    assert 0 < float(np.abs(want - got).max()) < 0.05
    assert entries["digits_vgg"]["equivalence"] == "approximate"
    assert entries["digits_vgg"]["macs_left"] < 0.5
    suite = ElementTree.parse(repository / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "0", "0")
    text = (repository / "report.md").read_text(encoding="utf-8")
    assert text.count("\n| models") == 3
    assert page.read_text(encoding="utf-8") == "before\n" + text


def test_what_has_not_changed_is_left_alone(repository: Path) -> None:
    call(repository, "run")
    first = outputs(repository)
    lock = (repository / "convrewrite.lock").read_bytes()
    again = call(repository, "run")
    assert again.returncode == 0
    assert again.stderr.count("as before") == 3
    assert (repository / "convrewrite.lock").read_bytes() == lock
    assert call(repository, "run", "--force").returncode == 0
    assert outputs(repository) == first, "the same bytes"
    assert (repository / "convrewrite.lock").read_bytes() == lock
    (repository / "optimized" / "digits_vgg.onnx").unlink()
    after = call(repository, "run")
    assert after.stderr.count("as before") == 2
    assert outputs(repository) == first


def test_check_writes_nothing_and_fails_where_an_output_is_out_of_date(repository: Path) -> None:
    before = snapshot(repository)
    done = call(repository, "run", "--check")
    assert done.returncode == 1
    assert "it would be rewritten" in done.stderr
    after = snapshot(repository)
    assert {name: digest for name, digest in after.items() if name in before} == before
    assert not (repository / "optimized").exists()
    assert not (repository / "convrewrite.lock").exists()
    call(repository, "run")
    assert call(repository, "run", "--check").returncode == 0
    (repository / "convrewrite.lock").unlink()
    assert call(repository, "run", "--check").returncode == 0, "the outputs are what would be written"
    shutil.copy(repository / "models" / "digits_vgg.onnx", repository / "optimized")
    assert call(repository, "run", "--check").returncode == 1


def test_a_dry_run_shows_the_plan(repository: Path) -> None:
    before = snapshot(repository)
    done = call(repository, "run", "--dry-run")
    assert done.returncode == 0
    assert done.stdout.count("to do") == 3
    assert "steps: separable tol=0.01" in done.stdout
    assert "gates: max_output_error 0.05" in done.stdout
    assert snapshot(repository) == before


def test_a_dry_run_speaks_as_the_run_does(repository: Path) -> None:
    """It said "unchanged", which is a model with nothing to do, of one that was rewritten."""
    for name in ("lenet5", "digits_dw7"):
        (repository / "models" / f"{name}.onnx").unlink()
    done = call(repository, "run")
    assert done.returncode == 0, done.stderr
    assert "1 model" in done.stderr
    assert "1 models" not in done.stderr
    planned = call(repository, "run", "--dry-run").stdout.splitlines()
    assert planned[0].split() == ["model", "output", "state"]
    assert planned[1].endswith("  as before")


def test_messages_speak_of_settings(repository: Path) -> None:
    """An open input that no usual size fits: neither `--size` nor `--data` is an option of `run`."""
    for path in (repository / "models").iterdir():
        path.unlink()
    save(open_flat(), repository / "models" / "open.onnx")
    (repository / "convrewrite.toml").write_text(VGG.replace("tol = 0.01", "tol = 0.5"), encoding="utf-8")
    done = call(repository, "run")
    assert done.returncode == 2
    assert "give size with one that it runs at" in done.stderr
    assert "--" not in told(repository)["open"]["message"]


def open_flat() -> onnx.ModelProto:
    """A convolution of rank one, and a head that 18x18 alone fits."""
    rng = np.random.default_rng(0)
    factors = np.einsum("o,i,h,w->oihw", *(rng.standard_normal(extent) for extent in (8, 3, 3, 3)))
    text = """<ir_version: 8, opset_import: ["": 13]> net (float[N,3,H,W] x) => (float[N,5] y)
        { c = Conv (x, w)  f = Flatten (c)  y = MatMul (f, b) }"""
    model = onnx.parser.parse_model(text)
    weights = {"w": factors, "b": rng.standard_normal((8 * 16 * 16, 5))}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()
    )
    return model


def test_the_others_are_done_where_one_fails(repository: Path) -> None:
    folder = repository / "models"
    (folder / "broken.onnx").write_bytes(b"no model")
    save(constant_output(), folder / "vacuous.onnx")
    config = VGG.replace("[[steps]]", '[[steps]]\npass = "fcn"\n[[steps]]', 1)
    (repository / "convrewrite.toml").write_text(config, encoding="utf-8")
    save(flat_input(), folder / "flat.onnx")
    done = call(repository, "run")
    entries = told(repository)
    codes = {name: entry["exit_code"] for name, entry in entries.items()}
    assert codes == {"broken": 2, "vacuous": 1, "flat": 3, "lenet5": 0, "digits_vgg": 0, "digits_dw7": 0}
    assert done.returncode == 2
    assert sorted(outputs(repository)) == ["digits_dw7.onnx", "digits_vgg.onnx", "lenet5.onnx"]
    (folder / "broken.onnx").unlink()
    assert call(repository, "run").returncode == 1
    (folder / "vacuous.onnx").unlink()
    assert call(repository, "run").returncode == 3
    (repository / "convrewrite.toml").write_text("allow_refused = true\n" + config, encoding="utf-8")
    assert call(repository, "run").returncode == 0


def test_severity() -> None:
    def of(*codes: int, allow: bool = False) -> int:
        return exit_code([Result("m", Path("m"), {"exit_code": code}) for code in codes], allow)

    assert (of(0, 0), of(0, 3), of(3, 1), of(1, 2, 3), of(2, 70)) == (0, 3, 1, 2, 70)
    assert of(3, 0, allow=True) == 0
    assert of(3, 1, allow=True) == 1


def test_data_and_timings(repository: Path) -> None:
    """Real inputs by the model's name; what was timed is in the lock file, and decides again without timing."""
    (repository / "models" / "lenet5.onnx").unlink()
    (repository / "models" / "digits_vgg.onnx").unlink()
    images = np.random.default_rng(0).uniform(size=(16, 1, 32, 32)).astype(np.float32)
    np.savez(repository / "digits_dw7.npz", image=images)
    config = VGG.replace("tol = 0.01", 'tol = 0.01\naccept = "faster"\nsize = [32, 32]')
    config += '[verification]\ndata = "{name}.npz"\n'
    (repository / "convrewrite.toml").write_text(config, encoding="utf-8")
    done = call(repository, "run")
    assert done.returncode == 0, done.stderr
    timings = json.loads((repository / "convrewrite.lock").read_text())["timings"]
    assert len(timings) == 1
    first = outputs(repository)
    assert call(repository, "run", "--force").returncode == 0
    assert outputs(repository) == first
    assert json.loads((repository / "convrewrite.lock").read_text())["timings"] == timings
    np.savez(repository / "digits_dw7.npz", image=images + 1)
    assert "as before" not in call(repository, "run").stderr, "other data, another result"
    (repository / "digits_dw7.npz").unlink()
    gone = call(repository, "run")
    assert gone.returncode == 2
    assert "digits_dw7.npz" in gone.stderr


def test_a_folder_that_cannot_be_written(repository: Path) -> None:
    (repository / "optimized").write_text("a file", encoding="utf-8")
    done = call(repository, "run")
    assert done.returncode == 2
    assert done.stderr.count("cannot write") == 3


def test_a_worker_that_is_killed_is_its_models_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os, sys, json; t = json.load(sys.stdin); t['die'] and os.kill(os.getpid(), t['die'])\n"
    script += 't[\'say\'] and sys.exit(t[\'say\']); print(\'{"status": "rewritten", "exit_code": 0, "message": ""}\')'
    monkeypatch.setattr(pool, "COMMAND", [pool.COMMAND[0], "-c", script])
    asked = ((signal.SIGKILL, ""), (0, "Error: nonsense"), (0, ""))
    tasks = [{"die": die, "say": say, "target": str(tmp_path / "o.onnx")} for die, say in asked]
    found = dict(pool.run_all(tasks, 2, 1, lambda index: None))
    assert found[0]["exit_code"] == 2
    assert "SIGKILL, perhaps for want of memory" in found[0]["message"]
    assert found[1]["exit_code"] == 70
    assert "Error: nonsense" in found[1]["message"]
    assert found[2]["status"] == "rewritten"


def test_a_full_disk_leaves_nothing_half_written(repository: Path) -> None:
    """Simulated by a limit on the size of files."""
    words = ["bash", "-c", f"ulimit -f 100; exec {COMMAND[0]} run"]
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode in (2, 70, 153), done.stderr
    assert "Traceback" not in done.stderr
    for path in (repository / "optimized").glob("*"):
        onnx.load(path)


def test_timing_is_not_done_beside_other_models() -> None:
    step = {"pass": "separable", "accept": "faster"}
    timed = Settings.model_validate({"models": ["a"], "steps": [step]})
    plain = Settings.model_validate({"models": ["a"], "steps": [{"pass": "groups"}]})
    assert processes(timed, None, 8) == 1
    assert processes(timed, 2, 8) == 2
    assert processes(plain, 4, 2) == 2
