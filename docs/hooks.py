"""What mkdocs takes from the code while it builds, so that no page can say what the code does not.

{{ docstring MODULE }}    what a module says of itself
{{ help COMMAND }}        what a command prints for --help
{{ settings }}            the keys of convrewrite.toml with their meanings, types and defaults
{{ starter }}             the file that `convrewrite init` writes
{{ decisions }}           the pages of docs/adr, with their titles
{{ refusals }}            every reason to leave something as it is, with its remedy and its example
{{ source MODULE.NAME }}  a function, as it stands in its module
{{ pictures }}            docs/pictures/NAME.py becomes pictures/NAME.svg
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
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
    with _importable(FOLDER):
        style = importlib.import_module("style")
        names = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "style")
        return {name: style.svg(importlib.import_module(name).draw()) for name in names}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put in what the code says."""
    return MARK.sub(lambda found: _filled(found[1], found[2] or ""), markdown)


def _filled(kind: str, subject: str) -> str:
    if kind == "docstring":
        return _fenced(importlib.import_module(subject).__doc__ or "", "text")
    if kind == "source":
        module, _, name = subject.rpartition(".")
        with _importable():
            return _fenced(inspect.getsource(getattr(importlib.import_module(module), name)), "python")
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
    """A section for each pass, and in it one for each reason with its example."""
    from convrewrite import text, tiling
    from convrewrite.cli.words import FLAGS
    from convrewrite.pipeline import steps

    examples = _examples()
    tiled = [(reason.code, reason.meaning, reason.remedy) for reason in tiling.REASONS.values()]
    section = ""
    for code, meaning, remedy in text.told([*steps.reasons(), *tiled], FLAGS):
        if code.partition("/")[0] != section:
            section = code.partition("/")[0]
            yield f"## {section}\n"
        yield f"### {code}\n\nWhat it means: {meaning}.\n\nWhat to do: {remedy}.\n"
        yield from _folded("A model that gives it", _example(examples[code]))


def _examples() -> Mapping[str, Any]:
    """The examples of docs/refused by code."""
    with _importable():
        examples: Mapping[str, Any] = importlib.import_module("refused").EXAMPLES
    return examples


@contextlib.contextmanager
def _importable(folder: Path = FOLDER.parent) -> Iterator[None]:
    """Let modules of a folder of the documentation be imported."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _folded(title: str, blocks: Iterable[str]) -> Iterator[str]:
    """Blocks that are shown where the reader unfolds them."""
    yield f'??? example "{title}"\n'
    yield textwrap.indent("\n\n".join(blocks), "    ") + "\n"


def _example(example: Any) -> Iterator[str]:
    """The models and commands of an example."""
    asked = _fenced(example.program, "python") if example.program else _commands(example.command)
    done = _commands(example.works) if example.works else ""
    (first, *second) = [_model(*parts) for parts in example.texts()]
    yield from filter(None, [*first, example.note, "This gives the reason:", asked])
    if second:
        yield from ("Another model, without it:" if done else "The other model:", *second[0])
    if done:
        yield from ("This works:", done)


def _model(name: str, text: str, weights: Mapping[str, str]) -> list[str]:
    """A model's text, and what its weights are where they are not random."""
    blocks = [f'```text title="{name}"\n{text}\n```']
    given = "".join(f", {tensor}={words}" for tensor, words in weights.items())
    return blocks + ([_fenced(f"model = made(text{given})", "python")] if given else [])


def _commands(lines: str) -> str:
    return _fenced("\n".join(f"convrewrite {line}" for line in lines.splitlines()), "sh")


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
