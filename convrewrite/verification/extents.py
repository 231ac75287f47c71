"""Which further extents are drawn for axes that a model leaves open: what holds at one of them may not hold at another.

    image ["N", 3, "H", "W"], compared at [1, 3, 224, 224] already:
    N = 2 and 3, H = 288 and 256, W = 288 and 256                     one symbol after the other, twice each
    a convolution that was decided for a map of 7 x 7 meets one of 9 x 7

Axes of one symbol have one extent; first axes without a name count as one. Extents at which the original itself does
not run are passed over; where it runs at no other, the symbol is skipped by its name. A rewrite that takes fewer
extents than the original is no rewrite: an input that was baked without a word is a failed check.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from convrewrite.running.runtime import DeviceFailed, RunFailed, TensorInfo
from convrewrite.running.sampling import Feeds, InputSpec, Sample, draw, enlarge
from convrewrite.text import parameter
from convrewrite.verification.comparison import Array, Ledger, finite, relative_error
from convrewrite.verification.evidence import Evidence
from convrewrite.verification.specimens import Specimen
from convrewrite.verification.still import undecided
from convrewrite.verification.verdicts import Case

DRAWS = 2
"""So many further extents are compared for each symbol."""

DECLARED = "what the inputs accept"
"""The check of the rewritten model's declaration."""

Axis = tuple[str, int]
"""An input and one of its axes."""

Read = Callable[[str, Mapping[str, Array]], "Array | None"]


@dataclass(frozen=True)
class Symbol:
    """Axes that have one extent.

    Attributes:
        name: for messages. axes: of the inputs. images: whether it counts images, along first axes.
    """

    name: str
    axes: tuple[Axis, ...]
    images: bool


def symbols(original: Specimen, rewritten: Specimen) -> list[Symbol]:
    """The extents that both models leave open."""
    found: dict[str, list[Axis]] = {}
    first: set[str] = set()
    for info, theirs in _pairs(original, rewritten):
        for axis, (mine, other) in enumerate(zip(info.shape, theirs.shape, strict=False)):
            if isinstance(mine, int) or isinstance(other, int):
                continue
            images = axis == 0 and len(info.shape) > 1
            name = mine or ("the number of images" if images else f"axis {axis} of '{info.name}'")
            found.setdefault(name, []).append((info.name, axis))
            first |= {name} if images else set()
    return [Symbol(name, tuple(axes), name in first) for name, axes in found.items()]


def _pairs(original: Specimen, rewritten: Specimen) -> Iterator[tuple[TensorInfo, TensorInfo]]:
    theirs = {info.name: info for info in rewritten.session.inputs}
    for info in original.session.inputs:
        if info.name in theirs:
            yield info, theirs[info.name]


def declared(
    original: Specimen, rewritten: Specimen, fixed: Mapping[str, Sequence[Any]] | None, ledger: Ledger
) -> tuple[str, ...]:
    """Hold what the inputs accept against the original's declaration.

    Args:
        fixed: shapes by input that the rewrite was asked to fix; None where nobody rewrote, and nothing is judged.

    Returns:
        A line for each input of which only the rewritten model fixes an axis, where nothing is judged.
    """
    lines: list[str] = []
    for info, theirs in _pairs(original, rewritten):
        pairs = list(enumerate(zip(info.shape, theirs.shape, strict=False)))
        narrowed = [axis for axis, (mine, other) in pairs if isinstance(other, int) and not isinstance(mine, int)]
        if not narrowed:
            continue
        takes, took = (", ".join(str(dim or "?") for dim in dims) for dims in (theirs.shape, info.shape))
        text = f"input '{info.name}' takes [{takes}] alone, the original [{took}]"
        asked = (fixed or {}).get(info.name, ())
        if fixed is None:
            lines.append(text)
        elif all(axis < len(asked) and asked[axis] == theirs.shape[axis] for axis in narrowed):
            ledger.add(Case(DECLARED, info.name, note=f"{text}: {parameter('size')} fixes it"))
        else:
            ledger.fail(DECLARED, text, info.name)
    return tuple(lines)


