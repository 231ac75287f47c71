"""Names of classes: in maps, in reports and on pages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from apply_images import LENET, fork_workers
from cli_models import run

from convrewrite import options, page, pipeline
from convrewrite.errors import UsageError
from convrewrite.page.render import render
from convrewrite.system.labels import fitting, read_labels

NAMES = [f"digit {n}" for n in range(10)] + ["<none & 'nothing'>"]


@pytest.fixture(scope="module")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fork_workers()
    path = tmp_path_factory.mktemp("labels") / "any.onnx"
    outcome = pipeline.fcn(LENET, str(path), options.FcnOptions(verify=False))
    assert outcome.exit_code == 0
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"cat\ndog\n",
        b"cat\ndog",
        b"\xef\xbb\xbfcat\r\ndog\r\n",
        b"cat\rdog\r\r\r",
        b"  cat  \ndog\t\n\n   \n",
        "cat\ndog\n".encode("utf-16"),
    ],
)
def test_lines_end_as_on_any_system(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "l.txt").write_bytes(content)
    assert read_labels(tmp_path / "l.txt") == ("cat", "dog")


def test_names_that_are_equal_can_be_told_apart(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("crane\ncat\ncrane\nline\u2028end\n", encoding="utf-8")
    assert read_labels(tmp_path / "l.txt") == ("crane (0)", "cat", "crane (2)", "line\u2028end")


@pytest.mark.parametrize("names", [["a (1)", "a", "a", "b"], ["a", "a", "a (0)"], ["a (0)", "a (0)"]])
def test_names_that_look_numbered_can_be_told_apart(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "l.txt").write_text("\n".join(names), encoding="utf-8")
    assert len(set(read_labels(tmp_path / "l.txt"))) == len(names)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "names no classes"),
        (b"\n\n", "names no classes"),
        (b"cat\n\ndog\n", "line 2 of"),
        (b"\xff\x00\xfe", "is no text in UTF-8"),
        (b"\xff\xfea", "is no text in UTF-8 or UTF-16"),
        ("cat\ndog\n".encode("utf-16-le"), "is no text in UTF-8"),
        ("cat\ndog\n".encode("utf-32"), "is no text in UTF-8"),
    ],
)
def test_what_is_no_list_of_names(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "l.txt").write_bytes(content)
    with pytest.raises(UsageError, match=says):
        read_labels(tmp_path / "l.txt")
    with pytest.raises(UsageError, match="cannot read"):
        read_labels(tmp_path / "none.txt")


@pytest.mark.parametrize(("names", "told"), [(1, "1 class, and"), (2, "2 classes, and"), (1000, "1,000 classes, and")])
def test_another_number_of_names_is_one_error(names: int, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        fitting(["x"] * names, 11, "prob", "l.txt")
    assert len(fitting(["x"] * 11, 11, "prob", "l.txt")) == 11


@pytest.fixture
def named(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("target", ["map.png", "map.zarr"])
def test_a_map_with_names_and_its_page(any_size: Path, named: Path, tmp_path: Path, target: str) -> None:
    pixels = np.random.default_rng(0).random((100, 141), np.float32)
    np.save(tmp_path / "im.npy", pixels)
    words = ["apply", any_size, "im.npy", target, "--labels", named, "--html", "p.html", "--report", "r.json"]
    words += ["--workers", "1", "--tile", "7"]
    done = run(*words, *(["--top1"] if target.endswith("png") else []), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "r.json").read_text())
    assert facts["attributes"]["probabilities"]["classes"] == NAMES
    text = (tmp_path / "p.html").read_text()
    assert "&lt;none &amp; &#39;nothing&#39;&gt;" in text or "digit" in text
    assert "<none" not in text
    shares = [float(share) for share in re.findall(r'<td class="n">([\d.]+)%</td>', text)]
    assert sum(shares) == pytest.approx(100, abs=0.6)
    best, counts = np.unique(_whole(any_size, pixels).argmax(0), return_counts=True)
    largest = best[counts.argmax()]
    assert NAMES[largest].split()[0].strip("<") in text
    assert f"{counts.max() / counts.sum():.1%}" in text


def _whole(model: Path, pixels: np.ndarray) -> np.ndarray:
    """What one pass gives."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: pixels[None, None]})[0][0])


