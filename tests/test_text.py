"""Text from strangers in every place that it goes to, each read back by a parser of that place."""

from __future__ import annotations

import itertools
import json
import os
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
from cli_models import call, plain, save
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from convrewrite import text
from convrewrite.batch import summary
from convrewrite.batch.jobs import jobs
from convrewrite.batch.results import Batch, Result
from convrewrite.batch.settings import Settings
from convrewrite.page import render
from convrewrite.pipeline import report

FRAGMENTS = [
    *("::error::", "::set-output name=x::", "##[error]", "##vso[task.setvariable]", "# ", "=", "<<", "{name}", "%0A"),
    *("\n", "\r", "\r\n", "\t", " ", "\x00", "\x1b[2J", "\x9b31m", "\x7f", "\u202e", "\u2066", "\u2028", "\ufffe"),
    *("\udcff", "\ud800", "é", "\U0001f600", "/", "..", "CON", "a" * 300, "http://x", "[red]", "[/]"),
    *("|", "`", "<b>", "</td>", "]]>", "&amp;", "*a*", "_b_", "[x](y)", "![i](j)", "~~", "\\", "\\|"),
]
MANY = settings(deadline=None, max_examples=60)
HOSTILE = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=8)), max_size=6).map("".join)


# Each target --------------------------------------------------------------------------------------------------------


@MANY
@given(HOSTILE)
def test_on_a_terminal_nothing_moves_and_no_line_is_a_command(name: str) -> None:
    shown = text.terminal(name)
    shown.encode()
    assert shown.splitlines() in ([], [shown]), "one line"
    assert not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in shown)
    assert not any(unicodedata.bidirectional(char) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI")
                   for char in shown)  # fmt: skip
    assert not shown.lstrip().startswith("::"), "a workflow command of GitHub"
    assert not re.search(r"##(\[|vso\[)", shown), "a log command"
    assert text.terminal(shown) == shown


def test_what_was_hidden_is_seen_and_tells_names_apart() -> None:
    assert text.terminal("a\x1b[2Jb") == r"a\x1b[2Jb"
    assert text.terminal("  ::error::x") == r"  \x3a:error::x"
    assert text.terminal("x ##[error]") == r"x \x23#[error]"
    assert text.terminal("m\udcff\n") == r"m\xff\n"
    assert text.terminal("épais, 猫: a::b") == "épais, 猫: a::b"


@MANY
@given(HOSTILE)
def test_in_markdown_it_is_the_text_of_one_cell(name: str) -> None:
    page = f"| model | result |\n| --- | --- |\n| {text.markdown_cell(name)} | done |\n"
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(page)
    kinds = [token.type for token in tokens]
    assert kinds.count("table_open") == 1
    assert kinds.count("td_open") == 2
    assert not {"heading_open", "html_block", "fence", "paragraph_open", "hr"} & set(kinds)
    cells = [token for before, token in itertools.pairwise(tokens) if before.type == "td_open"]
    assert {child.type for cell in cells for child in cell.children or ()} <= {"text", "text_special"}
    found = "".join(child.content for child in cells[0].children or ())
    assert found == text.terminal(name).strip()
    assert cells[1].content == "done"


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.data = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.data += data


@MANY
@given(HOSTILE)
def test_on_a_page_it_is_text(name: str) -> None:
    page = render._environment().from_string('<td title="{{ name }}">{{ name }}</td>').render(name=name)
    page.encode()
    parser = _Texts()
    parser.feed(page)
    parser.close()
    assert parser.tags == ["td"]
    assert parser.data == text.html(name)


@MANY
@given(HOSTILE)
def test_in_xml_it_parses(name: str) -> None:
    element = ElementTree.Element("testcase", name=text.xml(name))
    element.text = text.xml(name)
    back = ElementTree.fromstring(ElementTree.tostring(element, encoding="unicode").encode())
    assert (back.get("name"), back.text or "") == (text.xml(name), text.xml(name))


def read_outputs(content: str) -> dict[str, str]:
    """A file of GITHUB_OUTPUT, read as the documentation of workflow commands says: NAME=VALUE, or a heredoc."""
    found: dict[str, str] = {}
    lines = iter(content.split("\n"))
    for line in lines:
        name, sign, value = line.partition("=")
        if "<<" in line and (not sign or line.index("<<") < line.index("=")):
            name, _, delimiter = line.partition("<<")
            value = "\n".join(iter(lambda end=delimiter: _before(lines, end), None))
        elif not line:
            continue
        assert name not in found
        found[name] = value
    return found


