"""A model that was opened to any batch: what it gives for several batches at once is what the original gives for each.

first, second, ..  ── original, one after the other ──  y1, y2, ..
all at once        ── rewritten ────────────────────────  [y1; y2; ..]  ?

Two, three and seven are tried: what holds for two alone (a reversed pair, a Reshape to halves) does not hold for an odd
number. Each part is compared by itself, so that a loud image hides no other. This is the second check: that images do
not see each other is decided by the axes, in the pass `open-batch`. A rewritten model that takes larger images alone is
held against itself: one after the other, and all at once.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from convrewrite.running.runtime import DeviceFailed, RunFailed
from convrewrite.running.sampling import Feeds, Sample
from convrewrite.verification.channels import Draws
from convrewrite.verification.comparison import Array, Ledger
from convrewrite.verification.evidence import Evidence
from convrewrite.verification.specimens import Specimen
from convrewrite.verification.still import undecided

COUNTS = {2: "two batches at once", 3: "three batches at once", 7: "seven batches at once"}
"""How many batches are tried at once, and what the check is called."""


def opened(original: Specimen, rewritten: Specimen, grid: Mapping[str, str] = MappingProxyType({})) -> tuple[str, ...]:
    """Inputs whose first extent, which counts images, the original fixes and the rewritten model does not.

    Args:
        grid: the letters of the axes of inputs whose rows and columns were opened.
    """
    theirs = {info.name: info.shape for info in rewritten.session.inputs}
    return tuple(
        info.name
        for info in original.session.inputs
        if info.shape and theirs.get(info.name) and isinstance(info.shape[0], int) and _is_open(theirs[info.name][0])
        if grid.get(info.name, "N").startswith("N")
    )


def _is_open(dim: object) -> bool:
    return not isinstance(dim, int)


@dataclass(frozen=True)
class _Part:
    """One of several batches: its inputs, what is wanted of it, and what the inputs are."""

    feeds: Feeds
    want: Mapping[str, Array]
    source: str


def check(
    original: Specimen,
    rewritten: Specimen,
    evidence: Evidence,
    ledger: Ledger,
    names: Sequence[str],
    read: Callable[[str, Mapping[str, Array]], Array | None] = lambda name, values: values.get(name),
    *,
    widened: Callable[[Feeds], Feeds] | None = None,
    grid: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Compare where some input was opened.

    Args:
        original, rewritten, evidence, ledger: as everywhere. names: of what is compared.
        read: finds what the rewritten model gives in the original's layout.
        widened: makes images as large as the rewritten model takes them, where it takes no others.
        grid: as for `opened`.
    """
    inputs = opened(original, rewritten, grid)
    if not inputs or not evidence.samples:
        return
    reference = original if widened is None else rewritten
    names = [name for name in names if name in original.moving | {probe.name for probe in reference.probes}]
    samples = [
        sample if widened is None else replace(sample, feeds=widened(sample.feeds)) for sample in evidence.samples
    ]
    known = evidence.references if widened is None else []
    parts: list[_Part] = []
    ahead = _parts(reference, samples, known, inputs)
    for count, words in COUNTS.items():
        try:
            parts += [next(ahead) for _ in range(count - len(parts))]
        except DeviceFailed:
            raise
        except RunFailed:
            ledger.skip(words, "the original does not run on its images turned round")
            return
        if not _at_once(rewritten, reference, parts, inputs, ledger=ledger, names=names, read=read, check=words):
            return


def _parts(
    reference: Specimen, samples: Sequence[Sample], known: Sequence[Mapping[str, Array]], inputs: Sequence[str]
) -> Iterator[_Part]:
    """The samples, then the samples with the first one's other inputs turned round and shifted, without end.

    Inputs that were not opened are those of the first sample in every part: all images of a batch share them.
    """
    shared = {name: value for name, value in samples[0].feeds.items() if name not in inputs}
    turn = 0
    while True:
        for index, sample in enumerate(samples):
            own = {name: _turned(sample.feeds[name], turn) for name in inputs}
            plain = turn == 0 and index < len(known) and (index == 0 or not shared)
            feeds = {**shared, **own}
            want = known[index] if plain else reference.run(feeds)
            yield _Part(feeds, want, sample.source if not turn else f"{sample.source}, turned round and shifted")
        turn += 1


def _turned(array: Array, turn: int) -> Array:
    """Another image of the same numbers, and the same image for no turn."""
    if not turn:
        return array
    turned = array[..., ::-1] if turn % 2 else array
    return np.ascontiguousarray(np.roll(turned, turn // 2, axis=-1) if array.ndim else turned)


def _at_once(
    rewritten: Specimen,
    reference: Specimen,
    parts: Sequence[_Part],
    inputs: Sequence[str],
    ledger: Ledger,
    names: Sequence[str],
    read: Callable[[str, Mapping[str, Array]], Array | None],
    check: str,
) -> bool:
    """Whether the rewritten model runs on all parts at once, with the right shapes; the ledger keeps the errors."""
    together: Feeds = {**parts[0].feeds, **{n: np.concatenate([part.feeds[n] for part in parts]) for n in inputs}}
    ledger.inputs = together
    try:
        got = rewritten.run(together)
    except DeviceFailed:
        raise
    except RunFailed as error:
        ledger.fail(check, f"the rewritten model does not run on {check}: {_where(error)}")
        return False
    fine = True
    for name in names:
        first = parts[0].want[name]
        if not first.ndim:
            continue
        value, extent = read(name, got), len(first)
        if value is None or value.shape != (len(parts) * extent, *first.shape[1:]):
            found, wanted = ("x".join(map(str, s)) for s in (got[name].shape, (len(parts) * extent, *first.shape[1:])))
            ledger.fail(check, f"{found} where {wanted} was expected", name)
            fine = False
            continue
        for index, part in enumerate(parts):
            mask = undecided(reference.probes, name, part.want, ledger)
            again = functools.partial(_again, ledger, part) if reference is not rewritten else _unknown
            own = value[index * extent : (index + 1) * extent]
            ledger.compare(
                check, name, own, part.want[name], note=f"batch {index + 1}: {part.source}", uncertain=mask, again=again
            )
    return fine


def _again(ledger: Ledger, part: _Part, output: str, _: Sequence[int]) -> Draws | None:
    """What rounding may make of one batch."""
    return [run[output] for run in ledger.shaken.runs(part.feeds)] if ledger.shaken is not None else None


def _unknown(_: str, __: Sequence[int]) -> None:
    """The rewritten model is held against itself: what rounding does to it is not known."""


def _where(error: RunFailed) -> str:
    """Which operator takes one number of images, without ONNX Runtime's own words, which are about its internals."""
    found = re.search(r"running (\w+) node\. Name:'([^']*)'", str(error))
    return f"{found[1]} '{found[2]}' takes one number of them" if found else "some operator takes one number of them"
