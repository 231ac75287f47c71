"""Does every cell of a fully convolutional model's output equal the original classifier on its window?

    image  ---- converted ---->  map [N, K, H', W']         cell (i, j)
      |                                                        ||  ?
      +-- crop at (i, j) * stride ---- original ---->  output of the native size

The oracle is plain slicing: crops are cut out of the image with slices, cells out of the map with slices, and both
are compared in the original's layout. Nothing of the converter is used. Where the receptive field is smaller than the
window, the map has cells whose window runs off the image; they must equal the original whatever fills the missing
pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from convrewrite.engine.windows import OutputGrid
from convrewrite.errors import said
from convrewrite.running.runtime import DeviceFailed, RunFailed
from convrewrite.running.sampling import Feeds, InputSpec, random_array
from convrewrite.text import counted
from convrewrite.verification import batches, extents
from convrewrite.verification.channels import Draws
from convrewrite.verification.comparison import Again, relative_error
from convrewrite.verification.specimens import Specimen
from convrewrite.verification.still import undecided
from convrewrite.verification.subjects import Array, LargeImage, Position, Subject, Values

CHUNK_PIXELS = 3_000_000
"""Pixels of crops that go through the original in one batch."""

EXTRA_CELLS = 24
"""At most this many cells past the last window are looked at per image."""


def native(subject: Subject) -> None:
    """The converted model at the native size against the original, on every sample."""
    ledger, check = subject.ledger, "native size"
    fixed = subject.fixed_size()
    if fixed is not None and fixed != subject.window.size:
        ledger.skip(check, f"the converted model takes images of {'x'.join(map(str, fixed))} alone")
        return
    origin = (0,) * len(subject.window.size)
    for sample, want in zip(subject.evidence.samples, subject.evidence.references, strict=True):
        ledger.inputs = sample.feeds
        try:
            got = subject.converted.run(sample.feeds)
        except DeviceFailed:
            raise
        except RunFailed as error:
            ledger.fail(check, f"the converted model does not run: {said(error)}")
            return
        for name in subject.original.outputs:
            if name not in subject.grids:  # it does not depend on the image
                ledger.compare(check, name, got[name], want[name], note=sample.source)
        for name, grid in subject.grids.items():
            values = subject.block(name, got, origin)
            if values is None or not subject.fits(got[name].shape[2:], grid.size):
                ledger.fail(check, misfit(got[name], grid, grid.size), name)
                continue
            mask = undecided(subject.original.probes, name, want, ledger)
            ledger.compare(check, name, values, want[name], note=sample.source, uncertain=mask)


def metadata_holds(subject: Subject) -> bool:
    """Whether the metadata fits the models; records a failure where not."""
    window, ledger, check = subject.window, subject.ledger, "window metadata"
    native = tuple(subject.spec.shape[axis] for axis in subject.axes)
    if native != window.size:
        ledger.fail(check, f"it says a window of {window.size}, the original takes images of {native}")
    for name in subject.original.outputs:
        if name not in subject.converted.outputs:
            ledger.fail(check, "the converted model lacks this output", name)
    for name in subject.converted.outputs:
        if name not in subject.original.outputs:
            ledger.fail(check, "the original has no such output", name)
    for name, grid in window.outputs.items():
        if name not in subject.original.outputs:
            ledger.fail(check, "it describes an output that the original does not have", name)
        steps = list(zip(window.stride, grid.stride, strict=True))
        if any(cell < 1 or step < 1 or step % cell for step, cell in steps):
            ledger.fail(check, f"stride {grid.stride} does not divide the window's stride {window.stride}", name)
    return not any(case.status == "failed" for case in ledger.cases)


def several_batches(subject: Subject, otherwise: Specimen, specs: Sequence[InputSpec]) -> None:
    """Several batches at once, where the converted model takes more images than the original, or both take any number.

    Args:
        otherwise: the original with the other graph optimizations. specs: the original's inputs at the native size.
    """
    fixed, origin = subject.fixed_size(), (0,) * len(subject.window.size)
    how = (subject.original, subject.converted, subject.evidence, subject.ledger, list(subject.grids))

    def cells(name: str, values: Mapping[str, Array]) -> Array | None:
        return subject.block(name, values, origin)

    grid = subject.window.images
    if fixed is None or fixed == subject.window.size:
        batches.check(*how, cells, grid=grid)
        models = subject.original, otherwise, subject.converted
        extents.check(
            models, specs, *how[2:], lambda n, values: subject.block(n, values, origin), sizes=False, grid=grid
        )
        return

    def widened(feeds: Feeds) -> Feeds:
        made = dict(feeds)
        for name in subject.window.images:
            pads = [(0, 0)] * feeds[name].ndim
            for axis, extent in zip(subject.window.places(name), fixed, strict=True):
                pads[axis] = (0, extent - feeds[name].shape[axis])
            made[name] = np.pad(feeds[name], pads, "wrap")
        return made

    batches.check(*how, widened=widened, grid=grid)


def misfit(got: Array, grid: OutputGrid, extents: Sequence[int]) -> str:
    """The words for a map whose shape is not what the metadata says."""
    return (
        f"a map of shape {'x'.join(map(str, got.shape))} where the window's metadata says "
        f"{'x'.join(map(str, extents))} cells of the layout {grid.layout}"
    )


def run_converted(subject: Subject, image: LargeImage, check: str) -> Values | None:
    """The converted model's maps of an image; records a failure where it does not run or a map has wrong extents."""
    subject.ledger.inputs = image.feeds
    try:
        values = subject.converted.run(image.feeds)
    except DeviceFailed:
        raise
    except RunFailed as error:
        subject.ledger.fail(check, f"the converted model does not run on an image of {image.name}: {said(error)}")
        return None
    counts = subject.window.positions(image.size)
    for name, grid in subject.grids.items():
        steps = zip(counts, subject.ratio(grid), grid.size, strict=True)
        extents = tuple((count - 1) * ratio + size for count, ratio, size in steps)
        if not subject.fits(values[name].shape[2:], extents, image.exact):
            subject.ledger.fail(check, misfit(values[name], grid, extents), name)
            return None
    return values


