"""Each reader is told in words of its own: options on the command line, parameters in Python, keys in a file."""

from __future__ import annotations

import ast
import enum
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_models import padded, plain, run, save, symbolic

import convrewrite as cr
from convrewrite.batch.words import KEYS
from convrewrite.cli.words import FLAGS, Flags
from convrewrite.errors import ConvrewriteError, UsageError, said
from convrewrite.text import PYTHON, Call, parameter, told, visible

ROOT = Path(__file__).resolve().parent.parent
FLAG = re.compile(r"(?<!-)--(?:(?!help\b)[a-z]|$)")
PLACE = re.compile(r"convrewrite-[0-9a-f]{16}")


class Word(enum.StrEnum):
    """A choice, as the command line reads it."""

    last = "last"


FOREIGN = {"--query-gpu=name", "--format=csv,noheader"}
"""Options of nvidia-smi."""


# Nothing but the command line knows options ---------------------------------------------------------------------------


def texts(folder: str) -> Iterator[tuple[str, str]]:
    """Every text in the source files, docstrings and parts of f-strings included, with its place."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if (ROOT / "convrewrite" / "cli") in path.parents:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        declared = set(declarations(tree)) if path.parent.name == "options" else set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in declared:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def declarations(tree: ast.Module) -> Iterator[int]:
    """Texts of options as they are declared, `size: Extents = Sizes(None, "...", flag="--size")`: --help shows them."""
    for statement in ast.walk(tree):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Call):
            yield from (id(node) for node in ast.walk(statement.value))


@pytest.mark.parametrize("folder", ["convrewrite", "passes", "models"])
def test_no_text_of_the_library_has_an_option_of_the_command_line(folder: str) -> None:
    found = [(place, text) for place, text in texts(folder) if FLAG.search(text) and text not in FOREIGN]
    # a style of lines in a drawing, and what git and pip are asked with
    found = [(place, text) for place, text in found if not (text == "--" and "timing/plot.py" in place)]
    found = [(place, text) for place, text in found if "pip install" not in text]
    assert [(place, text) for place, text in found if "batch/repository.py" not in place] == []


def test_such_a_text_is_found() -> None:
    assert FLAG.search("give --size HxW")
    assert FLAG.search("--")  # f"--{name}"
    assert not FLAG.search("a -- b, IN ──> OUT, -->")


# What a mark becomes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mark", "shell", "python", "file"),
    [
        (parameter("dynamic_batch"), "--dynamic-batch", "dynamic_batch", "dynamic_batch"),
        (parameter("size", "HxW"), "--size HxW", "size=(H, W)", "size=[H,W]"),
        (parameter("size", (224, 225)), "--size 224x225", "size=(224, 225)", "size=[224,225]"),
        (parameter("size", (np.int64(224),)), "--size 224", "size=224", "size=[224]"),
        (parameter("stride", "4"), "--stride 4", "stride=4", "stride=4"),
        (parameter("tol", "0.05"), "--tol 0.05", "tol=0.05", "tol=0.05"),
        (parameter("accept", "faster"), "--accept faster", "accept='faster'", 'accept="faster"'),
        (parameter("softmax", Word.last), "--softmax last", "softmax='last'", 'softmax="last"'),
        (parameter("chosen", "K"), "--class K", "chosen=K", "chosen=K"),
        (parameter("data", "F.npz"), "--data F.npz", "data", "data"),
        (parameter("verify", False), "--no-verify", "verify=False", "verify=false"),
        (parameter("windows", True), "--windows", "windows=True", "windows=true"),
        (parameter("channels", (0, 2)), "--channels 0,2", "channels=(0, 2)", "channels=[0,2]"),
        (parameter("shapes", {"x": "..."}), "--shape x=...", "shapes={'x': ...}", "shapes={x=...}"),
        (parameter("shapes", {"x": (1, 3)}), "--shape x=1x3", "shapes={'x': (1, 3)}", "shapes={x=[1,3]}"),
        (parameter("images", Path("a b")), "--images a b", "images='a b'", 'images="a b"'),
        (str(Call("fcn")), "convrewrite fcn", "convrewrite.fcn", 'pass="fcn"'),
        (
            str(Call("fcn", ("a b", "c"), {"window": (3, 4), "seed": 0, "opset": None, "dynamic_batch": True})),
            "convrewrite fcn 'a b' c --window 3x4 --seed 0 --dynamic-batch",
            "convrewrite.fcn(model, window=(3, 4), seed=0, dynamic_batch=True)",
            'pass="fcn", window=[3,4], seed=0, dynamic_batch=true',
        ),
        (
            str(Call("separable", ("a", "b"), {"data": "F.npz", "fit": False, "only": ["x*", "y"]})),
            "convrewrite separable a b --data F.npz --fit weights --only 'x*' --only y",
            "convrewrite.separable(model, data=data, fit=False, only=['x*', 'y'])",
            'pass="separable", data, fit=false, only=["x*", "y"]',
        ),
        (
            str(Call("verify", ("a", "b"), {"sizes": [(3, 4), (5,)], "max_output_error": {"y": 1e-05}})),
            "convrewrite verify a b --size 3x4,5 --max-output-error y=1e-05",
            "convrewrite.verify(a, b, sizes=[(3, 4), 5], max_output_error={'y': 1e-05})",
            "sizes=[[3,4], [5]], max_output_error={y=1e-05}",
        ),
        (
            str(Call("transform", ("scale", "a", "b"), {"fields": {"by": 0.1, "how": "x"}})),
            "convrewrite transform scale a b --set by=0.1 --set 'how='\"'\"'x'\"'\"''",
            "convrewrite.transform(model, 'scale', fields={'by': 0.1, 'how': 'x'})",
            'pass="scale", by=0.1, how="x"',
        ),
    ],
)
def test_a_parameter_in_the_words_of_each_reader(mark: str, shell: str, python: str, file: str) -> None:
    text = f"give {mark}, too"
    assert told(text, FLAGS) == f"give {shell}, too"
    assert told(text, PYTHON) == f"give {python}, too"
    assert told(text, KEYS) == f"give {file}, too"


def test_an_option_of_a_pass_is_given_by_set() -> None:
    text = f"raise {parameter('tol')}, or {parameter('window', (8, 8))}; {parameter('size', 'HxW')}"
    assert told(text, Flags(frozenset({"tol", "window"}))) == "raise --set tol, or --set window=[8,8]; --size HxW"


def test_options_of_a_run_are_left_to_who_started_it() -> None:
    text = told(f"run without {parameter('check')}, or another {parameter('tol')}", KEYS)
    assert told(text, FLAGS) == "run without --check, or another tol"


def test_errors_speak_python_and_stay_neutral_until_they_speak() -> None:
    error = UsageError(f"no {parameter('size')}", remedy=f"give {parameter('size', 'HxW')}")
    outer = UsageError(f"model a: {said(error)}")
    assert str(error) == "no size; give size=(H, W)"
    assert str(outer) == "model a: no size; give size=(H, W)"
    outer.speak(FLAGS)
    assert str(outer) == outer.text == "model a: no --size; give --size HxW"
    assert said(ValueError("x")) == "x"


@pytest.mark.parametrize(
    "name", ["\ufdd0size\ufdd1", "\ufdd0('size',)\ufdd1", "\ufdd0(1, 2, 3)\ufdd1", "\ufdd0", "\ufdd1"]
)
def test_a_name_that_looks_like_a_mark_does_no_harm(name: str) -> None:
    for words in (FLAGS, PYTHON, KEYS):
        assert "\ufdd0" not in visible(told(f"tensor '{name}': give {parameter('size')}", words))


# Errors of the commands, of the API and of a run ----------------------------------------------------------------------


def other(folder: Path) -> Path:
    """The same network with other weights."""
    model = padded()
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]) + 1
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, model.graph.initializer[0].name))
    return save(model, folder / "other.onnx")


Case = tuple[tuple[str, ...], Callable[[Path], object], str, str]

CASES: dict[str, Case] = {
    "a window is needed": (
        ("fcn", "open.onnx", "out.onnx"),
        lambda folder: cr.fcn(folder / "open.onnx"),
        "name it with --window HxW",
        r"name it with window=\(H, W\)",
    ),
    "a size is too small": (
        ("fcn", "plain.onnx", "out.onnx", "--size", "8x8"),
        lambda folder: cr.fcn(folder / "plain.onnx", size=(8, 8)),
        "--size 8x8 is smaller",
        r"size=\(8, 8\) is smaller",
    ),
    "a stride does not divide": (
        ("fcn", "plain.onnx", "out.onnx", "--stride", "3"),
        lambda folder: cr.fcn(folder / "plain.onnx", stride=3),
        "--stride 3",
        "stride=",
    ),
    "a pattern matches nothing": (
        ("separable", "plain.onnx", "out.onnx", "--only", "nothing*"),
        lambda folder: cr.separable(folder / "plain.onnx", only="nothing*"),
        "--only 'nothing*' matches",
        r"only 'nothing\*' matches",
    ),
    "they are not equal": (
        ("verify", "padded.onnx", "other.onnx"),
        lambda folder: cr.verify(folder / "padded.onnx", folder / "other.onnx"),
        "repeat it with: convrewrite verify padded.onnx other.onnx --seed 0 --samples 3",
        r"repeat it with: convrewrite.verify\(a, b, seed=0, samples=3\)",
    ),
    "a check of fcn fails": (
        ("fcn", "plain.onnx", "out.onnx", "--max-output-error", "0"),
        lambda folder: cr.fcn(folder / "plain.onnx", max_output_error=0.0),
        "repeat it with: convrewrite fcn plain.onnx out.onnx --seed 0 --samples 3 --max-output-error 0.0",
        r"repeat it with: convrewrite.fcn\(model, seed=0, samples=3, max_output_error=0.0\)",
    ),
    "faster needs a size": (
        ("separable", "open.onnx", "out.onnx", "--accept", "faster"),
        lambda folder: cr.separable(folder / "open.onnx", accept="faster"),
        "--accept faster times layers",
        "accept='faster' times layers",
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, model in (("open", symbolic()), ("plain", plain()), ("padded", padded())):
        save(model, tmp_path / f"{name}.onnx")
    other(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_the_command_line_and_python_speak_in_words_of_their_own(folder: Path, case: str) -> None:
    words, call, shell, python = CASES[case]
    done = run(*words)
    line = done.stderr.decode()
    assert done.returncode in (1, 2, 3), line
    assert shell in line
    with pytest.raises(ConvrewriteError, match=python) as caught:
        call(folder)
    for text in (str(caught.value), caught.value.message, caught.value.remedy or ""):
        assert not FLAG.search(text), text
        assert not PLACE.search(text), text
        assert "\ufdd0" not in text


STEP = """
models = ["{model}.onnx"]
output = "out/{{name}}.onnx"
[[steps]]
{step}
[reports]
json = "run.json"
"""


@pytest.mark.parametrize(
    ("model", "step", "says"),
    [
        ("open", 'pass = "fcn"', "name it with window=[H,W]"),
        ("plain", 'pass = "fcn"\nsize = [8, 8]', "size=[8,8] is smaller"),
        ("plain", 'pass = "separable"\nonly = ["nothing*"]', "only 'nothing*' matches"),
        ("open", 'pass = "separable"\naccept = "faster"', 'accept="faster" times layers'),
    ],
)
def test_a_run_speaks_in_the_words_of_its_file(folder: Path, model: str, step: str, says: str) -> None:
    (folder / "convrewrite.toml").write_text(STEP.format(model=model, step=step), encoding="utf-8")
    done = run("run")
    assert done.returncode in (2, 3), done.stderr
    report = (folder / "run.json").read_text(encoding="utf-8")
    message = json.loads(report)["models"][0]["message"]
    assert says in message
    assert not FLAG.search(message)
    assert "\\ufdd0" not in report


def test_a_check_of_a_run_is_an_option_of_the_command(folder: Path) -> None:
    (folder / "convrewrite.toml").write_text(STEP.format(model="plain", step='pass = "fcn"'), encoding="utf-8")
    done = run("run", "--check")
    assert done.returncode == 1
    assert "--check: it would be rewritten: its output is missing; run without --check" in done.stderr.decode()


def test_reports_have_the_words_of_who_writes_them(folder: Path) -> None:
    run("separable", "plain.onnx", "out.onnx", "--report", "r.json")
    written = json.loads((folder / "r.json").read_text(encoding="utf-8"))["sites"]
    result = cr.separable(folder / "plain.onnx")
    given = result.to_dict()["sites"]
    assert [site["remedy"] for site in written] != [site["remedy"] for site in given]
    assert any(FLAG.search(site["remedy"]) for site in written)
    assert "\ufdd0" not in json.dumps([written, given], ensure_ascii=False)
    assert not FLAG.search(json.dumps(given))
    assert not FLAG.search(str(result))


def test_a_result_names_no_folder_of_its_own(folder: Path) -> None:
    for model in (plain(), folder / "plain.onnx", cr.load((folder / "plain.onnx").read_bytes())):
        result = cr.fcn(model)
        assert "made       a model (" in str(result)
        assert not PLACE.search(str(result) + json.dumps(result.to_dict()))
    with pytest.raises(ConvrewriteError) as caught:
        cr.verify(plain(), padded())
    assert not PLACE.search(str(caught.value))


def test_an_inspection_in_both_words(folder: Path) -> None:
    found = cr.inspect(folder / "plain.onnx")
    assert not FLAG.search(str(found))
    assert "pays from tol=" in str(found)
    assert "pays from --tol " in run("inspect", "plain.onnx").stdout.decode()
