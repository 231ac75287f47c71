"""Text for people. From strangers, made safe for where it goes: names in models, paths, messages that quote them.

    terminal         a line on a terminal or in the log of a CI: nothing moves the cursor, nothing begins a command
    markdown_cell    a cell of a Markdown table, and the page of a job
    html             text of a page, ahead of the escaping that the template does
    xml              text and attributes of XML 1.0 (JUnit)
    github_output    one output of a GitHub step
    file_name        one part of a path that is made out of a name
    json_text        a report as JSON
    enough           a tolerance, rounded up to two digits
    as_line         what an error says
    by, columns      extents, and rows whose cells stand below each other

And from the library itself, which names its parameters and functions for readers of several kinds:

    f"give {parameter('size', 'HxW')}"     give size=(H, W)      told(text, PYTHON), and str() of an error
                                           give size=[H,W]       told(text, KEYS): in a file of settings

and with dashes on the command line. How to run something again is a `Call`.

What cannot be shown is made visible as Python would write it (a newline as `\\n`, a byte that is no UTF-8 as `\\xff`),
so that two names that differ look different, and text that was made safe stays as it is if that happens again.
Sources: the Unicode standard (bidirectional controls: UAX 9), XML 1.0 section 2.2, GitHub Flavored Markdown, "Workflow
commands for GitHub Actions", Microsoft's "Naming Files, Paths, and Namespaces".
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import decimal
import hashlib
import json
import math
import numbers
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

_SURROGATES = re.compile("[\ud800-\udfff]")
_SPACING = "\t\n"
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 and C1: the escape sequences of terminals
    "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"  # no width, line separators, directions
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"  # halves of pairs, what is no character
)
_COMMAND = re.compile(r"^(\s*):(?=:)")
_LOG_COMMAND = re.compile(r"#(?=#(?:\[|vso\[|teamcity\[))")
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)")

LONGEST_NAME = 200
"""Bytes of a part of a path: file systems take 255, and suffixes and hidden names are added to it."""


def visible(text: str, keep: str = "") -> str:
    """The text with what cannot be seen, or moves what is around it, written as an escape; `keep` stays as it is."""
    return _INVISIBLE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape", "surrogatepass").decode()


def terminal(text: str) -> str:
    """One line, for a terminal and for the log of a CI.

    A line that begins with `::` is a command to GitHub, one with `##[` or `##vso[` is one to it or to Azure.
    """
    return _LOG_COMMAND.sub("\\\\x23", _COMMAND.sub("\\1\\\\x3a", visible(text)))


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it is not one: "1 model", "1,000 models", "2 axes", "2 entries"."""
    many = re.sub("axis$", "axe", re.sub("(ch|sh|ss|x)$", r"\1e", re.sub("y$", "ie", noun)))
    return f"{number:,} {noun if number == 1 else f'{many}s'}"


def short(count: int) -> str:
    """A large number in three digits: "417 k", "1.85 G"."""
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {letter}"
    return str(count)


def by(extents: Iterable[object], sign: str = "x") -> str:
    """Extents as they are written: "224x224"."""
    return sign.join(map(str, extents))