def _before(lines: object, delimiter: str) -> str | None:
    line = next(lines)  # type: ignore[call-overload]
    return None if line == delimiter else line


@MANY
@given(HOSTILE, HOSTILE)
def test_an_output_of_a_step_is_one_output(first: str, second: str) -> None:
    content = text.github_output("report", first) + text.github_output("html", second)
    assert read_outputs(content) == {"report": first, "html": second}


@MANY
@given(HOSTILE)
def test_a_part_of_a_path_stays_one(name: str) -> None:
    part = text.file_name(name)
    assert os.path.normpath(os.path.join("folder", part)) == os.path.join("folder", part)
    assert Path("folder", part).parent == Path("folder")
    assert len(os.fsencode(part) if not re.search("[\ud800-\udbff\ude00-\udfff]", part) else b"") <= 255
    assert not re.search(r"[\x00-\x1f\x7f/\\:]", part)
    assert part.split(".")[0].upper() not in ("CON", "PRN", "AUX", "NUL", "COM1", "LPT9")


def test_names_that_are_fine_stay_and_long_ones_stay_apart() -> None:
    assert text.file_name("lenet5_v1.2 (new)") == "lenet5_v1.2 (new)"
    assert text.file_name("..") == "__"
    long = [text.file_name("a" * 300 + end) for end in "xy"]
    assert long[0] != long[1]
    assert text.file_name("nul.backup") == "_nul.backup"


@MANY
@given(st.recursive(HOSTILE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3)))
def test_a_report_is_json_that_every_reader_takes(data: object) -> None:
    content = text.json_text(data)
    assert content.isascii()
    again = json.loads(content)
    assert json.dumps(again, ensure_ascii=False).encode().decode() == json.dumps(again, ensure_ascii=False)
    assert text.json_text(again) == content


def test_a_report_has_no_number_that_json_lacks() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        text.json_text({"a": float("nan")})


# The reports of a run ------------------------------------------------------------------------------------------------


@MANY
@given(HOSTILE, HOSTILE, st.sampled_from([0, 1, 2, 3]))
def test_the_reports_of_a_run_hold_any_name(name: str, message: str, code: int) -> None:
    facts = {"status": "rewritten", "exit_code": code, "message": message, "views": []}
    batch = Batch((Result(name, Path("out.onnx"), facts), Result("b", Path("b.onnx"), facts)), code)
    suite = ElementTree.fromstring(summary.to_junit(batch).encode())
    assert [case.get("name") for case in suite.iter("testcase")] == [text.xml(name), "b"]
    kinds = [token.type for token in MarkdownIt("commonmark").enable("table").parse(summary.to_markdown(batch))]
    assert (kinds.count("heading_open"), kinds.count("table_open"), kinds.count("tr_open")) == (1, 1, 3)
    assert len(json.loads(summary.to_json(batch))["models"]) == 2
    summary.to_html(batch).encode()


def test_a_line_break_in_the_name_of_a_report_sets_no_other_output() -> None:
    hostile = "r.json\nspeedup=99\nhtml<<x\ny\nx"
    content = summary.to_outputs(Batch((), 0, {"reports.json": Path("/project") / hostile}))
    assert read_outputs(content) == {"report": f"/project/{hostile}"}


@pytest.mark.parametrize(
    "name", ["...onnx", "a\nb.onnx", "a\\..\\b.onnx", "con.onnx", "d\udcff.onnx", "x" * 240 + ".onnx"]
)
def test_an_output_named_after_a_model_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    save(plain(), tmp_path / name)
    settings = Settings(models=["*.onnx", ".*.onnx"][name[0] == "." :][:1], output="made/{name}/{stem}.onnx",
                        steps=[{"pass": "fcn"}])  # fmt: skip
    [job] = jobs(settings, tmp_path)
    assert job.target.parent.parent == tmp_path / "made"
    job.target.parent.mkdir(parents=True)
    job.target.touch()


# The command line ----------------------------------------------------------------------------------------------------

BYTES = os.fsdecode(b"\xff\xfe")
"""No UTF-8."""

REWRITING = ["fcn", "separable", "groups", "fc-to-conv", "conv-to-fc"]


