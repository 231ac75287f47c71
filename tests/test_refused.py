"""Every reason to leave something as it is has an example on its page of the documentation, which gives that reason."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer_once  # noqa: F401

import convrewrite as cr
from convrewrite import timing
from convrewrite.acceptance import Decision, Faster
from convrewrite.cli.app import app
from convrewrite.errors import CheckFailed, ConvrewriteError, Refused
from convrewrite.pipeline import steps, trading
from convrewrite.tiling import REASONS

DOCS = Path(__file__).resolve().parent.parent / "docs"
sys.path.append(str(DOCS))

from refused import EXAMPLES, PARTS  # noqa: E402
from refused.example import Example, made  # noqa: E402

CODES = [code for code, _, _ in steps.reasons()] + list(REASONS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; nothing waits for the disk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return tmp_path


def write(example: Example) -> None:
    """The models of an example, valid by the ONNX checker, and an image for those that take one."""
    for name, text, weights in example.texts():
        values = {tensor: eval(words, {"np": np}) for tensor, words in weights.items()}
        model = made(text, **values)
        assert values.keys() <= {tensor.name for tensor in model.graph.initializer}
        onnx.checker.check_model(model)
        onnx.save(model, name)
    if "image.npy" in example.command:
        np.save("image.npy", np.random.default_rng(0).random((2, 41, 41), np.float32))


def call(line: str, *more: str) -> tuple[ConvrewriteError | None, list[dict[str, Any]]]:
    """The error that a command ends with, if any, and the sites of its report."""
    words = [*line.split(), *more, "--quiet"]
    if words[0] not in ("verify", "apply"):
        words += ["--report", "report.json"]
    error = None
    try:
        app(words, standalone_mode=False)
    except ConvrewriteError as raised:
        error = raised
    told = Path("report.json")
    sites = json.loads(told.read_text(encoding="utf-8"))["sites"] if "--report" in words else []
    return error, sites


def given(example: Example) -> set[str]:
    """The reasons that an example's command gives, of all its words; it stops at none but the last of several."""
    if example.program:
        names: dict[str, Any] = {}
        exec(example.program, names)
        return {site.reason for site in names["result"].sites}
    *before, last = example.command.splitlines()
    for line in before:
        assert call(line)[0] is None
    error, sites = call(last)
    assert error is None or isinstance(error, Refused | CheckFailed), error
    return {site["reason"] for site in sites} | ({error.reason} if error is not None else set())


def test_every_reason_has_an_example_and_no_other_has_one() -> None:
    listed = [example.code for part in PARTS for example in part.EXAMPLES]
    assert sorted(listed) == sorted(CODES)
    assert set(EXAMPLES) == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_an_example_gives_its_reason(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = EXAMPLES[code]
    write(example)
    if code == "accept/whole-not-faster":  # which no model gives on every machine
        faster = Decision(timing.FASTER, 2.0, 1.9, 2.1, before_ms=2.0, after_ms=1.0)
        monkeypatch.setattr(Faster, "_time", lambda *_: faster)
        monkeypatch.setattr(trading._Run, "whole", lambda *_: False)
    assert code in given(example)


@pytest.mark.parametrize("code", [code for code in CODES if code in EXAMPLES and EXAMPLES[code].works])
def test_the_remedy_of_an_example_works(code: str, folder: Path) -> None:
    example = EXAMPLES[code]
    write(example)
    for line in example.works.splitlines():
        if line.startswith("apply "):
            assert applied(line)
            continue
        error, sites = call(line)
        assert error is None
        assert "rewritten" in {site["outcome"] for site in sites}
        assert code not in {site["reason"] for site in sites}


def applied(line: str) -> bool:
    """Whether the model of an `apply` gives cells of the image; in this process, where the command starts others."""
    array = pytest.importorskip("dask.array")
    _, model, image, _ = line.split()
    cells = cr.apply(model, array.from_array(np.load(image)))
    return all(np.asarray(map_.compute(scheduler="synchronous")).size > 1 for map_ in cells.values())
