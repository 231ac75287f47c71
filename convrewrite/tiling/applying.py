"""The command `apply`: from a model and an image to the cells of the whole image.

model, image ──> survey ──> tiles ──> workers ──> Zarr ──(.npy, .tif, .png)──> OUT ──(check)────> original on crops
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convrewrite import model_io
from convrewrite.errors import Interrupted, UsageError
from convrewrite.model_io import Model
from convrewrite.model_io.guards import Files
from convrewrite.options import ApplyOptions
from convrewrite.pipeline.steps import obtained
from convrewrite.running import faults
from convrewrite.running.installed import check_installation
from convrewrite.system import atomic
from convrewrite.system.labels import fitting, read_labels
from convrewrite.text import parameter
from convrewrite.tiling import checks, engine, exports, images, memory
from convrewrite.tiling.engine import Finished, Job, Tell
from convrewrite.tiling.images import Source
from convrewrite.tiling.overview import overview
from convrewrite.tiling.preparing import Preparation, prepared
from convrewrite.tiling.recipe import Recipe
from convrewrite.tiling.result import Applied
from convrewrite.tiling.store import Store, same_plan, stored_plan, targets
from convrewrite.tiling.survey import Survey, outline, refused, survey

VERSION = 2
"""Of what is stored beside the cells: since 2, the hashes of the pixels that tiles were computed from."""


DEFAULT = ApplyOptions()

MOST_TILES = 1_000_000
"""Each is a file or more; and at a tenth of a second for each, they take a day."""


def apply(
    source: str | Path | Model,
    image: str,
    target: str,
    options: ApplyOptions = DEFAULT,
    *,
    tell: Tell | None = None,
    small: bool = False,
) -> Applied:
    """Compute the cells of a whole image. What fails is in the result; its `check` raises it.

    Args:
        source: the model. image: path or address. target: OUT: a Zarr group, .npy, .tif or .png.
        small: look at what is stored once more, for a small map and the cells of each class.

    Raises:
        Refused: tiles cannot give what the whole image gives. UsageError: something does not fit.
    """
    check_installation()
    model = source if isinstance(source, Model) else model_io.load(source)
    faults.refuse_contradictions(model)
    with faults.blaming([model]), atomic.scratch() as folder:
        return _Run(model, image, target.removeprefix("file://"), options, folder=Path(folder), small=small).done(tell)


def files(
    model: str | Path | None, image: str, target: str, *, original: str | None = None, labels: str | None = None
) -> Files:
    """What is read and written; an image that is a folder is read whole, and OUT may be a folder that is replaced."""
    replaced = {"OUT": target}
    if exports.kind_of(target) != "zarr":
        replaced["what is left of OUT"] = _scratch(target)
    whole = "://" not in image and os.path.isdir(image)
    return Files(
        {"MODEL": model, parameter("original"): original},
        {parameter("labels"): labels, **({} if whole else {"IMAGE": image})},
        {"IMAGE": image} if whole else {},
        replaces=replaced,
    )


def _scratch(target: str) -> str:
    """Where the cells are before they become another file than a Zarr group."""
    return f"{target}.tiles.zarr"


def _kept_step(before: Mapping[str, Any] | None, rank: int) -> tuple[int, ...] | None:
    """Units per tile of what is there; None where it does not say."""
    step = (before or {}).get("step")
    if not isinstance(step, list) or len(step) != rank or not all(isinstance(n, int) and n > 0 for n in step):
        return None
    return tuple(step)


def _refuse_many(tiles: int) -> None:
    if tiles > MOST_TILES:
        raise UsageError(
            f"the image comes to {tiles:,} tiles, more than {MOST_TILES:,}",
            remedy=f"give larger ones with {parameter('tile')} or {parameter('memory')}, or a part of the image",
        )


@contextlib.contextmanager
def _sized() -> Iterator[None]:
    """Refuse a model of one size where its crops cannot show what the image does."""
    try:
        yield
    except ValueError as error:
        raise refused("apply/fixed-size", str(error)) from None


@dataclass
class _Run:
    """One run."""

    model: Model
    image: str
    target: str
    options: ApplyOptions
    folder: Path
    small: bool = False

    def done(self, tell: Tell | None) -> Applied:
        options, kind = self.options, exports.kind_of(self.target)
        named = files(self.model.path, self.image, self.target, original=options.original, labels=options.labels)
        named.keep_apart()
        rank, channels = outline(self.model)
        preparation = prepared(self.model.metadata, options).fitting(channels)
        bytes_ = memory.parse_bytes(options.memory)
        found = images.find(self.image, options.array, self.folder, bytes_)
        source = images.settled(found, rank, channels, options.layout, taken=preparation.channels)
        provider, workers, threads = self._resources()
        images.probe(source, bytes_ / workers)
        seen = survey(self.model, source.size, options.outputs)
        url = self.target if kind == "zarr" else _scratch(self.target)
        before = stored_plan(url)
        step = self._step(seen, source, workers, before)
        _refuse_many(math.prod(seen.geometry.counts(step)))
        with _sized():
            seen.geometry.check(step)
        names = self._names(seen)
        store = self._store(url, seen, step, names)
        exports.check(kind, self.target, store.targets, options.chosen)
        plan = self._plan(seen, source, preparation, step, threads=threads, provider=provider)
        resumed = self._begin(store, plan, before, kind)
        frozen: str | bytes = str(model_io.save(seen.model, self.folder / "frozen.onnx"))
        if options.scheduler is not None:
            frozen = model_io.to_bytes(seen.model)
        recipe = Recipe.of(seen)
        job = Job(
            key=secrets.token_hex(8),
            model=frozen,
            source=source,
            store=store,
            recipe=recipe,
            geometry=seen.geometry,
            preparation=preparation,
            step=step,
            provider=provider,
            threads=threads,
        )
        ready, left = store.places() if resumed else ([], store.every())
        finished = Finished()
        if ready or left:
            share = memory.parse_bytes(options.memory) / workers
            try:
                with engine.workers(workers, provider, options.scheduler, share, folder=str(self.folder)) as client:
                    self._compare(job, ready, client)
                    store.tidy()
                    finished = engine.run(job, left, client, tell)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"interrupted; the tiles that are done are kept, and {parameter('resume')} goes on"
                ) from None
        total = math.prod(store.counts)
        result = self._applied(seen, job, total, total - len(left), finished=finished, workers=workers)
        if finished.failed:
            return result
        result = replace(result, without_class=store.without_class())
        if options.check:
            compared = checks.check(
                job, seen, options.check, original=options.original, seed=options.seed, tolerance=options.tolerance
            )
            result = replace(result, checks=tuple(compared))
            result = replace(result, written=kind == "zarr" or not result.failed)
        return self._handed_over(result, store, kind)

    def _handed_over(self, result: Applied, store: Store, kind: str) -> Applied:
        """The result with its small maps; what is no Zarr group becomes the file that was asked for."""
        group = store.open()
        if self.small:
            maps = {name: overview(group[of.name], of) for name, of in store.targets.items()}
            result = replace(result, maps=maps)
        if kind != "zarr" and not result.failed:
            only = next(iter(store.targets.values()))
            exports.export(kind, group[only.name], self.target, only, chosen=self.options.chosen)
            shutil.rmtree(store.url)
        return result

    def _compare(self, job: Job, ready: Sequence[engine.Place], client: Any) -> None:
        """Raise UsageError where what is done was computed from another image than the one that is there."""
        place = engine.first_differing(job, ready, client)
        if place is not None:
            raise UsageError(
                f"{job.store.url} was begun with another image: tile {place} was computed from other pixels",
                remedy=f"give the same image, or {parameter('overwrite')} to begin anew",
            )

    def _resources(self) -> tuple[str, int, int]:
        """Provider, processes, and threads of each."""
        options = self.options
        provider = obtained("cpu" if options.provider == "auto" and not engine.gpus() else options.provider)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        devices = len(engine.gpus()) if provider != "cpu" else cores
        workers = options.workers or max(1, devices)
        return provider, workers, options.threads or max(1, cores // workers)

    def _step(self, seen: Survey, source: Source, workers: int, before: Mapping[str, Any] | None) -> tuple[int, ...]:
        """Units per tile: as in what is there, as asked for, or as large as memory allows."""
        geometry = seen.geometry
        kept = _kept_step(before, len(geometry.size)) if self.options.resume else None
        if kept is not None:
            if self.options.tile is not None and geometry.units(self.options.tile) != kept:
                raise UsageError(
                    f"{parameter('resume')} goes on with the tiles that are there",
                    remedy=f"leave {parameter('tile')} out",
                )
            return kept
        if self.options.tile is not None:
            return geometry.units(self.options.tile)
        with _sized():
            geometry.check([1] * len(geometry.size))
        bytes_ = memory.parse_bytes(self.options.memory)
        return memory.choose_step(seen, bytes_, workers, np.dtype(source.dtype).itemsize)

    def _names(self, seen: Survey) -> Mapping[str, Sequence[str]]:
        """The names of the classes by output. Raises UsageError where they fit none."""
        path = self.options.labels
        if path is None:
            return {}
        names = read_labels(path)
        fits = {name: names for name, values in seen.values.items() if values == len(names)}
        if not fits:
            output, values = next(iter(seen.values.items()))
            fitting(names, values, output, path)
        return fits

    def _store(self, url: str, seen: Survey, step: Sequence[int], names: Mapping[str, Sequence[str]]) -> Store:
        window = seen.window
        attributes = {
            name: {
                "output": name,
                "stride": [axis.stride for axis in axes],
                "offset": [0] * len(axes) if window is None else list(window.offset),
                "window": None if window is None else list(window.size),
                "receptive_field": None if window is None else list(window.receptive_field),
                **({"classes": list(names[name])} if name in names else {}),
            }
            for name, axes in seen.geometry.outputs.items()
        }
        made = targets(seen.geometry, step, seen.values, seen.dtypes, attributes=attributes, top1=self.options.top1)
        return Store(url, made, seen.geometry.counts(step))

    def _plan(
        self, seen: Survey, source: Source, prepare: Preparation, step: Sequence[int], threads: int, provider: str
    ) -> dict[str, Any]:
        """What must be the same for a run to be gone on with."""
        return {
            "version": VERSION,
            "model": model_io.content_sha256(self.model),
            "image": {"url": self.image, "shape": list(source.shape), "dtype": source.dtype, "axes": source.axes},
            "channels": list(source.channels),
            "prepare": prepare.to_dict(),
            "outputs": sorted(seen.geometry.outputs),
            "top1": self.options.top1,
            "step": list(step),
            "threads": threads,
            "provider": provider,
        }

    def _begin(self, store: Store, plan: Mapping[str, Any], before: Mapping[str, Any] | None, kind: str) -> bool:
        """Make the store, or go on with the one that is there: whether it was."""
        folder = Path(store.url).parent
        if "://" not in store.url and not folder.is_dir():
            raise UsageError(f"cannot write {self.target}: there is no folder {folder}", remedy="make it first")
        options, there = self.options, kind != "zarr" and Path(self.target).exists()
        if options.resume and before is not None:
            if differs := same_plan(before, plan):
                raise UsageError(
                    f"{store.url} was begun with another {', '.join(differs)}",
                    remedy=f"give the same, or {parameter('overwrite')}",
                )
            return True
        exists = before is not None or ("://" not in store.url and Path(store.url).exists())
        if there and options.resume:
            raise UsageError(
                f"{self.target} is finished already", remedy=f"give {parameter('overwrite')} to begin anew"
            )
        if (exists or there) and not options.overwrite:
            name = store.url if exists else self.target
            raise UsageError(
                f"{name} is there already",
                remedy=f"give {parameter('resume')} to go on, or {parameter('overwrite')} to begin anew",
            )
        if exists and before is None and Path(store.url).exists():
            raise UsageError(f"{store.url} is no result of apply, and is not overwritten", remedy="choose another OUT")
        store.create(plan, overwrite=options.overwrite)
        return False

    def _applied(self, seen: Survey, job: Job, total: int, resumed: int, finished: Finished, workers: int) -> Applied:
        geometry, store = seen.geometry, job.store
        shapes = {
            name: target.shape if target.top1 else (target.values, *target.shape)
            for name, target in store.targets.items()
        }
        middle = geometry.tile([count // 2 for count in store.counts], job.step)
        read = math.prod(stop - start for start, stop in middle.crop)
        own = math.prod(min(s * u, n) for s, u, n in zip(job.step, geometry.unit, geometry.size, strict=True))
        share = finished.tiles / total if total else 0.0
        rate = math.prod(geometry.size) * share / finished.seconds if finished.seconds else 0.0
        crop = tuple(stop - start for start, stop in middle.crop)
        attributes = {name: dict(target.attributes) for name, target in store.targets.items()}
        return Applied(
            target=self.target,
            size=geometry.size,
            outputs=shapes,
            tiles=total,
            resumed=resumed,
            useful=min(1.0, own / read),
            rate=rate,
            finished=finished,
            workers=workers,
            provider=job.provider,
            crop=crop,
            attributes=attributes,
        )
