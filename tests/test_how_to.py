"""The how-to pages are scripts: their files are written, their commands run, and what they show is what is printed."""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documented import ROOT, shell

PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
FENCE = re.compile(
    r"^```(?P<language>\w+)(?: title=\"(?P<name>[\w.-]+)\")?\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
NEEDS = re.compile(r"<!-- needs: (?P<what>.+?) -->")
INSTALLED = "pip install "
"""A page tells what to install; that is done where the tests run, or the page is skipped."""
IMPORTED_AS = {"scikit-learn": "sklearn"}


def missing(text: str) -> str:
    """What a page needs and this machine has not, or nothing."""
    needed = [found["what"] for found in NEEDS.finditer(text)]
    if "npm" in needed and shutil.which("npm") is None:
        return "npm is not installed"
    if "libonnxruntime" in needed and not has_headers():
        return "no C++ compiler, or no ONNX Runtime for C++ that pkg-config knows, is installed"
    for line in text.splitlines():
        if line.startswith(INSTALLED):
            for name in line.removeprefix(INSTALLED).split():
                if importlib.util.find_spec(IMPORTED_AS.get(name, name)) is None:
                    return f"{name} is not installed"
    return ""


def has_headers() -> bool:
    """Whether C++ programs that use ONNX Runtime can be compiled."""
    if not (shutil.which("c++") and shutil.which("pkg-config")):
        return False
    return subprocess.run(["pkg-config", "--exists", "libonnxruntime"], check=False).returncode == 0


def run(command: str, folder: Path) -> str:
    """What a command prints, standard output and standard error together."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = shell(command, folder, merged=True, PATH=tools, COLUMNS="100", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def as_shown(shown: str, printed: str) -> bool:
    """Whether a text is what was printed, where `...` stands for anything."""
    rules = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(shown, "\n".join(map(str.rstrip, printed.splitlines())) + "\n", rules)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    text = page.read_text(encoding="utf-8")
    if why := missing(text):
        pytest.skip(f"{page.stem}: {why}")
    printed, ran = "", 0
    for block in FENCE.finditer(text):
        if block["name"]:
            (tmp_path / block["name"]).write_text(block["text"], encoding="utf-8")
        elif block["language"] == "sh" and not block["text"].startswith(INSTALLED):
            printed = run(block["text"], tmp_path)
            ran += 1
        elif block["language"] == "text":
            assert as_shown(block["text"], printed), f"{block['text']}\nis not\n{printed}"
    assert ran or "```sh" not in text


def test_the_pages_are_in_the_navigation() -> None:
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert len(PAGES) >= 4
    assert [page.name for page in PAGES if f"how-to/{page.name}" not in listed] == []


def test_a_changed_output_is_found() -> None:
    assert as_shown("...\nmap: (3, 4)\n...\n", "a\nmap: (3, 4)  \nb\n")
    assert as_shown("map: (3, 4)\n", "map: (3, 4)\n")
    assert not as_shown("map: (3, 4)\n", "map: (3, 5)\n")
    assert not as_shown("map: (3, 4)\n", "a\nmap: (3, 4)\n")
