"""Room for a verification: what it takes is estimated before any session is made.

    enough                  as it is
    a large fixed batch     in slices of the batch, where the structure shows that no image sees another
    short                   one session at a time
    not enough              a clear line, with what it takes and what there is

The estimate counts tensors by their shapes, each from the node that makes it to its last reader. ONNX Runtime may hold
more, or less; so a verification is turned down only where even one session alone would not fit.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from convrewrite.engine import memory
from convrewrite.engine.graph import Shape, infer_shapes
from convrewrite.engine.memory import gigabytes
from convrewrite.errors import ConvrewriteError, Interrupted, UsageError
from convrewrite.model_io import Model, load, save
from convrewrite.running.runtime import DeviceFailed, RunFailed, TensorInfo, one_line
from convrewrite.running.sampling import Images, fill
from convrewrite.text import Call, counted, parameter
from convrewrite.verification import slices
from convrewrite.verification.on_demand import on_demand
from convrewrite.verification.specimens import Data
from convrewrite.verification.verdicts import Verification

SESSIONS = 4
"""The original twice, the rewritten model, and its probed copy."""

SLACK = 1.5
"""What a session holds, as a multiple of the tensors that are needed at once, and of the weights."""

SLICED_ABOVE = 256e6
"""Bytes of the tensors of one run, from which on a batch is verified in slices though it might fit."""

SLICE = 12e6
"""Bytes of the tensors of one run of a slice."""

UNVERIFIED = f", or write unverified with {parameter('verify', False)}"
"""What a command offers that writes a model; one that only compares has no such option."""

MORE_MEMORY = f"use a machine with more memory{UNVERIFIED}"


@dataclass(frozen=True)
class Room:
    """How a verification runs.

    Attributes:
        a, b: paths of the models to compare; of temporary variants where the batch is sliced.
        batch: of open first axes. data: the user's, one image per entry where the batch is sliced.
        whole: the batch that is sliced; 0 where none is. given: the paths that variants stand for.
        check: raises DeviceFailed where images of a size would not fit.
    """

    a: str | Path
    b: str | Path
    batch: int | None
    data: Data | None
    whole: int = 0
    given: tuple[str, str] = ("", "")
    check: Callable[[Sequence[int]], None] = lambda size: None

    def named(self, found: Verification) -> Verification:
        """The result in the words of the models that were given."""
        if not self.whole:
            return found
        call = found.command
        if isinstance(call, Call):
            call = Call(call.name, self.given, {**call.given, "batch": None})
        note = f"the batch of {self.whole:,} was verified in slices of {self.batch}: no image of it sees another"
        failing = found.failing
        if failing is not None:
            inputs = {
                n: np.resize(a, (self.whole, *a.shape[1:]))
                for n, a in failing.inputs.items()
                if a.shape[:1] == (self.batch,)
            }
            failing = replace(failing, inputs={**failing.inputs, **inputs})
        return replace(found, command=call, warnings=(*found.warnings, note), failing=failing)


@dataclass(frozen=True)
class _Need:
    """The memory that one model needs at one batch: bytes of its weights and of the tensors of one run."""

    weights: float
    run: float


@contextlib.contextmanager
def room_for(
    a: str | Path,
    b: str | Path,
    *,
    size: Sequence[int] | None,
    batch: int | None,
    named: Mapping[str, Sequence[int]],
    data: Data | None,
) -> Iterator[Room]:
    """Make room for the verification of `b` against `a`; what is made for it is gone behind it.

    Args:
        a, b: paths. size: of open image axes, the first of several. batch: of open first axes.
        named: whole shapes by input name. data: the user's inputs.

    Raises:
        DeviceFailed: one session alone would not fit.
        UsageError: the constants of a model expand beyond all measure.
    """
    plain = Room(a, b, batch, data)
    models = [_loaded(path) for path in (a, b)]
    if any(model is None for model in models):
        yield plain  # whoever opens it says what is wrong
        return
    both = [model for model in models if model is not None]
    for model in both:
        memory.check_constants(model.graph, f"store their result in the model{UNVERIFIED}")
    at = _shapes(both[0], size, batch, named)
    needs = _needs(both, size, batch, named)
    free = memory.available()
    run = max(need.run for need in needs)
    if run * SLACK > SLICED_ABOVE or _all(needs) > free:
        with tempfile.TemporaryDirectory(prefix="convrewrite-") as folder:
            sliced = _sliced(both, at, run, plain, named=named, folder=Path(folder))
            if sliced is not None:
                with _own_words(sliced):
                    yield sliced
                return

    def check(extents: Sequence[int] | None) -> None:
        """Raise DeviceFailed where one session alone would not fit."""
        least = max(need.weights + need.run for need in _needs(both, extents, batch, named))
        left = memory.available()
        if least > left:
            words = "the models" if extents is None else f"images of {'x'.join(map(str, extents))}"
            raise DeviceFailed(
                f"not enough memory: {words} need about {gigabytes(least)} to be verified, "
                f"and {gigabytes(max(left, 0.0))} are available",
                remedy=MORE_MEMORY,
            )

    check(size)
    with on_demand(_all(needs) > free):
        yield replace(plain, check=check)


def _loaded(path: str | Path) -> Model | None:
    try:
        return load(path)
    except ConvrewriteError:
        return None


def _needs(
    models: Sequence[Model], size: Sequence[int] | None, batch: int | None, named: Mapping[str, Sequence[int]]
) -> list[_Need]:
    at = _shapes(models[0], size, batch, named)
    return [_need(model, at | _shapes(model, size, batch, named)) for model in models]


def _all(needs: Sequence[_Need]) -> float:
    """Bytes of all sessions at once."""
    original, rewritten = needs
    return SLACK * SESSIONS / 2 * (original.weights + original.run + rewritten.weights + rewritten.run)


def _shapes(
    model: Model, size: Sequence[int] | None, batch: int | None, named: Mapping[str, Sequence[int]]
) -> dict[str, Shape]:
    """The shapes of a model's inputs; those that do not follow are left out."""
    found: dict[str, Shape] = {}
    for tensor in model.graph.inputs:
        dims = tuple(dim if isinstance(dim, int) and dim > 0 else None for dim in tensor.shape or ())
        if tensor.name in named:
            found[tensor.name] = tuple(named[tensor.name])
            continue
        with contextlib.suppress(UsageError):
            found[tensor.name] = fill(TensorInfo(tensor.name, np.dtype(np.float32), dims, "?"), size, (), batch).shape
    return found