@pytest.mark.parametrize("command", [*REWRITING, "transform open-batch"])
@pytest.mark.parametrize("folder", ["", f"f{BYTES}"])
def test_file_names_that_are_no_utf8_work(
    command: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    source, target = save(plain(), place / f"in{BYTES}.onnx"), place / f"out{BYTES}.onnx"
    told, page = place / f"r{BYTES}.json", place / f"p{BYTES}.html"
    words = [*command.split(), source, target, "--report", told, "--html", page, "--verbose"]
    assert call(monkeypatch, *words) == 0, capfd.readouterr().err
    assert target.is_file()
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    found = json.loads(told.read_bytes())
    jsonschema.validate(found, json.loads(report.SCHEMA_FILE.read_text()))
    assert found["input"]["path"].endswith(r"in\xff\xfe.onnx")
    json.dumps(found, ensure_ascii=False).encode()
    told_to_people = capfd.readouterr().err
    assert "wrote" not in told_to_people or r"out\xff\xfe.onnx" in told_to_people


@pytest.mark.parametrize("command", [*REWRITING, "transform open-batch"])
@pytest.mark.parametrize("name", [f"out{BYTES}", "out\\back", BYTES])
def test_external_data_of_a_model_whose_name_is_no_utf8(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The model names its data file, and what it names is UTF-8; the oracle is ONNX Runtime on both files."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source, target = tmp_path / "a" / "in.onnx", tmp_path / "b" / f"{name}.onnx"
    onnx.save(plain(), source, save_as_external_data=True, location="e.bin", size_threshold=16)
    assert call(monkeypatch, *command.split(), source, target) == 0, capfd.readouterr().err
    monkeypatch.chdir(tmp_path / "b")
    os.rename(target, "plain.onnx")  # ONNX Runtime itself cannot open a path that is no UTF-8
    before, after = (
        onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in (source, "plain.onnx")
    )
    x = np.random.default_rng(0).normal(size=before.get_inputs()[0].shape).astype(np.float32)
    for one, other in zip(before.run(None, {"x": x}), after.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(one.ravel(), other.ravel(), rtol=1e-4, atol=1e-5)
    for written in os.listdir("."):
        written.encode()


def test_models_whose_names_are_no_utf8_are_inspected_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save(plain(), tmp_path / f"in{BYTES}.onnx")
    assert call(monkeypatch, "inspect", path) == 0
    assert capfd.readouterr().out.splitlines()[0].startswith(f"{tmp_path}/in\\xff\\xfe.onnx: ")
    assert call(monkeypatch, "inspect", path, "--json", "-") == 0
    assert json.loads(capfd.readouterr().out)["file"]["path"].endswith(r"\xff\xfe.onnx")
    assert call(monkeypatch, "verify", path, path) == 0
    assert call(monkeypatch, "inspect", tmp_path / f"no{BYTES}.onnx") == 2
    assert r"no\xff\xfe.onnx" in capfd.readouterr().err


def test_names_in_a_model_cannot_write_lines_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = plain()
    hostile = "c\n::error::hacked\r\x1b[2J\u202e##[error]x"
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if name == "x" else f"{name}{hostile}" for name in names]
    for info in (*model.graph.output, *model.graph.initializer):
        info.name += hostile
    source = save(model, tmp_path / "in.onnx")
    for words in (
        ["fcn", source, tmp_path / "o.onnx", "-v", "--provider", "cpu"],
        ["inspect", source, "-v"],
        ["verify", source, source, "-v", "--provider", "cpu"],
    ):
        assert call(monkeypatch, *words) == 0
        out, err = capfd.readouterr()
        for line in (out + err).split("\n"):
            assert not line.lstrip().startswith("::")
            assert not set(line) & set("\r\x1b\u202e")
            assert "##[" not in line
        assert r"\x1b[2J" in out + err


@pytest.mark.parametrize(
    ("number", "noun", "told"),
    [
        (1, "model", "1 model"),
        (0, "model", "0 models"),
        (1200, "byte", "1,200 bytes"),
        (1, "spatial axis", "1 spatial axis"),
        (2, "spatial axis", "2 spatial axes"),
        (1, "entry", "1 entry"),
        (3, "entry", "3 entries"),
    ],
)
def test_nouns_follow_their_numbers(number: int, noun: str, told: str) -> None:
    assert text.counted(number, noun) == told


@pytest.mark.parametrize(
    ("tol", "printed"),
    [
        (0.2401, "0.25"),
        (0.24, "0.25"),
        (0.2399, "0.24"),
        (0.000181, "0.00019"),
        (0.999, "1"),
        (0.0, "0"),
        (3e-38, "3.1e-38"),
    ],
)
def test_a_printed_tolerance_is_rounded_up(tol: float, printed: str) -> None:
    assert text.enough(tol) == printed


def test_no_printed_tolerance_is_too_small() -> None:
    for tol in 10.0 ** np.random.default_rng(0).uniform(-12, 0, 2000):
        assert tol < float(text.enough(tol)) <= 1.11 * tol
