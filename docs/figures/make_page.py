"""Make the README's picture of a page: what --html writes for the converted LeNet-5, in headless Chromium.

    pip install -e ".[dev]"       and Chromium, as the package `chromium` of the system
    python docs/figures/make_page.py

Runs the command of the README on the committed models/lenet5.onnx with held-out digits, opens its page, and keeps the
upper part of it as page.png beside this file.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from convrewrite.models import digit_images, lenet5_path

WIDTH, HEIGHT, DIGITS = 1080, 1120, 16


def main() -> None:
    """Write page.png."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(lenet5_path(), folder)
        images, _ = digit_images("held-out")
        np.savez(Path(folder, "digits.npz"), image=images[:DIGITS])
        words = ["fcn", "lenet5.onnx", "any-size.onnx", "--data", "digits.npz", "--html", "page.html", "--quiet"]
        subprocess.run([sys.executable, "-m", "convrewrite", *words], cwd=folder, check=True)
        shot = photographed(Path(folder, "page.html"))
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    picture.save(Path(__file__).with_name("page.png"), optimize=True)


def photographed(page: Path) -> bytes:
    """The upper part of a page as PNG."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = opened.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        tab.goto(page.as_uri())
        shot = tab.screenshot()
        opened.close()
    return shot


if __name__ == "__main__":
    main()