def check(
    models: tuple[Specimen, Specimen, Specimen],
    specs: Sequence[InputSpec],
    evidence: Evidence,
    ledger: Ledger,
    names: Sequence[str],
    read: Read = lambda name, values: values.get(name),
    *,
    images: bool = True,
    sizes: bool = True,
    grid: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Compare at further extents of every open symbol.

    Args:
        models: the original, the original with the other graph optimizations, and the rewritten one.
        specs: the shapes that were compared already. evidence, ledger: as everywhere. names: of what is compared.
        read: finds what the rewritten model gives in the original's layout.
        images: draw other numbers of images. sizes: draw other extents of all else.
        grid: the letters of the axes of inputs whose rows and columns stay as they are, whatever their symbols.
    """
    original, _, rewritten = models
    found = [_off_grid(symbol, grid) for symbol in symbols(original, rewritten)]
    every = [symbol for symbol in found if symbol.axes and (images if symbol.images else sizes)]
    shapes = {spec.name: spec.shape for spec in specs}
    for symbol in every:
        check_name = f"other extents of {symbol.name}"
        done = 0
        for group in dict.fromkeys((symbol, _with_alike(symbol, every, shapes))):
            for extents in _tried(group, shapes):
                done += _at(
                    models, specs, extents, evidence, ledger=ledger, names=names, read=read, called=(check_name, group)
                )
                if done == DRAWS:
                    break
            if done:
                break
        if not done:
            ledger.skip(check_name, "the original runs at no other that was tried")


def _off_grid(symbol: Symbol, grid: Mapping[str, str]) -> Symbol:
    """The symbol without the rows and columns that it stands for as well."""
    axes = [(name, axis) for name, axis in symbol.axes if name not in grid or grid[name][axis] == "N"]
    return replace(symbol, axes=tuple(axes))


def _with_alike(symbol: Symbol, every: Sequence[Symbol], shapes: Mapping[str, tuple[int, ...]]) -> Symbol:
    """The symbol with all that may have to change with it: an unnamed state of the images, a width."""
    own = {shapes[name][axis] for name, axis in symbol.axes if axis < len(shapes.get(name, ()))}
    axes = [
        (name, axis)
        for other in every
        for name, axis in other.axes
        if axis < len(shapes.get(name, ())) and (shapes[name][axis] in own if symbol.images else not other.images)
    ]
    return replace(symbol, name=f"{symbol.name} and others", axes=tuple(dict.fromkeys([*symbol.axes, *axes])))


def _tried(symbol: Symbol, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[dict[Axis, int]]:
    """Other extents, the likeliest first."""
    own = {axis: shapes[axis[0]][axis[1]] for axis in symbol.axes if axis[1] < len(shapes.get(axis[0], ()))}
    if not own:
        return
    base = next(iter(own.values()))
    if symbol.images:
        more = [base, 2 * base, 1, 1 - base]
    elif base >= 64:
        more = [64, 32, 16, 8, base, 1, -32, -base // 2]
    else:
        more = [base, base + 1, 4, 2, 1, 8, 16, 32, 64, -(base // 2)]
    for step in dict.fromkeys(more):
        if step and all(extent + step > 0 for extent in own.values()):
            yield {axis: extent + step for axis, extent in own.items()}


def _at(
    models: tuple[Specimen, Specimen, Specimen],
    specs: Sequence[InputSpec],
    extents: Mapping[Axis, int],
    evidence: Evidence,
    ledger: Ledger,
    names: Sequence[str],
    read: Read,
    called: tuple[str, Symbol],
) -> bool:
    """Compare at some extents, and say whether the original runs there."""
    original, otherwise, rewritten = models
    check_name, symbol = called
    sample = _drawn(specs, extents, evidence.samples, ledger.seed)
    place = f"{symbol.name} = {next(iter(extents.values()))}"
    try:
        want, again = original.run(sample.feeds), otherwise.run(sample.feeds)
    except RunFailed:
        return False
    if not all(finite(value) for value in want.values()):
        return False
    ledger.inputs = sample.feeds
    try:
        got = rewritten.run(sample.feeds)
    except DeviceFailed:
        return False
    except RunFailed as error:
        ledger.fail(check_name, f"the rewritten model does not run at {place}, where the original does{_where(error)}")
        return True
    for name in names:
        value = read(name, got)
        if name not in original.outputs and (value is None or value.shape != want[name].shape):
            continue
        if value is None:
            found, wanted = ("x".join(map(str, array.shape)) for array in (got[name], want[name]))
            ledger.fail(check_name, f"{found} at {place}, where the original gives {wanted}", name)
            continue
        if want[name].dtype.kind == "f":
            noise = relative_error(again[name], want[name], ledger.peak.get(name))
            ledger.noise[name] = max(ledger.noise.get(name, 0.0), noise if np.isfinite(noise) else 0.0)
        mask = undecided(original.probes, name, want, ledger)
        ledger.compare(check_name, name, value, want[name], note=f"{place}; {sample.source}", uncertain=mask)
    return True


def _drawn(specs: Sequence[InputSpec], extents: Mapping[Axis, int], samples: Sequence[Sample], seed: int) -> Sample:
    """Inputs of other extents: random ones of the same scale, or the user's own, reflected at their ends."""
    like = samples[0]
    wider = [
        replace(spec, shape=tuple(extents.get((spec.name, axis), size) for axis, size in enumerate(spec.shape)))
        for spec in specs
    ]
    if like.scale is not None:
        return draw(wider, like.scale, seed)
    feeds: Feeds = {}
    for spec in wider:
        array = like.feeds[spec.name]
        if array.ndim > 1 and spec.shape[0] > len(
            array
        ):  # further images: the other samples', and the first turned round
            array = np.concatenate([*(sample.feeds[spec.name] for sample in samples), array[..., ::-1]])
        array = enlarge(array, range(len(spec.shape)), spec.shape)
        feeds[spec.name] = np.ascontiguousarray(array[tuple(slice(0, size) for size in spec.shape)])
    return Sample(feeds, f"{like.source} and others, reflected at their ends")


def _where(error: RunFailed) -> str:
    """The operator at which a run ended; the words of ONNX Runtime are about its internals."""
    found = re.search(r"running (\w+) node\. Name:'([^']*)'", str(error))
    return f" ({found[1]} '{found[2]}')" if found else ""
