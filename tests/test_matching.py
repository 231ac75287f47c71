"""Which files a glob of `run` means: as the standard library says, but that loops of links end."""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path

import pytest

from convrewrite.batch.matching import matching

FILES = "a.onnx b.txt x/a.onnx x/y/c.onnx x/y/z/a.onnx .hidden/a.onnx x/.h.onnx [1]/d.onnx"

PATTERNS = [
    "*.onnx",
    "*",
    "**/*.onnx",
    "**/a.onnx",
    "x/**/*.onnx",
    "x/*/c.onnx",
    "**/y/*.onnx",
    "**/y/**/*.onnx",
    "**",
    "x/y",
    "x/y/../a.onnx",
    "./x/a.onnx",
    "nothing/*.onnx",
    "a.onnx/*.onnx",
    "[[]1]/*.onnx",
    "?.onnx",
    "[ab].onnx",
    "x/.*.onnx",
    ".hidden/*.onnx",
    "**/[!a].onnx",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES.split():
        path = tmp_path / "in [a] folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "in [a] folder"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_matches_what_the_standard_library_matches(pattern: str, folder: Path) -> None:
    want = {os.path.normpath(path) for path in glob.glob(pattern, root_dir=folder, recursive=True)}
    want -= {path for path in want if (folder / path).is_dir()}
    found = [os.path.normpath(os.path.relpath(path, folder)) for path in matching(folder, pattern)]
    assert len(found) == len(set(found))
    assert {path for path in found if not (folder / path).is_dir()} == want


def test_an_absolute_pattern(folder: Path, tmp_path: Path) -> None:
    assert matching(tmp_path, str(tmp_path / "in*" / "*.onnx")) == [folder / "a.onnx"]


def test_loops_of_links_list_every_model_once_and_end(folder: Path) -> None:
    """Two links of a folder to itself have 2^n paths of length n: the standard library walks them all."""
    plain = matching(folder, "**/*.onnx")
    for number in range(4):
        (folder / "x" / f"self{number}").symlink_to(folder / "x")
        (folder / f"0up{number}").symlink_to(folder)
    began = time.process_time()
    assert matching(folder, "**/*.onnx") == plain
    assert matching(folder, "**/x/**/*.onnx") == [path for path in plain if "x" in path.relative_to(folder).parts]
    assert time.process_time() - began < 10


def test_a_link_to_a_folder_elsewhere_is_followed_and_one_to_a_file_is_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "e.onnx").write_text("e")
    (folder / "link").symlink_to(tmp_path / "else")
    (folder / "latest.onnx").symlink_to(folder / "a.onnx")
    found = matching(folder, "**/*.onnx")
    assert folder / "link" / "e.onnx" in found
    assert {folder / "a.onnx", folder / "latest.onnx"} <= set(found)
