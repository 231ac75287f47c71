"""What all tests share: where the real models are, and what `apply` is tried on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from apply_images import LENET, SIZE

import convrewrite as cr

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_CORPUS = ROOT.parent / "shared" / "corpus"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--corpus DIR`: run the corpus tests over the .onnx files of a folder of your own."""
    parser.addoption(
        "--corpus",
        metavar="DIR",
        type=Path,
        help="real models to test (default: ../shared/corpus beside the repository, where that exists)",
    )


def corpus_files(config: pytest.Config) -> list[Path]:
    """The models of --corpus, or of the default folder where that exists; a folder that was named must hold some."""
    named: Path | None = config.getoption("--corpus")
    found = sorted((named or DEFAULT_CORPUS).glob("*.onnx"))
    if named and not found:
        raise pytest.UsageError(f"--corpus {named}: no .onnx files there")
    return found


def pytest_report_header(config: pytest.Config) -> str:
    """Say how many real models the tests run over, so that none being there is seen."""
    folder = config.getoption("--corpus") or "../shared/corpus"
    return f"corpus: {len(corpus_files(config))} models in {folder}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `corpus_model` runs once per model of the corpus; without one it is skipped by name."""
    if "corpus_model" in metafunc.fixturenames:
        files = [pytest.param(file, id=file.stem) for file in corpus_files(metafunc.config)]
        reason = "no corpus at ../shared/corpus: name a folder of .onnx files with --corpus DIR"
        metafunc.parametrize("corpus_model", files or [pytest.param(None, marks=pytest.mark.skip(reason), id="none")])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests over real models carry the marker `corpus`, so that `-m "not corpus"` leaves them out."""
    for item in items:
        if "corpus_model" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.corpus)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """LeNet-5 for images of any size."""
    path = tmp_path_factory.mktemp("models") / "any.onnx"
    cr.fcn(LENET, verify=False).save(path)
    return str(path)


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """An image of 8 bits."""
    return np.random.default_rng(0).integers(0, 256, SIZE).astype(np.uint8)


@pytest.fixture(scope="session")
def whole(model: str, pixels: np.ndarray) -> np.ndarray:
    """One pass over the whole image."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": (pixels / np.float32(255))[None, None].astype(np.float32)})[0][0]