def windows(subject: Subject, images: Sequence[LargeImage]) -> None:
    """Every cell of the maps of larger images against the original on its crop."""
    for image in images:
        everything = len(image.chosen) == image.total
        count = "every window" if everything else f"{len(image.chosen):,} of {counted(image.total, 'window')}"
        check = f"{count} of {image.name}"
        values = run_converted(subject, image, check)
        if values is None:
            continue
        wants = run_crops(subject, image.feeds, image.chosen, check)
        again = crops_again(subject, image.feeds, image.chosen)
        compare_cells(subject, check, values, image.chosen, wants=wants, note=image.note, again=again)
        _cells_past_the_end(subject, image, values)


def compare_cells(
    subject: Subject,
    check: str,
    values: Mapping[str, Array],
    positions: Sequence[Position],
    wants: Sequence[Mapping[str, Array]],
    note: str,
    again: Again | None = None,
) -> None:
    """Compare the cells at some positions with what the original gives for each.

    `again`: what rounding alone may make of the original's (see `Ledger.compare`).
    """
    places = [f"window at pixel {start_of(subject, position)}" for position in positions]
    for name, grid in subject.grids.items():
        blocks = [subject.block(name, values, position) for position in positions]
        fitting = [block for block in blocks if block is not None]
        want = [value[name] for value in wants]
        if len(fitting) < len(blocks) or any(a.shape != b.shape for a, b in zip(fitting, want, strict=True)):
            subject.ledger.fail(check, misfit(values[name], grid, grid.size), name)
            continue
        masks = [undecided(subject.original.probes, name, value, subject.ledger) for value in wants]
        known = [mask for mask in masks if mask is not None]
        subject.ledger.compare(
            check,
            name,
            np.stack(fitting),
            np.stack(want),
            note=note,
            places=places,
            uncertain=np.stack(known) if len(known) == len(masks) else None,
            again=again,
        )


def start_of(subject: Subject, position: Position) -> Position:
    """The first pixel of the window at a position."""
    window = subject.window
    return tuple(o + i * s for o, i, s in zip(window.offset, position, window.stride, strict=True))


def crops(subject: Subject, feeds: Feeds, positions: Sequence[Position]) -> list[Feeds]:
    """Inputs of the original for the windows of an image."""
    window = subject.window
    items = []
    for position in positions:
        item = dict(feeds)
        for name in window.images:
            index = [slice(None)] * feeds[name].ndim
            for axis, start, extent in zip(window.places(name), start_of(subject, position), window.size, strict=True):
                index[axis] = slice(start, start + extent)
            item[name] = np.ascontiguousarray(feeds[name][tuple(index)])
        items.append(item)
    return items


def crops_again(subject: Subject, feeds: Feeds, positions: Sequence[Position]) -> Again:
    """What rounding alone may make of the original on the windows of an image."""

    def again(output: str, entries: Sequence[int]) -> Draws | None:
        shaken = subject.evidence.shaken
        items = crops(subject, feeds, [positions[entry] for entry in entries])
        runs = [shaken.runs(item) if shaken is not None else () for item in items]
        if not all(runs):
            return None
        return [np.stack([run[output] for run in draw]) for draw in zip(*runs, strict=True)]

    return again


def run_crops(subject: Subject, feeds: Feeds, positions: Sequence[Position], text: str = "") -> list[Values]:
    """Run the original on every crop of an image."""
    window, items = subject.window, crops(subject, feeds, positions)
    batch_axes = {}
    for info in subject.original.session.inputs:
        axis = window.images[info.name].find("N") if info.name in window.images else 0
        if axis < 0 or not info.shape or isinstance(info.shape[axis], int):
            return run_each(subject, subject.original.run, items, {}, text=text)
        batch_axes[info.name] = axis
    return run_each(subject, subject.original.run, items, batch_axes, text=text)


