"""The work, handed out tile by tile to processes by Dask: each keeps one session, one image and one store open.

    scheduler ── place of a tile ──> worker: read the crop, prepare, run, write the cells, mark the tile ──> its time

A worker that dies is replaced, and its tile is run again elsewhere; a tile that keeps failing is told at the end.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convrewrite.errors import UsageError
from convrewrite.running.runtime import Session, open_session
from convrewrite.text import as_line, parameter
from convrewrite.tiling.extra import library
from convrewrite.tiling.geometry import Geometry
from convrewrite.tiling.images import Source
from convrewrite.tiling.preparing import Preparation
from convrewrite.tiling.recipe import Recipe
from convrewrite.tiling.store import Store, hashed

Place = tuple[int, ...]
Tell = Callable[[int, int, float], None]
"""Called with tiles done, tiles in all, and pixels of the image that were read."""

TRIES = 3
"""So often a tile is run; so many workers may die over it."""

DEAF = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
"""What a worker does first: Ctrl-C is for the process that hands out the tiles, and that stops the workers."""

COMPARED = 64
"""So many tiles that are done are compared at a time."""

AHEAD = 2
"""Tiles per worker that wait for it."""


@dataclass(frozen=True)
class Job:
    """All that a worker needs.

    Attributes:
        key: tells one job from another. model: path, or bytes where workers do not share a file system.
        provider, threads: of the session. step: units per tile.
    """

    key: str
    model: str | bytes
    source: Source
    store: Store
    recipe: Recipe
    geometry: Geometry
    preparation: Preparation
    step: tuple[int, ...]
    provider: str = "cpu"
    threads: int | None = None


@dataclass
class Finished:
    """What came of it: seconds in all, tiles done, pixels read, and the error of each tile that failed."""

    seconds: float = 0.0
    tiles: int = 0
    pixels: float = 0.0
    failed: dict[Place, str] = field(default_factory=dict)


_opened: dict[str, tuple[Session, Any, Any]] = {}
"""Of this process: the session, image and store of the job it works at."""


def open_job(job: Job) -> tuple[Session, Any, Any]:
    """The session, image and store of a job, opened once in a process."""
    if job.key not in _opened:
        _opened.clear()
        session = open_session(job.model, job.provider, threads=job.threads, label="the model")
        _opened[job.key] = session, job.source.open(), job.store.open()
    return _opened[job.key]


def work(job: Job, place: Place) -> tuple[Place, float]:
    """Compute one tile and store it; the pixels that were read."""
    session, image, group = open_job(job)
    tile = job.geometry.tile(place, job.step)
    read = job.source.read(image, tile.crop)
    pixels = job.preparation.of(read)
    values = session.run({job.recipe.input: job.recipe.feed(pixels)}, list(job.recipe.strides))
    job.store.write(group, tile, job.recipe.cells(tile, values), hashed(read))
    return place, float(pixels[0].size)


def differing(job: Job, places: Sequence[Place]) -> Place | None:
    """The first of some tiles whose pixels are not those that it was computed from."""
    image, group = job.source.open(), job.store.open()
    for place in places:
        read = job.source.read(image, job.geometry.tile(place, job.step).crop)
        if not np.array_equal(hashed(read), job.store.seen(group, place)):
            return place
    return None


def first_differing(job: Job, places: Sequence[Place], client: Any) -> Place | None:
    """The same of all tiles, by the workers of a client: each pixel is read once more, and the model does not run.

    Raises:
        UsageError: the image or the store cannot be read.
    """
    kept = client.scatter(job, broadcast=True, hash=False) if isinstance(job.model, bytes) else job
    parts = [places[i : i + COMPARED] for i in range(0, len(places), COMPARED)]
    many = AHEAD * max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    for i in range(0, len(parts), many):
        futures = [client.submit(differing, kept, part, pure=False, retries=TRIES) for part in parts[i : i + many]]
        try:
            found: list[Place] = [place for place in client.gather(futures) if place is not None]
        except Exception as error:  # each library has errors of its own
            raise UsageError(f"what was done cannot be compared with the image: {_words(error)}") from None
        if found:
            return min(found)
    return None


def run(job: Job, places: Sequence[Place], client: Any, tell: Tell | None = None) -> Finished:
    """Run the tiles on the workers of a Dask client."""
    distributed = library("distributed")
    total, found, begin = len(places), Finished(), time.perf_counter()
    waiting = iter(places)
    # a path is short enough to go with every tile; bytes lie with the workers
    kept = client.scatter(job, broadcast=True, hash=False) if isinstance(job.model, bytes) else job
    tries: dict[Place, int] = {}
    running: dict[Any, Place] = {}
    stream = distributed.as_completed(loop=client.loop)

    def submit(place: Place) -> None:
        future = client.submit(work, kept, place, pure=False, retries=0)
        running[future] = place
        stream.add(future)

    def more(count: int) -> None:
        for _, place in zip(range(count), waiting, strict=False):
            submit(place)

    more(AHEAD * max(1, len(client.scheduler_info(n_workers=-1)["workers"])))
    for future in stream:
        place = running.pop(future)
        error = future.exception() if future.status != "finished" else None
        if error is None:
            found.tiles, found.pixels = found.tiles + 1, found.pixels + future.result()[1]
            more(1)
        else:
            tries[place] = tries.get(place, 0) + 1
            if tries[place] < TRIES and not isinstance(error, distributed.KilledWorker):
                submit(place)
            else:
                found.failed[place] = _words(error)
                more(1)
        if tell is not None:
            tell(found.tiles, total, found.pixels)
    found.seconds = time.perf_counter() - begin
    return found


def _words(error: BaseException) -> str:
    if type(error).__name__ == "KilledWorker":
        return (
            f"the worker died {TRIES} times over it; it may want more memory than {parameter('memory')} leaves for it"
        )
    return as_line(error)[:300] or type(error).__name__


@contextlib.contextmanager
def workers(
    count: int, provider: str, scheduler: str | None = None, memory: float | None = None, folder: str | None = None
) -> Iterator[Any]:
    """A client: of a cluster that is there, or of so many processes of this machine.

    Args:
        provider: for "cuda" and "tensorrt", each process sees one GPU. memory: bytes of a process, which is replaced
            where it takes half as much again.

    Raises:
        UsageError: the scheduler does not answer.
    """
    distributed, dask = library("distributed"), library("dask")
    settings = {
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.preload": [DEAF],
        "distributed.scheduler.allowed-failures": TRIES - 1,
        "distributed.admin.log-format": "%(message)s",
        "distributed.logging.distributed": "critical",
        "logging.distributed": "critical",
        "temporary-directory": folder,
    }
    with dask.config.set(settings), contextlib.ExitStack() as stack:
        _quiet()
        if scheduler is not None:
            try:
                client = stack.enter_context(distributed.Client(scheduler, timeout="10s", set_as_default=False))
            except (OSError, ValueError, TimeoutError) as error:
                raise UsageError(
                    f"no Dask scheduler answers at {scheduler}: {' '.join(str(error).split())[:150]}"
                ) from None
        else:
            cluster = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=count,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=None if memory is None else int(1.5 * memory),
                    dashboard_address=":0",
                    local_directory=folder,
                    silence_logs="CRITICAL",
                )
            )
            client = stack.enter_context(distributed.Client(cluster, set_as_default=False))
        if provider in ("cuda", "tensorrt"):
            _pin(client)
        yield client


def _quiet() -> None:
    """Dask's own log belongs to nobody here: what fails is told at the end."""
    import logging

    for name in ("distributed", "distributed.nanny", "distributed.scheduler", "distributed.worker", "distributed.core"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _pin(client: Any) -> None:
    """One GPU for each worker, in turn."""
    found = sorted(client.scheduler_info(n_workers=-1)["workers"])
    devices = gpus()
    for place, address in enumerate(found):
        client.run(_see, devices[place % len(devices)] if devices else "", workers=[address])


def _see(device: str) -> None:
    """Let this process see one GPU; it has not opened any yet."""
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device


def gpus() -> list[str]:
    """The numbers of the GPUs of this machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
        return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith("GPU")]
    return []
