"""Where the files of `run` may lie, and what is overwritten by none of them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from cli_models import snapshot
from run_projects import CONFIG, run_in_process


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reports.json = '-'", "'reports.json': it needs a path"),
        ("reports.junit = '-'", "'reports.junit': it needs a path"),
        ("reports.markdown = '-'", "'reports.markdown': it needs a path"),
        ("reports.html = '-'", "'reports.html': it needs a path"),
        ("output = '-'", "'output': it needs a path"),
        ("lock = '-'", "'lock': it needs a path"),
        ("output = '~/{name}.onnx'", "'output': '~' is not expanded here; write the path out"),
        ("output = '~root/{name}.onnx'", "'output': '~' is not expanded here"),
        ("output = '$HOME/{name}.onnx'", "'output': '$' is not expanded here"),
        ("reports.html = '~/r.html'", "'reports.html': '~' is not expanded here"),
        ("lock = '~'", "'lock': '~' is not expanded here"),
        ("verification.data = '~/{name}.npz'", "'verification.data': '~' is not expanded here"),
        ("output = '../{name}.onnx'", "lies outside of the project's folder"),
        ("output = '/tmp/{name}.onnx'", "lies outside of the project's folder"),
        ("output = 'away/{name}.onnx'", "lies outside of the project's folder"),
        ("output = 'models/../../{name}.onnx'", "lies outside of the project's folder"),
        ("output = '{folder}/{name}.onnx'", "which is model 'models/lenet5.onnx'"),
        ("output = 'here/models/{name}.onnx'", "which is model 'models/lenet5.onnx'"),
        ("output = 'convrewrite.toml'", "which is the file of settings"),
        ("output = 'convrewrite.lock'", "would overwrite"),
        ("output = 'models'", "is a folder"),
        ("output = '.'", "is a folder"),
        ("output = ''", "it is no path"),
        ('output = "a\\u0000b"', "it is no path"),
        ('output = "a\\nb"', "it is no path"),
        (f"output = '{'x' * 300}'", "more than 255 bytes"),
        (f"output = '{'x/' * 4000}{{name}}'", "File name too long"),
        ("output = '{name'", "'output': "),
        ("output = '{name.__class__}'", "has a field that is not {name}"),
        ("output = '{name:>99999999999}'", "has a field that is not {name}"),
        ("output = '{name!r}'", "has a field that is not {name}"),
        ("output = '{0}'", "has a field that is not {name}"),
        ("output = '{}'", "has a field that is not {name}"),
        ("lock = '../x.lock'", "lies outside of the project's folder"),
        ("lock = 'convrewrite.toml'", "which is the file of settings"),
        ("lock = 'models/lenet5.onnx'", "which is model"),
        ("lock = 'optimized/lenet5.onnx'", "which is output of 'models/lenet5.onnx'"),
        ("lock = 'link.lock'", "lies outside of the project's folder"),
        ("lock = 'models'", "is a folder"),
        ("reports.json = '../r.json'", "lies outside of the project's folder"),
        ("reports.html = 'away/r.html'", "lies outside of the project's folder"),
        ("reports.junit = 'convrewrite.toml'", "which is the file of settings"),
        ("reports.markdown = 'convrewrite.lock'", "which is lock"),
        ("reports = { json = 'r', html = 'here/r' }", "which is reports.json"),
        ("reports.json = 'optimized/lenet5.onnx'", "which is output of"),
        ("reports.json = 'd/lenet5.npz'\nverification.data = 'd/{name}.npz'", "which is data of 'models/lenet5.onnx'"),
        ("verification.data = '{nam}.npz'", "has a field that is not {name}"),
        ("verification.data = '{name.x}.npz'", "has a field that is not {name}"),
    ],
)
@pytest.mark.parametrize("how", ["run", "--check", "--dry-run"])
def test_where_files_may_not_be(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    text: str,
    message: str,
    how: str,
) -> None:
    (project / "away").symlink_to("..")
    (project / "here").symlink_to(".")
    (project / "link.lock").symlink_to("../neighbour.txt")
    (project / "convrewrite.toml").write_text(f"{text}\n{CONFIG}", encoding="utf-8")
    before = snapshot(project.parent)
    code, said = run_in_process(monkeypatch, capfd, "run", *([] if how == "run" else [how]))
    assert (code, message in said) == (2, True), said
    assert len(said.strip().splitlines()) == 1
    assert snapshot(project.parent) == before


def test_weights_of_a_model_and_names_of_one_file(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(project / "models" / "lenet5.onnx")
    onnx.save(model, project / "models" / "b.onnx", save_as_external_data=True, location="b.bin", size_threshold=0)
    (project / "convrewrite.toml").write_text(f"reports.json = 'models/b.bin'\n{CONFIG}", encoding="utf-8")
    code, said = run_in_process(monkeypatch, capfd, "run")
    assert (code, "which is external data of model 'models/b.onnx'" in said) == (2, True), said
    (project / "convrewrite.toml").write_text(f"output = 'o.onnx'\n{CONFIG}", encoding="utf-8")
    code, said = run_in_process(monkeypatch, capfd, "run")
    assert (code, "would both be written to o.onnx" in said) == (2, True), said
    (project / "o").mkdir()
    (project / "o" / "b.onnx").write_bytes(b"")
    (project / "o" / "lenet5.onnx").symlink_to("b.onnx")
    (project / "convrewrite.toml").write_text(f"output = 'o/{{name}}.onnx'\n{CONFIG}", encoding="utf-8")
    code, said = run_in_process(monkeypatch, capfd, "run")
    assert (code, "which is output of 'models/b.onnx'" in said) == (2, True), said
