"""Passes of other packages: found by their entry point, run like the project's own, and never trusted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from plugin_packages import CONFIG, TOY, call, package

BROKEN = "import nothing_of_that_name\n"


NO_PASS = "class Scale:\n    name = 'scale'\n"


OLDER = TOY.replace("class Scale(Pass)", "class Scale").replace("plan(self, context, node)", "plan(self, graph, node)")


def weight(path: Path) -> np.ndarray:
    return next(
        onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name.startswith("c1.weight")
    )


def test_explain_lists_and_explains_it(folder: Path) -> None:
    listed = call(folder, "explain").stdout
    assert "  scale: multiplies the weight" in listed
    assert "  scale/done\n      it is scaled already" in listed
    assert "Conv W (1 + by)" in call(folder, "explain", "scale").stdout
    assert "it is scaled already" in call(folder, "explain", "scale/done").stdout


def test_it_runs_and_is_verified(folder: Path) -> None:
    done = call(folder, "transform", "scale", "m.onnx", "o.onnx", "--report", "r.json", "--html", "p.html")
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "r.json").read_text())
    assert (report["command"], report["outcome"], report["verify"]["verdict"]) == ("scale", "rewritten", "verified")
    np.testing.assert_array_equal(weight(folder / "o.onnx"), weight(folder / "m.onnx"))
    assert "scaled" in (folder / "p.html").read_text()


def test_a_pass_that_lies_is_found_out(folder: Path) -> None:
    """It says that the result is exact, and moves a weight by a thousandth."""
    done = call(folder, "transform", "scale", "m.onnx", "o.onnx", "--set", "by=0.001")
    assert done.returncode == 1
    assert "not equivalent" in done.stderr
    assert "convrewrite transform scale m.onnx o.onnx --set by=0.001" in done.stderr
    assert not (folder / "o.onnx").exists()


def test_an_approximate_pass_is_stated_and_never_called_equivalent(folder: Path) -> None:
    words = (
        "transform",
        "scale",
        "m.onnx",
        "o.onnx",
        "--set",
        "by=0.5",
        "--set",
        "claim=approximate",
        "--report",
        "r.json",
    )
    done = call(folder, *words)
    assert done.returncode == 0, done.stderr
    verify = json.loads((folder / "r.json").read_text())["verify"]
    assert verify["verdict"] != "verified"
    assert {case["status"] for case in verify["cases"]} == {"stated"}
    assert max(case["error"] for case in verify["cases"]) > 0.01
    np.testing.assert_allclose(weight(folder / "o.onnx"), 1.5 * weight(folder / "m.onnx"), rtol=1e-6)


@pytest.mark.parametrize(("by", "code"), [("1e-7", 0), ("1e-2", 1)])
def test_a_weight_that_is_perturbed_between_steps_misses_the_gate(folder: Path, by: str, code: int) -> None:
    (folder / "convrewrite.toml").write_text(CONFIG.replace("BY", by))
    done = call(folder, "run")
    assert done.returncode == code, done.stderr
    assert (folder / "out" / "m.onnx").exists() == (code == 0)
    assert ("gate max_output_error" in done.stderr) == (code == 1)


def test_another_version_of_the_package_is_another_run(folder: Path) -> None:
    (folder / "convrewrite.toml").write_text(CONFIG.replace("BY", "1e-7"))
    assert "as before" not in call(folder, "run").stderr
    assert "as before" in call(folder, "run").stderr
    metadata = folder / "site" / "toy-1.5.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.5", "1.6"))
    assert "as before" not in call(folder, "run").stderr


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (CONFIG.replace("BY", "1").replace("claim", "clam"), "did you mean 'claim'?"),
        (CONFIG.replace("BY", "1").replace('"scale"', '"scal"'), "there is no pass 'scal' (did you mean 'scale'?)"),
    ],
)
def test_mistakes_in_a_step_name_the_nearest_right_word(folder: Path, config: str, says: str) -> None:
    (folder / "convrewrite.toml").write_text(config)
    done = call(folder, "run")
    assert done.returncode == 2
    assert says.replace("(", "").replace(")", "").split("did")[0].strip() in done.stderr
    assert "did you mean" in done.stderr


@pytest.mark.parametrize(
    ("entries", "source", "says"),
    [
        ({"fcn": "Scale"}, TOY, "one of convrewrite's own"),
        ({"scale": "Scale"}, TOY, "two passes called 'scale', of other and toy"),
        ({"bad": "Scale"}, BROKEN, "does not load: ModuleNotFoundError"),
        ({"bad": "Scale"}, NO_PASS, "it has no candidates, plan, apply, reasons"),
        ({"bad": "Scale"}, TOY, "its own name is 'scale'"),
        ({"bad": "Scale"}, OLDER.replace('"scale"', '"bad"'), "written for an older convrewrite; inherit from"),
        ({"bad": "Scale"}, TOY.replace("def apply", "def do"), "it has no apply"),
    ],
    ids=["own name", "two", "broken", "no pass", "other name", "older", "abstract"],
)
def test_what_is_no_pass_is_told_in_one_line(folder: Path, entries: dict[str, str], source: str, says: str) -> None:
    package(folder / "site", "other", entries, source)
    done = call(folder, "transform", next(iter(entries)), "m.onnx", "o.onnx")
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert "Traceback" not in done.stderr
    done = call(folder, "fcn", "m.onnx", "ok.onnx")  # the project's own commands do not mind
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("entries", "source", "says"),
    [
        ({"fcn": "Scale"}, TOY, "one of convrewrite's own"),
        ({"bad": "Scale"}, BROKEN, "does not load: ModuleNotFoundError"),
        ({"bad": "Scale"}, NO_PASS, "it has no candidates, plan, apply, reasons"),
        ({"bad": "Scale"}, TOY, "its own name is 'scale'"),
        ({"bad": "Scale"}, OLDER.replace('"scale"', '"bad"'), "written for an older convrewrite"),
        ({"bad": "Nothing"}, TOY, "does not load: AttributeError"),
        (
            {"bad": "Scale"},
            TOY.replace('"scale"', '"bad"').replace("{DONE.code: DONE}", "[DONE]"),
            "no mapping of codes",
        ),
        ({"bad": "Scale"}, TOY.replace('"scale"', '"bad"').replace("{DONE.code: DONE}", "{'x': 'y'}"), "no mapping"),
    ],
)
def test_explain_lists_the_others_where_one_is_broken(
    folder: Path, entries: dict[str, str], source: str, says: str
) -> None:
    package(folder / "site", "other", entries, source)
    (name,) = entries
    done = call(folder, "explain")
    assert (done.returncode, done.stderr) == (0, "")
    assert "  scale: multiplies the weight" in done.stdout
    assert "  scale/done\n      it is scaled already" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"  {name}: broken: ")]
    assert says in line
    assert call(folder, "explain", "fcn/flat-input").returncode == 0
    assert call(folder, "explain", "scale").returncode == 0
    assert call(folder, "explain", "fcn").returncode == 0
    assert call(folder, "transform", "scale", "m.onnx", "o.onnx").returncode == 0
    if name != "fcn":
        done = call(folder, "explain", name)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("scale", "m.onnx", "o.onnx", "--set", "bye=1"), "did you mean 'by'?"),
        (("scale", "m.onnx", "o.onnx", "--set", "by"), "is no setting"),
        (("scale", "m.onnx", "o.onnx", "--set", "by=much"), "does not take by='much'; input should be a valid number"),
        (("scale", "m.onnx", "o.onnx", "--set", "claim=1"), "does not take claim=1; input should be a valid string"),
        (("scale", "m.onnx", "o.onnx", "--set", "unmarked=1"), "the field 'unmarked' of pass 'scale' is no option"),
        (("separable", "m.onnx", "o.onnx", "--set", "form=round"), "'channel' or 'tucker'"),
        (("fcn", "m.onnx", "o.onnx", "--set", "size=64"), "input should be a valid tuple"),
        (("skale", "m.onnx", "o.onnx"), "did you mean 'scale'?"),
        (("fcn", "m.onnx", "o.onnx", "--set", "tol=1"), "has no option 'tol'"),
    ],
)
def test_bad_words(folder: Path, words: tuple[str, ...], says: str) -> None:
    done = call(folder, "transform", *words)
    assert done.returncode == 2
    assert says in done.stderr


def test_the_projects_own_passes_run_by_name_too(folder: Path) -> None:
    done = call(folder, "transform", "fcn", "m.onnx", "o.onnx", "--set", "size=[64, 64]")
    assert done.returncode == 0, done.stderr
    shape = onnx.load(folder / "o.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in shape] == [1, 1, 64, 64]
    done = call(folder, "transform", "separable", "m.onnx", "s.onnx", "--set", "tol=0.3")
    assert done.returncode == 0, done.stderr
    assert "approximate" in done.stderr