def columns(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Rows whose cells stand below each other, safe for a terminal; `right` are columns that end at one place."""
    rows = [[terminal(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def as_line(what: object) -> str:
    """What an error says, or any other text, with its lines and spaces as one line."""
    return " ".join((what.text if isinstance(what, Speaker) else str(what)).split())


def shortened(text: str, longest: int = 2000) -> str:
    """The text, its middle left out where it is long."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}"


def markdown_cell(text: str) -> str:
    """A cell of a table in Markdown: plain text, whatever it holds."""
    plain = _MARKUP.sub(lambda found: f"\\{found[0]}", terminal(text))
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def html(text: str) -> str:
    """Text of a page, which the template escapes after this."""
    return visible(text, keep=_SPACING)


def xml(text: str) -> str:
    """Text or the value of an attribute in XML 1.0, which the writer escapes after this."""
    return visible(text, keep=_SPACING)


def github_output(name: str, value: str) -> str:
    """The lines that set one output of a GitHub step.

    A value of several lines stands between two lines that nobody can guess. The file is written with the error
    handler `surrogateescape`, so that a path keeps its bytes.
    """
    if not re.search("[\r\n]", value):
        return f"{name}={value}\n"
    delimiter = f"end_{secrets.token_hex(16)}"
    return f"{name}<<{delimiter}\n{value}\n{delimiter}\n"


def file_name(text: str) -> str:
    """One part of a path, on every system: no separator, no control character, no device, not too long.

    A name that is fine stays as it is; one that is cut keeps apart from others by a hash of the whole.
    """
    name = re.sub(r"[\x00-\x1f\x7f/\\:]", "_", text)
    if not name.strip(". "):
        name = "_" * max(1, len(name))
    if _RESERVED.match(name):
        name = f"_{name}"
    stored = name.encode(errors="surrogatepass")
    if len(stored) > LONGEST_NAME:
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
        name = f"{stored[: LONGEST_NAME - 13].decode(errors='ignore')}-{digest}"
    return name


def json_text(data: Any, indent: int | None = 2) -> str:
    """A report as JSON that every reader takes: ASCII, no lone surrogates, no numbers that JSON has no word for.

    Raises:
        ValueError: a number is infinite or none.
    """
    return json.dumps(_unicode(data), indent=indent, allow_nan=False) + "\n"


def _unicode(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATES.sub(lambda found: _escape(found[0]), value)
    if isinstance(value, Mapping):
        return {_unicode(key): _unicode(entry) for key, entry in value.items()}
    return [_unicode(entry) for entry in value] if isinstance(value, list | tuple) else value


_UP = decimal.Context(prec=2, rounding=decimal.ROUND_CEILING)


def enough(tol: float | None) -> str:
    """A tolerance in two digits, rounded up: whoever gives what is printed gives enough.

    "0" for None and 0. Sums of one and the same kernel differ in their last bits, so what lies within 1e-12 below two
    digits takes the next ones too.
    """
    if not tol:
        return "0"
    return f"{float(_UP.create_decimal(decimal.Decimal(tol * (1.0 + 1e-12)))):.2g}"


class Printed:
    """Mixin for results whose `str` is a table.

    Attributes:
        shown: draws one for a notebook: the summary of its page. The package that knows pages sets it.
    """

    shown: ClassVar[Callable[[Any], str] | None] = None

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        draw = Printed.shown
        return f"<pre>{escape(str(self))}</pre>" if draw is None else draw(self)


_OPEN, _CLOSE = "\ufdd0", "\ufdd1"  # no characters: Unicode leaves them to a program's own use
_MARKED = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}")
_EXTENTS = re.compile(r"\d+(x\d+)*|[A-Z](x[A-Z])+")
_BARE = re.compile(r"[A-Z]|\.\.\.|-?[\d.]+(e[+-]?\d+)?|-?inf|nan")

T = TypeVar("T")


def parameter(name: str, value: object = None) -> str:
    """A parameter in a message, under its name in the Python API, for `told` to put into the reader's words.

    Args:
        name: such as "dynamic_batch". value: what is to be given: a number, a word, True, False, a tuple of extents or
            the text of one ("HxW", "224x224"), a mapping by name; a capital letter stands for what the reader chooses,
            "F.npz" for a file. None where the message names the parameter alone.
    """
    return f"{_OPEN}{(name, _plain(value))!r}{_CLOSE}"


def _plain(value: object) -> Any:
    """The value out of numbers, texts and what holds them, which can be read again; anything else as its text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)  # an entry of an enumeration, too
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value)) if type(value) in (tuple, list) else tuple(map(_plain, value))
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    return str(value)


@dataclass(frozen=True)
class Call:
    """What is to be run, in a message: the function of the Python API, the command of that name. `str` marks it.

    Attributes:
        name: such as "fcn". files: paths that a command takes, in its order. given: values by the names of parameters;
            None, "", () and {} are left out.
    """

    name: str
    files: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{_OPEN}{(self.name, self.files, _plain(self.parameters))!r}{_CLOSE}"

    @property
    def parameters(self) -> dict[str, Any]:
        """What is given at all."""
        return {name: value for name, value in self.given.items() if value not in (None, "", (), {})}


class Words(Protocol):
    """How one kind of reader calls parameters and functions. None leaves a mark for a further reader."""

    def parameter(self, name: str, value: Any) -> str | None:
        """A parameter, with a value where that is not None."""
        ...

    def call(self, call: Call) -> str | None:
        """A function with its parameters."""
        ...


@runtime_checkable
class Speaker(Protocol):
    """What tells itself: an error."""

    @property
    def text(self) -> str:
        """What it says, with its parameters still neutral."""
        ...

    def speak(self, words: Words) -> None:
        """Name parameters in these words from now on."""
        ...


def told(thing: T, words: Words) -> T:
    """The text with its parameters in the reader's words; so for all texts in sequences, mappings and dataclasses.

    Errors among them speak these words from then on.
    """
    made: T = _each(thing, words)
    return made


def _named(found: re.Match[str], words: Words) -> str:
    """One mark in the reader's words; as it is where it is none of ours, but a name in a model."""
    named = None
    with contextlib.suppress(ValueError, SyntaxError):
        match ast.literal_eval(found[1]):
            case (str() as name, value):
                named = words.parameter(name, value)
            case (str() as name, tuple() as files, dict() as given):
                named = words.call(Call(name, files, given))
    return found[0] if named is None else named


def _each(thing: Any, words: Words) -> Any:
    """The thing with every text in it told; itself where none names a parameter."""
    if isinstance(thing, str):
        return _MARKED.sub(lambda found: _named(found, words), thing) if _OPEN in thing else thing
    if isinstance(thing, Call):
        named = words.call(thing)
        return thing if named is None else named
    if isinstance(thing, Speaker):
        thing.speak(words)
        return thing
    if isinstance(thing, tuple | list) and type(thing) in (tuple, list):
        made = type(thing)(_each(entry, words) for entry in thing)
        return made if any(a is not b for a, b in zip(made, thing, strict=True)) else thing
    if isinstance(thing, dict):
        entries = {key: _each(entry, words) for key, entry in thing.items()}
        return entries if any(entries[key] is not thing[key] for key in thing) else thing
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        facts = {part.name: getattr(thing, part.name) for part in dataclasses.fields(thing) if part.init}
        changed = {name: new for name, old in facts.items() if (new := _each(old, words)) is not old}
        return dataclasses.replace(thing, **changed) if changed else thing
    return thing


def extents(value: object) -> list[str] | None:
    """The extents in the value of a parameter, None where it is none: ("H", "W"), "HxW" and "224x224" are."""
    if isinstance(value, str) and _EXTENTS.fullmatch(value):
        return value.split("x")
    return [str(extent) for extent in value] if isinstance(value, tuple) else None


def is_bare(value: object) -> bool:
    """Whether a text is no word to be quoted: a number, or a letter for what the reader chooses."""
    return isinstance(value, str) and _BARE.fullmatch(value) is not None


class _Python:
    """Parameters of functions in Python."""

    def parameter(self, name: str, value: Any) -> str:
        """`size=(224, 224)`; what is given as a file to a command is an object in Python."""
        if value is None or (isinstance(value, str) and value.startswith("F.")):
            return name
        return f"{name}={self._value(value)}"

    def call(self, call: Call) -> str:
        """`convrewrite.fcn(model, seed=0)`: files are for whoever calls to know."""
        if not call.files and not call.parameters:
            return f"convrewrite.{call.name}"
        models = ["a", "b"] if call.name in ("verify", "bench") else ["model"]
        models += [repr(call.files[0])] if call.name == "transform" else []
        named = [self.parameter(name, value) for name, value in call.parameters.items()]
        given = [text if "=" in text else f"{text}={text}" for text in named]
        return f"convrewrite.{call.name}({', '.join([*models, *given])})"

    def _value(self, value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(self._value, value))}]"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{name!r}: {self._value(entry)}' for name, entry in value.items())}}}"
        found = extents(value)
        if found is not None:
            return found[0] if len(found) == 1 else f"({', '.join(found)})"
        return str(value) if is_bare(value) else repr(value)


PYTHON: Words = _Python()
"""The words of the Python API."""
