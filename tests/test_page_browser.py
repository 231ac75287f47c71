"""The pages of `--html` in headless Chromium: no errors, they fit, sort, fold, can be read and print."""

from __future__ import annotations

import io
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pages import NAMES, make_pages

BROWSERS = "chromium", "chromium-browser", "google-chrome"
CHROMIUM = next((path for path in map(shutil.which, BROWSERS) if path), "")
CONTRAST = Path(__file__).with_name("contrast.js").read_text()
SHOTS = Path(__file__).with_name("screenshots")
WIDTHS = (1200, 420)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages."""
    return make_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; where it is not installed, the checks that need it are skipped by name."""
    if not CHROMIUM:
        pytest.skip("chromium is not installed: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser: Any, path: Path, width: int = 1200, scheme: str = "light") -> tuple[Any, list[str]]:
    """A page, and what its console says; it jumps where it would scroll, so that a click lands where it was aimed."""
    said: list[str] = []
    screen = {"width": width, "height": 900}
    tab = browser.new_page(viewport=screen, color_scheme=scheme, device_scale_factor=1, reduced_motion="reduce")
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    tab.goto(path.as_uri())
    return tab, said


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_opens_without_errors_and_fits(browser: Any, folder: Path, name: str, width: int, scheme: str) -> None:
    tab, said = opened(browser, folder / f"{name}.html", width, scheme)
    assert said == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    boxes = tab.evaluate(
        "[...document.querySelectorAll('main > section')].map(s => s.getBoundingClientRect().toJSON())"
    )
    assert boxes
    for above, below in itertools.pairwise(boxes):
        assert above["bottom"] <= below["top"] + 0.5
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["fcn", "bench"])
def test_text_stands_out(browser: Any, folder: Path, name: str, scheme: str) -> None:
    """Contrast of every text with its background, as WCAG 2.2 defines it: 4.5 at least."""
    tab, _ = opened(browser, folder / f"{name}.html", scheme=scheme)
    worst = tab.evaluate(CONTRAST)
    assert worst[0] >= 4.5, worst
    tab.close()


SORTED = """[...document.querySelectorAll('#layers th[aria-sort]')]
    .map(t => t.querySelector('button').textContent.trim() + ' ' + t.ariaSort).join()"""
"""The columns that say they are sorted, and how."""


def becomes(tab: Any, expression: str, value: object) -> None:
    """What a click changes, waited for: the page answers to one after the call has returned."""
    tab.wait_for_function(f"value => {expression} == value", arg=value, timeout=10_000)


def test_sorts_by_numbers_and_words(browser: Any, folder: Path) -> None:
    tab, _ = opened(browser, folder / "inspect.html")
    cells = "[...document.querySelectorAll('#layers tbody tr')].map(r => r.cells[{}])"
    column = cells + ".map(c => c.dataset.value ?? c.textContent)"
    head = tab.locator("#layers th", has_text="MACs")
    head.get_by_role("button").click()
    becomes(tab, SORTED, "MACs descending")
    values = [float(value) for value in tab.evaluate(column.format(10))]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]
    head.get_by_role("button").click()
    becomes(tab, SORTED, "MACs ascending")
    assert [float(value) for value in tab.evaluate(column.format(10))] == sorted(values)
    name = tab.locator("#layers th", has_text="op")
    name.get_by_role("button").press("Enter")
    becomes(tab, SORTED, "op ascending")
    words = tab.evaluate(column.format(1))
    assert words == sorted(words)
    assert head.get_attribute("aria-sort") is None
    tab.close()


def test_folds_by_mouse_and_keyboard_and_opens_for_print(browser: Any, folder: Path) -> None:
    tab, _ = opened(browser, folder / "separable.html")
    count = tab.locator("details").count()
    openly = "document.querySelectorAll('details[open]').length"
    first = tab.evaluate(openly)
    assert 0 < first < count
    tab.locator("details:not([open]) summary").first.press("Enter")
    becomes(tab, openly, first + 1)
    tab.get_by_role("button", name="Unfold all", exact=True).click()
    becomes(tab, openly, count)
    tab.get_by_role("button", name="Fold all", exact=True).click()
    becomes(tab, openly, 0)
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    becomes(tab, openly, count)
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    becomes(tab, openly, 0)
    assert len(tab.pdf()) > 10_000
    tab.close()


def test_a_screen_reader_has_names_for_everything(browser: Any, folder: Path) -> None:
    for name in NAMES:
        tab, _ = opened(browser, folder / f"{name}.html")
        assert tab.locator("h1").count() == 1
        assert tab.evaluate(
            "[...document.querySelectorAll('svg[role=img]')].every(s => s.querySelector('title').textContent)"
        )
        assert tab.evaluate("[...document.images].every(i => i.hasAttribute('alt'))")
        assert tab.evaluate("[...document.querySelectorAll('thead th')].every(t => t.scope === 'col')")
        assert (
            tab.evaluate("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size")
            == tab.locator("[id]").count()
        )
        assert tab.evaluate("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")
        tab.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_layout_is_the_one_that_was_looked_at(browser: Any, folder: Path, width: int) -> None:
    """A screenshot, blurred until letters are grey, against the one that is kept (UPDATE_SCREENSHOTS=1 keeps it)."""
    tab, _ = opened(browser, folder / "fcn.html", width)
    tab.evaluate(
        "document.querySelectorAll('.name').forEach(e => { if (/[/]/.test(e.textContent)) e.textContent = 'm.onnx'; })"
    )
    tab.evaluate("document.querySelector('h1').textContent = 'fcn m.onnx'")
    tab.evaluate("document.querySelector('footer').remove()")
    shot = Image.open(io.BytesIO(tab.screenshot(full_page=True))).convert("RGB")
    tab.close()
    kept = SHOTS / f"fcn-{width}.png"
    small = shot.resize((shot.width // 4, shot.height // 4), Image.Resampling.BOX)
    if os.environ.get("UPDATE_SCREENSHOTS"):
        SHOTS.mkdir(exist_ok=True)
        small.save(kept, optimize=True)
    reference = Image.open(kept).convert("RGB")
    assert abs(small.height - reference.height) <= 0.03 * reference.height
    both = [
        np.asarray(i.resize(reference.size).filter(ImageFilter.GaussianBlur(4)), np.float64) for i in (small, reference)
    ]
    assert np.abs(both[0] - both[1]).mean() < 4
