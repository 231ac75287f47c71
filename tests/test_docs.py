"""The documentation: it builds without a warning, its links lead somewhere, and its pictures are computed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from convrewrite import passes
from convrewrite.batch.settings import SECTIONS
from convrewrite.cli import app as cli

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built documentation."""
    target = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING -" not in done.stderr
    return target


class Page(HTMLParser):
    """The links, places and pictures of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.without_alt: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what leads somewhere, and what may be led to."""
        found = dict(attrs)
        self.places |= {value for name in ("id", "name") if (value := found.get(name))}
        self.links += [value for name in ("href", "src") if (value := found.get(name))]
        if tag == "img" and not found.get("alt"):
            self.without_alt.append(found.get("src") or "")

    def handle_data(self, data: str) -> None:
        """Keep the words."""
        self.text += data


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Every page, read."""
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) > 10
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith(("#__", "data:")):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].places if target in pages else set()
            if not target.is_file() or (parts.fragment and target in pages and unquote(parts.fragment) not in known):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_every_picture_has_words(pages: dict[Path, Page]) -> None:
    assert [src for page in pages.values() for src in page.without_alt if "pictures/" in src] == []
    assert sum("pictures/" in link for page in pages.values() for link in page.links) >= 6


@pytest.mark.parametrize("pass_", passes.ALL, ids=lambda pass_: pass_.name)
def test_every_pass_has_a_page_from_its_docstring(pages: dict[Path, Page], pass_: Any) -> None:
    doc = sys.modules[pass_.__module__].__doc__.strip()
    assert any(doc in page.text for page in pages.values())


def test_every_command_and_every_key_is_there(site: Path, pages: dict[Path, Page]) -> None:
    commands = pages[site / "commands.html"].places
    names = {info.name or info.callback.__name__ for info in cli.app.registered_commands if info.callback}
    assert names <= commands
    words = pages[site / "ci.html"].text
    for model in SECTIONS.values():
        for name, field in model.model_fields.items():
            assert (field.alias or name) in words


def test_every_function_is_in_the_reference(site: Path, pages: dict[Path, Page]) -> None:
    from convrewrite import api

    words = pages[site / "api.html"].text
    for name in api.__all__:
        assert name in words
        assert (getattr(api, name).__doc__ or "").strip().split("\n")[0].split("`")[0] in words


def test_the_pictures_are_the_same_every_time() -> None:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    first, second = hooks.pictures(), hooks.pictures()
    assert first == second
    assert len(first) >= 6
    assert all(b"<svg" in content for content in first.values())


@pytest.mark.slow
def test_the_table_of_the_architectures_is_what_the_tool_does() -> None:
    path = ROOT / "docs" / "architectures.py"
    words = [sys.executable, str(path)]
    made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    page = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    changed = [line for line in made.splitlines() if line not in page.splitlines()]
    assert not changed, f"run: {' '.join(words)} --write"
    assert made in page
