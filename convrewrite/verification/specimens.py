"""A model under test: its plain file for the outputs, and a probed copy for what lies ahead of a final Softmax.

The outputs of a rewritten model come from the very file that will be published. Tensors ahead of a final Softmax come
from a second session on a copy (see `exposure`). Of the original, the reference, one probed session gives both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from convrewrite.errors import UsageError, said
from convrewrite.running.runtime import Session, TensorInfo, open_session
from convrewrite.running.sampling import Images
from convrewrite.verification import exposure
from convrewrite.verification.exposure import Probe
from convrewrite.verification.on_demand import opened
from convrewrite.verification.precision import roundings
from convrewrite.verification.ranges import integer_limits
from convrewrite.verification.shaking import shaken
from convrewrite.verification.surrogate import dithered
from convrewrite.verification.values import Flattened, all_tensors

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are."""

Data = Mapping[str, Array] | Images
"""The user's inputs: arrays by input name, or a folder of images."""

Tolerance = float | Mapping[str, float] | None
"""The user's: for every output, or by output ("" for all others); None for the default."""


class Runner(Protocol):
    """What runs a model: a `Session`, or another implementation of ONNX."""

    @property
    def provider(self) -> str: ...
    @property
    def inputs(self) -> tuple[TensorInfo, ...]: ...
    @property
    def outputs(self) -> tuple[TensorInfo, ...]: ...
    @property
    def nodes(self) -> dict[str, int]: ...
    @property
    def warning(self) -> str: ...
    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]: ...


@dataclass(frozen=True)
class Specimen:
    """One model, ready to run.

    Attributes:
        path: of the model. outputs: of the model itself, without probes.
        probes: tensors ahead of final operators that `run` gives as well. unprobed: why there are none, if so.
        moving: outputs that depend on an input's values.
        below: numbers that the values of integer inputs stay below, where the graph says so.
        optimized: whether its sessions run with graph optimizations. rounds: whether its activations become integers.
        steps: by which outputs stored in integers differ.
        variant: what was done to its model. twins, coarse: whether the other may be of other precision, its spacing.
        proven: whether the original of two models that round was shown to be equal without the rounding.
        units: in the last place, of outputs and probes that a narrower type than their own led to.
    """

    path: str
    outputs: tuple[str, ...]
    probes: tuple[Probe, ...]
    unprobed: str
    moving: frozenset[str]
    _plain: Runner | None
    _probed: Runner | None
    below: Mapping[str, int] = field(default_factory=dict)
    optimized: bool = True
    rounds: bool = False
    steps: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, float] = field(default_factory=dict)
    variant: Callable[[onnx.ModelProto], None] | None = None
    proven: bool = False
    twins: bool = False
    coarse: float = 0.0

    def read(self) -> exposure.Sketch:
        """The model without its weights, as it was opened but for the probes."""
        return exposure.read_variant(self.path, self.variant)

    @property
    def session(self) -> Runner:
        """Some session of the model: its inputs and outputs are described there."""
        session = self._plain or self._probed
        assert session is not None
        return session

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs and all probes; inputs are cast to the model's types."""
        types = {info.name: info.dtype for info in self.session.inputs}
        feeds = {name: array.astype(types.get(name, array.dtype), copy=False) for name, array in feeds.items()}
        if self._plain is None:
            return self.session.run(feeds)
        values = self._plain.run(feeds)
        if self._probed is not None:
            values |= self._probed.run(feeds, [probe.name for probe in self.probes])
        return values


def open_specimen(
    path: str | Path,
    provider: str = "cpu",
    *,
    usual: bool = True,
    reference: bool = False,
    variant: Callable[[onnx.ModelProto], None] | None = None,
) -> Specimen:
    """Open a model and its probed copy; a `reference` runs as one session where it has probes, as does a `variant`.

    (Two where it has local functions: the copy has them inlined, and the outputs are to be the file's own.)
    With `usual`, graph optimizations are on, or off for a model that holds integers; without, the other way round.
    Where the probed copy cannot be opened, the model goes without, and `unprobed` says why.
    """
    path = str(path)
    sketch = exposure.read_variant(path, variant)
    rounds = exposure.rounds_inside(sketch.model)
    optimize = usual != exposure.holds_integers(sketch.model)
    moving = frozenset(exposure.moving_outputs(sketch.model))
    below, steps = integer_limits(sketch.model), exposure.last_steps(sketch.model)
    probes = exposure.add_probes(sketch.model)
    units = roundings(sketch.model)
    probed: Runner | None = None
    unprobed = ""
    if probes:
        try:
            make = functools.partial(session_of, sketch, sketch.model, path, provider, optimize=optimize)
            probed = opened(make)
        except (UsageError, ValueError) as error:  # ValueError: over the 2 GB of one protobuf message
            probes, unprobed = (), f"its probed copy does not load: {said(error)}"
    plain: Runner | None = None
    if probed is None and variant is not None:
        make = functools.partial(
            session_of, exposure.read_variant(path, variant), sketch.model, path, provider, optimize=optimize
        )
        probed = opened(make)
    elif probed is None or not reference or (sketch.inlined and variant is None):
        plain = opened(lambda: all_tensors(open_session(path, provider, optimize)))
    described = probed if plain is None else plain
    assert described is not None
    added = {probe.name for probe in probes}
    outputs = tuple(info.name for info in described.outputs if info.name not in added)
    return Specimen(
        path=path,
        outputs=outputs,
        probes=probes,
        unprobed=unprobed,
        moving=moving,
        _plain=plain,
        _probed=probed,
        below=below,
        optimized=optimize,
        rounds=rounds,
        steps=steps,
        units=units,
        variant=variant,
    )


def open_shaken(specimen: Specimen) -> Specimen:
    """The same model and probes, with every number changed a little (see `shaking`). Raises UsageError, ValueError."""
    sketch = specimen.read()
    probes = exposure.add_probes(sketch.model) if specimen.probes else ()
    if specimen.rounds:
        dithered(sketch.model)
    shaken(sketch.model, specimen.coarse / 8 or None)  # half a spacing: one operator rounds once
    provider = specimen.session.provider
    session = session_of(sketch, sketch.model, specimen.path, provider, optimize=False)
    return replace(specimen, probes=probes, optimized=False, _plain=None, _probed=session)


def session_of(
    sketch: exposure.Sketch, variant: onnx.ModelProto, path: str, provider: str, *, optimize: bool | None = None
) -> Session | Flattened:
    """A session on a temporary variant of the model at `path`; its external data is read where it lies."""
    folder = Path(path).resolve().parent if exposure.has_external_data(variant) else None
    content = sketch.serialize(variant)
    if optimize is None:
        optimize = not exposure.holds_integers(sketch.model)
    return all_tensors(open_session(content, provider, optimize, label=f"a variant of {path}", data_folder=folder))
