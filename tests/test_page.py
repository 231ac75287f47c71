"""The pages of `--html`: what they show, against values made by hand and ONNX Runtime."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from cli_models import run
from PIL import Image

from convrewrite import models, page, pipeline
from convrewrite.engine.rewrite import Site, run_pass
from convrewrite.engine.windows import Window
from convrewrite.errors import CheckFailed, UsageError
from convrewrite.model_io import load
from convrewrite.options import FcnOptions
from convrewrite.page import charts
from convrewrite.page.class_map import class_map, read_image
from convrewrite.page.render import pads, render
from convrewrite.page.surgery import drawing, surgeries
from convrewrite.passes.fcn import Fcn
from convrewrite.passes.separable import Separable
from convrewrite.pipeline.outcome import Outcome
from pages import LENET, NAMES, make_pages


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages."""
    return make_pages(tmp_path_factory.mktemp("pages"))


# What is in a page


@pytest.mark.parametrize("name", NAMES)
def test_a_page_needs_nothing_else(folder: Path, name: str) -> None:
    text = (folder / f"{name}.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", text)
    assert not re.search(r"@import|url\(", text)
    assert "http" not in re.sub(r"[\w/.-]*onnx", "", text)
    assert len(text) < 400_000


def test_sections_of_each_page(folder: Path) -> None:
    heads = {name: re.findall(r"<h2[^>]*>(.*?)</h2>", (folder / f"{name}.html").read_text()) for name in NAMES}
    assert heads["fcn"] == ["Class map", "Error against tolerance", "Sites", "Cost by layer"]
    assert heads["separable"] == ["Error against tolerance", "Sites", "Cost by layer"]
    assert heads["inspect"] == ["Layers", "What the outputs depend on", "What could be done"]
    assert heads["bench"] == ["Speed"]


def test_the_same_outcome_gives_the_same_bytes(tmp_path: Path) -> None:
    texts = []
    for _ in range(2):
        outcome = pipeline.fcn(LENET, str(tmp_path / "o.onnx"), FcnOptions())
        texts.append(render(page.outcome_view(outcome)))
    assert texts[0] == texts[1]


def test_a_view_is_plain_data(tmp_path: Path) -> None:
    """A worker process hands it over as JSON."""
    outcome = pipeline.fcn(LENET, str(tmp_path / "o.onnx"), FcnOptions())
    view = page.outcome_view(outcome)
    assert render(json.loads(json.dumps(view))) == render(view)


def test_names_are_escaped() -> None:
    site = Site("fcn", "<script>alert(1)</script>", "Gemm", "refused", "fcn/x", "<b>bold</b>", "a & b")
    text = render(page.outcome_view(Outcome("fcn", "cpu", "refused", sites=(site,))))
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<b>bold" not in text


def test_cost_by_layer_adds_up(folder: Path, tmp_path: Path) -> None:
    """Before and after, against the lecture's formula k^2 C O R^2 by hand."""
    outcome = pipeline.fcn(LENET, str(tmp_path / "o.onnx"), FcnOptions())
    layers = {row["name"]: row for row in page.outcome_view(outcome)["layers"]}
    by_hand = {"c1": 25 * 1 * 6 * 28**2, "c3": 25 * 6 * 16 * 10**2, "c5": 400 * 120, "f6": 120 * 84, "logits": 84 * 11}
    assert {name: (row["before"], row["after"]) for name, row in layers.items()} == {
        name: (macs, macs) for name, macs in by_hand.items()
    }


