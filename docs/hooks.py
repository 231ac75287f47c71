"""What mkdocs takes from the code while it builds, so that no page can say what the code does not.

{{ docstring MODULE }}    what a module says of itself
{{ help COMMAND }}        what a command prints for --help
{{ settings }}            the keys of convrewrite.toml with their meanings, types and defaults
{{ starter }}             the file that `convrewrite init` writes
{{ decisions }}           the pages of docs/adr, with their titles
{{ refusals }}            every reason to leave something as it is, with its remedy
{{ pictures }}            docs/pictures/NAME.py becomes pictures/NAME.svg
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.testing
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

FOLDER = Path(__file__).parent / "pictures"
MARK = re.compile(r"\{\{ (\w+)(?: ([\w.-]+))? \}\}")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Draw the pictures into the site."""
    for name, content in pictures().items():
        files.append(File.generated(config, f"pictures/{name}.svg", content=content))
    return files


def pictures() -> dict[str, bytes]:
    """All pictures by name, as SVG."""
    sys.path.insert(0, str(FOLDER))
    try:
        style = importlib.import_module("style")
        names = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "style")
        return {name: style.svg(importlib.import_module(name).draw()) for name in names}
    finally:
        sys.path.remove(str(FOLDER))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put in what the code says."""
    return MARK.sub(lambda found: _filled(found[1], found[2] or ""), markdown)


def _filled(kind: str, subject: str) -> str:
    if kind == "docstring":
        return _fenced(importlib.import_module(subject).__doc__ or "", "text")
    if kind == "help":
        return _fenced(_help(subject), "text")
    if kind == "starter":
        return _fenced(importlib.import_module("convrewrite.batch.starter").STARTER, "toml")
    if kind == "settings":
        return "\n".join(_settings())
    if kind == "refusals":
        return "\n".join(_refusals())
    if kind == "decisions":
        pages = sorted((Path(__file__).parent / "adr").glob("0*.md"))
        return "\n".join(f"- [{_title(page)}]({page.name})" for page in pages)
    raise ValueError(f"a page asks for {kind}")


def _refusals() -> Iterator[str]:
    """A section for each pass, and in it one for each reason."""
    from convrewrite import text, tiling
    from convrewrite.cli.words import FLAGS
    from convrewrite.pipeline import steps

    tiled = [(reason.code, reason.meaning, reason.remedy) for reason in tiling.REASONS.values()]
    section = ""
    for code, meaning, remedy in text.told([*steps.reasons(), *tiled], FLAGS):
        if code.partition("/")[0] != section:
            section = code.partition("/")[0]
            yield f"## {section}\n"
        yield f"### {code}\n\nWhat it means: {meaning}.\n\nWhat to do: {remedy}.\n"


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def _help(command: str) -> str:
    from convrewrite.cli.app import app

    runner = typer.testing.CliRunner()
    done = runner.invoke(app, [*command.split("."), "--help"], env={"COLUMNS": "100", "TERM": "dumb"})
    if done.exit_code:
        raise ValueError(f"convrewrite {command} --help ended with {done.exit_code}")
    return done.output


def _settings() -> list[str]:
    """One table for each section of the file."""
    from convrewrite.batch import settings

    parts: list[tuple[str, type[BaseModel]]] = [
        ("The whole file", settings.Settings),
        ('`[[steps]]` with `pass = "fcn"`', settings.FcnStep),
        ('`[[steps]]` with `pass = "separable"`', settings.SeparableStep),
        ('`[[steps]]` with `pass = "groups"`', settings.GroupsStep),
        ("`[[steps]]` with a pass of another package, whose own options are further keys", settings.PluginStep),
        ("`[verification]`", settings.Verification),
        ("`[gates]`", settings.Gates),
        ("`[baseline]`", settings.Changes),
        ("`[reports]`", settings.Reports),
    ]
    lines = []
    for title, model in parts:
        lines += [
            f"### {title}",
            "",
            str(model.__doc__ or "").strip(),
            "",
            "| key | what it says | type | default |",
            "|---|---|---|---|",
        ]
        schema = model.model_json_schema(by_alias=True)["properties"]
        for name, field in model.model_fields.items():
            key = field.alias or name
            default = "needed" if field.is_required() else _default(field.default)
            told = (field.description or "").replace("|", "\\|").replace("*", "\\*")
            lines.append(f"| `{key}` | {told} | {_type(schema[key])} | {default} |")
        lines.append("")
    return lines


def _type(schema: dict[str, Any]) -> str:
    """A type in words."""
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{choice}`" for choice in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"] if part.get("type") != "null")
    if schema.get("type") == "array":
        inner = schema.get("items", {})
        return f"list of {_type(inner)}" if inner.get("type") else "list of tables"
    return {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}.get(
        schema.get("type", ""), "table"
    )


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "as its own table says"
    if value is None:
        return "none"
    return "as its own table says" if isinstance(value, BaseModel) else f"`{value!r}`"