def _need(model: Model, at: Mapping[str, Shape]) -> _Need:
    graph = model.graph
    own: dict[str, Any] = {}
    for tensor in graph.inputs:
        dims = [dim if isinstance(dim, int) else None for dim in tensor.shape or ()]
        given = at.get(tensor.name, ())
        fits = len(given) == len(dims)
        own[tensor.name] = [d if d is not None else g for d, g in zip(dims, given, strict=True)] if fits else dims
    try:
        shapes = infer_shapes(graph, own)
    except (onnx.shape_inference.InferenceError, ValueError, TypeError):
        shapes = {}
    return _Need(memory.stored(graph), memory.peak(graph, memory.tensor_bytes(graph, shapes)))


def _sliced(
    models: Sequence[Model],
    at: Mapping[str, Shape],
    run: float,
    plain: Room,
    named: Mapping[str, Sequence[int]],
    folder: Path,
) -> Room | None:
    """The same verification in slices of the batch; None where that is not possible."""
    batches = {shape[0] for shape in at.values() if len(shape) > 1}
    whole = max(batches, default=1)
    if whole < 2 or named or isinstance(plain.data, Images) or any(model.has_external_data for model in models):
        return None
    part = max(2, min(int(whole * SLICE / run), whole // 2))
    if plain.data is not None:
        part = max(n for n in range(1, part + 1) if whole % n == 0)
    paths = []
    for name, model in zip(("original", "rewritten"), models, strict=True):
        own = {t.name: [*_batched(at.get(t.name, ()), t.shape or (), whole)] for t in model.graph.inputs}
        try:
            variant = slices.opened(model, infer_shapes(model.graph, own), whole)
            if variant is None:
                return None
            paths.append(save(variant, folder / f"{name}.onnx"))
        except (ConvrewriteError, onnx.shape_inference.InferenceError, ValueError, TypeError):
            return None
    data = None if plain.data is None else _images(plain.data, at, whole)
    return Room(paths[0], paths[1], part, data=data, whole=whole, given=(str(plain.a), str(plain.b)))


def _batched(known: Shape, shape: Sequence[Any], whole: int) -> Iterator[Any]:
    """The shape of an input with the whole batch; what else is open stays so."""
    for axis, dim in enumerate(shape):
        if isinstance(dim, int):
            yield dim
        else:
            yield whole if not axis and len(shape) > 1 else (known[axis] if axis < len(known) else dim)


def _images(data: Data, at: Mapping[str, Shape], whole: int) -> Data:
    """The user's arrays as rows of images. Raises UsageError where they are no whole number of batches."""
    assert not isinstance(data, Images)
    found = dict(data)
    for name, shape in at.items():
        if name not in found or len(shape) < 2 or shape[0] != whole:
            continue
        array = found[name]
        if array.ndim == len(shape) + 1 and array.shape[1] == whole:
            found[name] = array.reshape(-1, *array.shape[2:])
        elif array.ndim == len(shape) and len(array) % whole:
            raise UsageError(
                f"array '{name}' of the data holds {counted(len(array), 'sample')}, no multiple of the batch {whole}"
            )
    return found


@contextlib.contextmanager
def _own_words(sliced: Room) -> Iterator[None]:
    """Errors speak of the models that were given, not of their variants."""
    try:
        yield
    except ConvrewriteError as error:
        for variant, path in zip((sliced.a, sliced.b), sliced.given, strict=True):
            error.message = error.message.replace(str(variant), path)
            error.args = (error.message,)
        raise


def ended(error: BaseException, where: str) -> ConvrewriteError:
    """What ended a verification of which something is known already, with the sizes that ran."""
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(f"interrupted ({where})")
    if isinstance(error, RunFailed):
        return type(error)(f"{error.message} ({where})")
    return DeviceFailed(f"not enough memory: {one_line(error) or 'none is left'} ({where})")