def test_a_failed_command_has_a_page_and_its_exit_code(tmp_path: Path) -> None:
    model = onnx.load(LENET)
    weights = next(t for t in model.graph.initializer if t.name == "c1.weight")
    array = onnx.numpy_helper.to_array(weights) * 1.1
    weights.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), "c1.weight"))
    onnx.save(model, tmp_path / "b.onnx")
    target = tmp_path / "p.html"
    done = run("verify", LENET, str(tmp_path / "b.onnx"), "--html", str(target))
    assert done.returncode == CheckFailed.exit_code
    assert "a check failed" in target.read_text()
    assert 'class="dot off"' in target.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--html", "{folder}"], "it is a folder"),
        (["--html", "{folder}/none/p.html"], "cannot write"),
        (["--html", "{folder}/o.onnx"], "would overwrite"),
        (["--image", LENET], "name a page with --html"),
    ],
)
def test_bad_targets_are_told_before_any_work(tmp_path: Path, arguments: list[str], says: str) -> None:
    arguments = [word.format(folder=tmp_path) for word in arguments]
    done = run("fcn", LENET, str(tmp_path / "o.onnx"), *arguments)
    assert done.returncode == UsageError.exit_code
    assert says in done.stderr.decode()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_an_image_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "i.png").write_bytes(content)
    done = run(
        "fcn", LENET, str(tmp_path / "o.onnx"), "--html", str(tmp_path / "p.html"), "--image", str(tmp_path / "i.png")
    )
    assert done.returncode == UsageError.exit_code
    assert "cannot read" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


# Class maps


@pytest.fixture(scope="module")
def any_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("any") / "any.onnx"
    assert pipeline.fcn(LENET, str(target), FcnOptions()).exit_code == 0
    return target


def test_the_class_map_is_the_original_on_every_window(any_size: Path) -> None:
    """Each pixel of the map, against ONNX Runtime on the crop with the original."""
    image = np.random.default_rng(0).random((1, 48, 40), np.float32)
    model = load(str(any_size))
    window = Window.from_metadata(model.metadata)
    assert window is not None
    drawn = class_map(model, window, None, image[0])
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn["map"]))))[..., :3]
    session = ort.InferenceSession(LENET, providers=["CPUExecutionProvider"])
    colours = {entry["name"]: tuple(bytes.fromhex(entry["colour"][1:])) for entry in drawn["legend"]}
    assert pixels.shape[:2] == (5, 3)
    for i in range(5):
        for j in range(3):
            crop = image[None, :, 4 * i : 4 * i + 32, 4 * j : 4 * j + 32]
            (scores,) = session.run(None, {"image": crop})
            assert tuple(pixels[i, j]) == colours[int(scores.argmax())]
    assert sum(entry["share"] for entry in drawn["legend"]) == pytest.approx(1)


def test_a_cell_lies_over_the_middle_of_its_window(any_size: Path) -> None:
    model = load(str(any_size))
    window = Window.from_metadata(model.metadata)
    assert window is not None
    place = class_map(model, window, None, np.zeros((64, 32), np.float32))["place"]
    # cells 9 x 1, stride 4, window 32: the first cell is the 4 pixels around pixel 16 of the window
    assert place == {"left": 100 * 14 / 32, "top": 100 * 14 / 64, "width": 100 * 4 / 32, "height": 100 * 36 / 64}


def test_a_map_of_pixels_covers_the_image(tmp_path: Path) -> None:
    target = tmp_path / "p.onnx"
    assert pipeline.fcn(LENET, str(target), FcnOptions(upsample="nearest")).exit_code == 0
    outcome = pipeline.fcn(LENET, str(target), FcnOptions(stride=1, upsample="nearest"))
    drawn = page.outcome_view(outcome)["map"]
    assert drawn["cells"] == drawn["size"]
    assert drawn["place"] == {"left": 0, "top": 0, "width": 100, "height": 100}
    assert {"dense", "upsample"} <= {site["pass"] for site in page.outcome_view(outcome)["sites"]}


def test_images_are_read_in_any_order_of_axes(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "p.png")
    np.testing.assert_allclose(read_image(tmp_path / "p.png"), picture / 255, atol=1e-6)
    np.save(tmp_path / "p.npy", np.moveaxis(picture, -1, 0))
    assert read_image(tmp_path / "p.npy").shape == (3, 40, 50)
    np.save(tmp_path / "q.npy", np.zeros((1, 2, 3, 4)))
    with pytest.raises(UsageError, match="holds an array"):
        read_image(tmp_path / "q.npy")


@pytest.mark.parametrize(("shape", "says"), [((8, 8), "smaller than one window"), ((5, 40, 40), "has 5 channels")])
def test_an_image_that_does_not_fit(any_size: Path, shape: tuple[int, ...], says: str) -> None:
    model = load(str(any_size))
    window = Window.from_metadata(model.metadata)
    assert window is not None
    with pytest.raises(UsageError, match=says):
        class_map(model, window, None, np.zeros(shape, np.float32))


