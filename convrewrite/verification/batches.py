"""A model that was opened to any batch: what it gives for two batches at once is what the original gives for each.

first, second  ── original, one after the other ──  y1, y2
both at once   ── rewritten ────────────────────────  [y1; y2]  ?

A rewritten model that takes larger images alone is held against itself: one after the other, and both at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from convrewrite.runtime import DeviceFailed, RunFailed
from convrewrite.sampling import Feeds
from convrewrite.verification.comparison import Array, Ledger
from convrewrite.verification.specimens import Evidence, Specimen, undecided

CHECK = "two batches at once"


def opened(original: Specimen, rewritten: Specimen) -> tuple[str, ...]:
    """Inputs whose first extent the original fixes and the rewritten model does not."""
    theirs = {info.name: info.shape for info in rewritten.session.inputs}
    return tuple(
        info.name
        for info in original.session.inputs
        if info.shape and theirs.get(info.name) and isinstance(info.shape[0], int) and _is_open(theirs[info.name][0])
    )


def _is_open(dim: object) -> bool:
    return not isinstance(dim, int)


def check(
    original: Specimen,
    rewritten: Specimen,
    evidence: Evidence,
    ledger: Ledger,
    names: Sequence[str],
    read: Callable[[str, Mapping[str, Array]], Array | None] = lambda name, values: values.get(name),
    *,
    widened: Callable[[Array], Array] | None = None,
    image: str = "",
) -> None:
    """Compare where some input was opened.

    Args:
        original, rewritten, evidence, ledger: as everywhere. names: of what is compared.
        read: finds what the rewritten model gives in the original's layout.
        widened: makes the input `image` as large as the rewritten model takes it, where it takes no other.
    """
    inputs = opened(original, rewritten)
    if not inputs or not evidence.samples:
        return
    first, second = (
        sample if widened is None else replace(sample, feeds={**sample.feeds, image: widened(sample.feeds[image])})
        for sample in (evidence.samples[0], evidence.samples[-1])
    )
    reference = original if widened is None else rewritten
    if len(evidence.samples) == 1:
        flipped = {n: np.ascontiguousarray(first.feeds[n][..., ::-1]) for n in inputs}
    else:
        flipped = {n: second.feeds[n] for n in inputs}
    both: Feeds = {**first.feeds, **{n: np.concatenate([first.feeds[n], flipped[n]]) for n in inputs}}
    ledger.inputs = both
    try:
        wants = [reference.run(first.feeds), reference.run({**first.feeds, **flipped})]
        got = rewritten.run(both)
    except DeviceFailed:
        raise
    except RunFailed as error:
        ledger.fail(CHECK, f"the rewritten model does not run on them: {error}")
        return
    for name in names:
        parts = [want[name] for want in wants]
        if not parts[0].ndim or name not in original.moving | {probe.name for probe in reference.probes}:
            continue
        want = np.concatenate(parts)
        value = read(name, got)
        if value is None or value.shape != want.shape:
            found = "x".join(map(str, got[name].shape))
            ledger.fail(CHECK, f"{found} where {'x'.join(map(str, want.shape))} was expected", name)
            continue
        stacked = {n: np.concatenate([want[n] for want in wants]) for n, value in wants[0].items() if value.ndim}
        mask = undecided(reference.probes, name, stacked, ledger)
        ledger.compare(CHECK, name, value, want, note=first.source, uncertain=mask)
