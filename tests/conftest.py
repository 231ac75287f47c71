"""What all tests share: the corpus of exported networks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import onnx
import pytest

import exported

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each command that a test starts would compile every module again


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--corpus=DIR`: run the corpus tests over the .onnx files of a folder of your own."""
    parser.addoption(
        "--corpus",
        metavar="DIR",
        type=Path,
        help="a folder of real models, for the corpus tests to run over in place of the networks of tests/exported.py",
    )
    parser.addoption(
        "--shipped",
        metavar="DIR",
        type=Path,
        help="run tests/test_shipped_models.py over the .onnx files and wheels below a folder",
    )
    parser.addoption("--fuzz", metavar="N", type=int, help="run N cases of the long fuzzing test (marker fuzz_long)")


def pytest_configure(config: pytest.Config) -> None:
    """Where tests run in parallel, each worker gets neighbours, which share fixtures, and helps out at the end."""
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "worksteal"


def pytest_report_header(config: pytest.Config) -> str:
    """Say what the corpus tests run over."""
    files = exported.files(config)
    if files:
        return f"corpus: {len(files)} models in {config.getoption('--corpus')}"
    return f"corpus: {len(exported.NETWORKS)} networks of tests/exported.py"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `corpus_model` runs once per model of the corpus."""
    if "corpus_model" in metafunc.fixturenames:
        files = [pytest.param(file, id=file.stem) for file in exported.files(metafunc.config)]
        built = [pytest.param(name, id=name) for name in exported.NETWORKS]
        metafunc.parametrize("corpus_model", files or built, indirect=True)


@pytest.fixture
def corpus_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a model of the corpus."""
    if isinstance(request.param, Path):
        return request.param
    path = tmp_path_factory.mktemp("corpus") / f"{request.param}.onnx"
    onnx.save(exported.NETWORKS[request.param].model(), path)
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests over the corpus carry the marker `corpus`, so that `-m "not corpus"` leaves them out.

    Those over shipped models, and the long random campaigns, are not even skipped where nobody asked for them.
    """
    asked = config.getoption("-m") or ""
    unasked = {"shipped"} if not config.getoption("--shipped") and "shipped" not in asked else set()
    unasked |= {"campaign"} if "campaign" not in asked else set()
    unasked |= {"fuzz_long"} if config.getoption("--fuzz") is None and "fuzz_long" not in asked else set()
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in unasked)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    for item in items:
        if "corpus_model" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.corpus)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stream weights in pieces that do not divide them, so that the seams are tested."""
    monkeypatch.setattr("convrewrite.model_io.protofile.CHUNK", 1000)