# Sites


def test_surgery_of_a_classifier_head() -> None:
    graph = load(LENET).graph
    done = run_pass(Fcn(), graph)
    anchors = [site.anchor for site in done.sites]
    found = {
        name: ([n.op for n in s.before], [n.op for n in s.after])
        for name, s in surgeries(graph, done.graph, anchors).items()
    }
    assert found == {
        "c5": (["Flatten", "Gemm"], ["Conv"]),
        "f6": (["Gemm"], ["Conv"]),
        "logits": (["Gemm"], ["Conv"]),
    }


def test_surgery_of_neighbouring_layers() -> None:
    """Every new node belongs to one site, and each chain has the stages that its form says."""
    graph = load(str(models.trained_path("digits_vgg"))).graph
    done = run_pass(Separable(tol=0.3), graph)
    rewritten = done.outcome("rewritten")
    found = surgeries(graph, done.graph, [site.anchor for site in rewritten])
    assert len(found) == len(rewritten) > 2
    before, after = {"Conv": ["Conv", "BatchNormalization"], "Gemm": ["Gemm"]}, {"Conv": {"Conv"}, "Gemm": {"Gemm"}}
    for site in rewritten:
        surgery = found[site.anchor]
        assert [node.op for node in surgery.before] == before[site.op]
        assert len(surgery.after) >= len(site.rank) + 1
        assert {node.op for node in surgery.after} <= after[site.op] | {"Add", "Sum"}
    ids = [id(node) for surgery in found.values() for node in surgery.after]
    gone = sum(len(before[site.op]) for site in rewritten)
    assert len(ids) == len(set(ids)) == len(done.graph.nodes) - len(graph.nodes) + gone


def test_a_drawing_puts_readers_to_the_right() -> None:
    tensors = [gs.Variable(name, np.float32) for name in "abcd"]
    nodes = [
        gs.Node("Relu", "one", inputs=[tensors[0]], outputs=[tensors[1]]),
        gs.Node("Relu", "two", inputs=[tensors[0]], outputs=[tensors[2]]),
        gs.Node("Add", "sum", inputs=[tensors[1], tensors[2]], outputs=[tensors[3]]),
    ]
    drawn = drawing(nodes)
    places = {box["name"]: (box["x"], box["y"]) for box in drawn["boxes"]}
    assert places["one"][0] == places["two"][0] < places["sum"][0]
    assert places["one"][1] != places["two"][1]
    assert len(drawn["lines"]) == 2
    many = [gs.Node("Relu", f"n{i}", inputs=[tensors[0]], outputs=[gs.Variable(f"o{i}")]) for i in range(9)]
    assert drawing(many)["hidden"] == 3
    assert drawing([])["words"] == "nothing"


# Charts


def test_a_curve_by_hand() -> None:
    drawn = charts.curve([10.0, 1.0, 0.1], 2)
    assert drawn["points"] == "75.0,0.0 150.0,60.0 225.0,120.0"  # one, two, three of four steps; two decades deep
    assert drawn["kept"] == {"rank": 2, "x": 187.5}
    assert charts.curve([1.0, 0.0], None)["deep"] == charts.DEEPEST
    assert charts.curve([0.0, 0.0], None)["kept"] is None
    assert len(charts.curve(list(np.linspace(1, 0.5, 1000)), None)["points"].split()) <= charts.MOST + 1


def test_a_logarithmic_scale_by_hand() -> None:
    scale = charts.Log([1e-6, 1e-2], room=1.0)
    assert [scale.at(value) for value in (1e-6, 1e-4, 1e-2, 0.0, None, float("inf"))] == [0, 50, 100, 0, None, 100]
    assert charts.shares([1.0, 4.0]) == [25.0, 100.0]
    assert charts.shares([0.0]) == [0.0]


def test_pads_are_told_once_where_they_are_even() -> None:
    assert [pads(p) for p in ([1, 1, 1, 1], [0, 1, 2, 1], None)] == ["1x1", "0x1, 2x1", "-"]
