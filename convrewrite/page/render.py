"""A view as HTML: one template for each kind, one style, one script, all in the file."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from rich.filesize import decimal

from convrewrite import text
from convrewrite.page.views import View
from convrewrite.system import atomic


def write(view: View, target: str | Path) -> None:
    """Write the page, whole or not at all. Raises UsageError where the target cannot be written."""
    atomic.write_whole(target, [render(view).encode()], ".html")


def render(view: View) -> str:
    """The page as text. The same view gives the same bytes."""
    return _environment().get_template(f"{view['kind']}.html.j2").render(view=view)


def fragment(name: str, view: Mapping[str, Any]) -> str:
    """A piece of HTML for a page of somebody else's, such as a notebook."""
    return _environment().get_template(f"{name}.html.j2").render(view=view)


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("convrewrite.page", "templates")
    made = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    made.filters |= {
        "by": by,
        "pads": pads,
        "count": lambda value: "?" if value is None else f"{value:,}",
        "counted": text.counted,
        "bytes": decimal,
        "percent": lambda value: f"{value:.1%}",
        "small": lambda value: "-" if value is None else f"{value:.1e}",
        "enough": text.enough,
        "ms": lambda seconds: f"{seconds * 1e3:.3g}",
        "ratio": lambda value: f"{value:.2f}x",
    }
    made.globals |= {"style": _text("style.css"), "script": _text("script.js")}
    return made


def by(extents: Sequence[int] | None, sign: str = "x") -> str:
    """Extents joined as `224x224`; a dash where there are none."""
    return text.by(extents, sign) if extents else "-"


def pads(begin_end: Sequence[int] | None) -> str:
    """Pads of each axis; begin and end apart where they differ."""
    if not begin_end:
        return "-"
    half = len(begin_end) // 2
    begin, end = begin_end[:half], begin_end[half:]
    return by(begin) if list(begin) == list(end) else f"{by(begin)}, {by(end)}"


def _shown(value: object) -> object:
    """What a template puts into the page; our own markup as it is."""
    return text.html(value) if type(value) is str else value


def _text(name: str) -> str:
    """A file of ours, not escaped."""
    from markupsafe import Markup

    return Markup(resources.files("convrewrite.page").joinpath("templates", name).read_text(encoding="utf-8"))