def test_names_that_do_not_fit_are_told_before_any_work(any_size: Path, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("one\ntwo\n")
    np.save(tmp_path / "im.npy", np.zeros((64, 64), np.float32))
    done = run("apply", any_size, "im.npy", "map.npy", "--labels", "l.txt", cwd=tmp_path)
    assert done.returncode == 2
    assert b"l.txt names 2 classes, and output 'probabilities' has 11" in done.stderr
    assert not list(tmp_path.glob("map*"))


def test_names_are_on_the_page_of_fcn(named: Path, tmp_path: Path) -> None:
    done = run("fcn", LENET, "any.onnx", "--html", "p.html", "--labels", named, "--no-verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert any(name in (tmp_path / "p.html").read_text() for name in NAMES[:10])
    done = run("fcn", LENET, "b.onnx", "--labels", named, cwd=tmp_path)
    assert (done.returncode, b"name a page with --html" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"one\ntwo\n", b"l.txt names 2 classes, and output 'probabilities' has 11"),
        (b"", b"l.txt names no classes"),
        (b"\xff\x00\xfe", b"l.txt is no text in UTF-8"),
        (None, b"cannot read l.txt"),
    ],
)
def test_names_that_do_not_fit_are_told_before_fcn_writes(tmp_path: Path, content: bytes | None, says: bytes) -> None:
    if content is not None:
        (tmp_path / "l.txt").write_bytes(content)
    (tmp_path / "any.onnx").write_bytes(b"before")
    done = run("fcn", LENET, "any.onnx", "--html", "p.html", "--labels", "l.txt", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")
    assert says in done.stderr
    assert (tmp_path / "any.onnx").read_bytes() == b"before"


def test_an_image_that_does_not_fit_is_told_before_fcn_writes(tmp_path: Path) -> None:
    np.save(tmp_path / "i.npy", np.zeros((7, 9), np.float32))
    done = run("fcn", LENET, "any.onnx", "--html", "p.html", "--image", "i.npy", cwd=tmp_path)
    assert done.returncode == 2
    assert b"is smaller than one window" in done.stderr
    assert not (tmp_path / "any.onnx").exists()


def test_a_large_map_is_shown_small_and_counted_whole(any_size: Path, tmp_path: Path) -> None:
    """Of a map of one value: the picture is every s-th cell, wherever the tiles end."""
    import zarr

    from convrewrite.tiling.overview import overview
    from convrewrite.tiling.store import Target

    values = np.random.default_rng(1).integers(0, 5, (1300, 700)).astype(np.uint8)
    array = zarr.create_array(tmp_path / "a.zarr", shape=values.shape, chunks=(129, 64), dtype="uint8")
    array[:] = values
    found = overview(array, Target("a", True, 5, values.shape, (129, 64), "uint8", {}))
    assert found is not None
    assert found.step == 3
    assert np.array_equal(found.small, values[::3, ::3])
    assert found.counts == dict(enumerate(np.bincount(values.ravel()).tolist()))


def test_the_page_of_a_map_without_classes() -> None:
    from convrewrite.page.applied_map import drawn

    assert "why" in drawn("x", None, {})
    facts = {
        "attributes": {},
        "checks": [{"name": "c", "places": 1, "error": 0.0, "tolerance": None, "status": "stated", "why": ""}],
        "failed": [],
        "image": [4, 4],
        "output": "o.zarr",
        "outputs": {"x": [1, 4]},
        "tiles": {"total": 1, "resumed": 0, "computed": 1},
        "crop": [4, 4],
        "seconds": 1.0,
        "workers": 1,
        "provider": "cpu",
    }
    view = page.applied_view(facts, {"x": None}, model="m.onnx", image="i.npy")
    assert "on 1 worker<" in render(view)