def run_each(
    subject: Subject,
    run: Callable[[Feeds], Values],
    items: Sequence[Feeds],
    batch_axes: Mapping[str, int],
    text: str = "",
) -> list[Values]:
    """Run many inputs, in batches along `batch_axes` where that gives the same as one by one; {} is one by one."""
    names = list(subject.grids)
    out_axes = {
        name: next((i for i, axis in enumerate(grid.layout) if axis.startswith("N")), None)
        for name, grid in subject.grids.items()
    }
    first = run(items[0])
    results = [{name: first[name] for name in names}]
    pixels = max(1, int(np.prod(subject.spec.shape)))
    chunk = min(64, max(1, CHUNK_PIXELS // pixels))
    together = bool(batch_axes) and chunk > 1 and len(items) > 1 and None not in out_axes.values()
    if together:
        trial = _run_together(run, items[: min(chunk, len(items))], batch_axes, out_axes)
        together = trial is not None and all(_like(trial[0][name], first[name]) for name in names)
    while len(results) < len(items):
        if subject.progress is not None:
            subject.progress(text, len(results), len(items))
        part = items[len(results) : len(results) + (chunk if together else 1)]
        values = _run_together(run, part, batch_axes, out_axes) if together else None
        if values is None:
            values = [run(item) for item in part]
        results.extend({name: value[name] for name in names} for value in values)
    return results


def _like(a: Array, b: Array) -> bool:
    """Whether running in a batch changed nothing but rounding."""
    if a.shape != b.shape:
        return False
    return relative_error(a, b) < 1e-3 if a.dtype.kind == "f" else bool(np.array_equal(a, b))


def _run_together(
    run: Callable[[Feeds], Values],
    items: Sequence[Feeds],
    batch_axes: Mapping[str, int],
    out_axes: Mapping[str, int | None],
) -> list[Values] | None:
    """Run inputs as one batch; None where the model does not take that, or mixes them."""
    feeds = {name: np.concatenate([item[name] for item in items], axis) for name, axis in batch_axes.items()}
    try:
        values = run(feeds)
    except RunFailed:
        return None
    results: list[Values] = [{} for _ in items]
    for name, axis in out_axes.items():
        if axis is None or axis >= values[name].ndim or values[name].shape[axis] % len(items):
            return None
        for result, piece in zip(results, np.split(values[name], len(items), axis), strict=True):
            result[name] = piece
    return results


def _cells_past_the_end(subject: Subject, image: LargeImage, values: Mapping[str, Array]) -> None:
    """Cells whose window runs off the image but whose receptive field does not: any filling must give the same."""
    window, check = subject.window, f"cells past the last window of {image.name}"
    counts = []
    for axis in range(len(window.size)):
        fits = [
            (values[name].shape[2 + axis] - grid.size[axis]) // subject.ratio(grid)[axis] + 1
            for name, grid in subject.grids.items()
        ]
        # the receptive field of a whole block of cells has to lie inside the image
        reach = [window.receptive_field[axis] + (g.size[axis] - 1) * g.stride[axis] for g in subject.grids.values()]
        inside = (image.size[axis] - window.offset[axis] - max(reach)) // window.stride[axis] + 1
        counts.append(max(0, min(*fits, inside)))
    whole = window.positions(image.size)
    extra = [p for p in np.ndindex(*counts) if any(i >= n for i, n in zip(p, whole, strict=True))]
    if not extra:
        return
    if len(extra) > EXTRA_CELLS:
        step = len(extra) / EXTRA_CELLS
        extra = [extra[int(i * step)] for i in range(EXTRA_CELLS - 1)] + [extra[-1]]
    results = []
    for filling in ("zeros", "random"):
        feeds = dict(image.feeds)
        for name in window.images:
            source = image.feeds[name]
            pads = [(0, 0)] * source.ndim
            for axis, extent in zip(window.places(name), window.size, strict=True):
                pads[axis] = (0, extent)
            feeds[name] = np.pad(source, pads)
            if filling == "random":
                spec = InputSpec(name, source.dtype, feeds[name].shape)
                noise = random_array(np.random.default_rng(subject.seed + 7), spec, image.scale)
                noise[tuple(slice(0, extent) for extent in source.shape)] = source
                feeds[name] = noise
        results.append((run_crops(subject, feeds, extra, check), crops_again(subject, feeds, extra)))
    for (result, again), filling in zip(results, ("zeros", "random"), strict=True):
        note = f"{image.note}; missing pixels filled with {filling}"
        compare_cells(subject, check, values, extra, wants=result, note=note, again=again)
