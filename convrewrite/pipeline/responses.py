"""What the layers of a model see and give on real inputs: moments of activations, collected in bounded memory.

    the original, as it is        ... ── Conv ── BN ── y       y: the response that is wanted
    the graph, rewritten so far   ... ── x~ ── Conv ...        x~: what the convolution will really see

For every sample both are run up to that layer, some places of its output are drawn at random (the same in both), and
the patches of x~ that these cells look at are added to the moments. A layer sees the errors of those before it.
A linear layer looks at one vector for each place; a cell that a ConvTranspose gives looks at the cells that reach it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite import model_io
from convrewrite.engine.layers import Sliding, Spreading
from convrewrite.model_io import Model
from convrewrite.passes.separable.refine import Moments
from convrewrite.passes.separable.site import LayerSite
from convrewrite.pipeline.native import Native
from convrewrite.running.runtime import Session, TensorInfo, open_session
from convrewrite.running.sampling import Feeds, InputSpec, cut_data
from convrewrite.system import atomic

Array = np.ndarray[Any, Any]

PATCHES = 32768
"""Places that a layer's moments are taken from, over all samples, at most ..."""
PER_ENTRY = 8
"""... and so many per entry of a patch, where that is more."""
LARGEST = 1 << 27
"""Numbers in the second moments of a layer (1 GiB); beyond it, its factors are not fitted."""
CHUNK = 1 << 23
"""Numbers of patches that are held at a time."""


@dataclass(frozen=True)
class Collected:
    """Activations of a model on real inputs; what `Separable.responses` takes."""

    model: Model
    samples: tuple[Feeds, ...]
    provider: str
    seed: int

    @classmethod
    def read(cls, model: Model, data: Mapping[str, Array], at: Native, provider: str, seed: int) -> Collected:
        """Cut the user's data into the model's inputs. Raises UsageError where it does not fit."""
        specs = [
            InputSpec(t.name, np.dtype(t.dtype), at.inputs[t.name]) for t in model.graph.inputs if t.name in at.inputs
        ]
        return cls(model, tuple(sample.feeds for sample in cut_data(data, specs)), provider, seed)

    def __call__(self, graph: gs.Graph, site: LayerSite) -> Moments | None:
        """Moments of one layer of the graph; `graph` is the model, rewritten so far."""
        node = next(node for node in graph.nodes if node.outputs and node.outputs[0].name == site.anchor)
        size = site.weight[0].size
        if site.group * size * size > LARGEST:
            return None
        wanted = max(PATCHES, PER_ENTRY * size)
        rng = np.random.default_rng(self.seed)
        sums = _Sums(site)
        data = node.inputs[site.data].name
        pairs = zip(self._values(graph, data), self._values(self.model.graph, site.target), strict=True)
        for seen, given in pairs:
            cells = given.size // site.channels[0]
            share = min(cells, -(-wanted // len(self.samples)))
            chosen = np.sort(rng.choice(cells, share, replace=False)) if share < cells else np.arange(cells)
            step = max(1, CHUNK // (size * site.group))
            for start in range(0, share, step):
                sums.add(*_places(seen, given, site, chosen[start : start + step]))
        return sums.moments()

    def _values(self, graph: gs.Graph, name: str) -> Iterator[Array]:
        """A tensor of a graph on every sample."""
        if name in self.samples[0]:
            yield from (feeds[name] for feeds in self.samples)
            return
        part = graph.copy()
        tensor = part.tensors()[name]
        tensor.shape = None
        part.outputs = [tensor]
        part.cleanup(remove_unused_graph_inputs=False)
        with atomic.scratch() as folder:
            path = model_io.save(replace(self.model, graph=part), Path(folder) / "part.onnx")
            session: Session = open_session(path, self.provider)
            taken: Sequence[TensorInfo] = session.inputs
            for feeds in self.samples:
                yield session.run({info.name: feeds[info.name] for info in taken})[name]


def _places(seen: Array, given: Array, site: LayerSite, chosen: Array) -> tuple[Array, Array]:
    """Patches [g, p, D] of the input at some cells of the output, and the response there, [p, O]."""
    if site.layer is not None:
        vectors = np.moveaxis(seen, site.layer.axis, -1).reshape(-1, site.channels[1])
        results = np.moveaxis(given, site.layer.output_axis, -1).reshape(-1, site.channels[0])
        return vectors[chosen][None].astype(np.float64), results[chosen].astype(np.float64)
    batch, channels, *_ = seen.shape
    sample, *cell = np.unravel_index(chosen, (batch, *given.shape[2:]))
    taps = np.indices(site.kernel).reshape(len(site.kernel), -1)
    padded, where = _reached(seen, site, cell, taps) if site.transposed else _looked_at(seen, site, cell, taps)
    seen_there: tuple[Any, ...] = (sample[:, None], slice(None), *where)
    given_there: tuple[Any, ...] = (sample, slice(None), *cell)
    patches = padded[seen_there]  # [p, taps, channels]: the slice goes last
    grouped = patches.reshape(len(chosen), taps.shape[1], site.group, channels // site.group)
    wide = grouped.transpose(2, 0, 3, 1).reshape(site.group, len(chosen), -1).astype(np.float64)
    return wide, given[given_there].astype(np.float64)


def _looked_at(seen: Array, site: LayerSite, cell: Sequence[Array], taps: Array) -> tuple[Array, list[Array]]:
    """The padded input, and where in it each tap [T] of a Conv looks from each cell [p]: indices [p, T] by axis."""
    geometry = Sliding.read(site.attrs, site.kernel, seen.shape[2:])
    pads = [(0, 0), (0, 0), *zip(geometry.begin, geometry.end, strict=True)]
    where = [
        at[:, None] * stride + tap[None, :] * dilation
        for at, stride, tap, dilation in zip(cell, geometry.strides, taps, geometry.dilations, strict=True)
    ]
    return np.pad(seen, pads), where


def _reached(seen: Array, site: LayerSite, cell: Sequence[Array], taps: Array) -> tuple[Array, list[Array]]:
    """The input with a cell of zeros behind it, and from where in it a ConvTranspose reaches each cell by each tap."""
    geometry = Spreading.read(site.attrs, site.kernel, seen.shape[2:])
    where = []
    for axis, size in enumerate(seen.shape[2:]):
        far = cell[axis][:, None] + geometry.begin[axis] - taps[axis][None, :] * geometry.dilations[axis]
        at, beside = np.divmod(far, geometry.strides[axis])
        where.append(np.where((beside == 0) & (at >= 0) & (at < size), at, size))
    return np.pad(seen, [(0, 0), (0, 0), *[(0, 1)] * len(where)]), where


class _Sums:
    """Sums over patches x and responses y: what moments are made of."""

    def __init__(self, site: LayerSite) -> None:
        out, entries = site.weight.shape[0], site.weight[0].size
        self.site, self.count = site, 0
        self.x = np.zeros((site.group, entries))
        self.y = np.zeros(out)
        self.xx = np.zeros((site.group, entries, entries))
        self.yx = np.zeros((site.group, out // site.group, entries))
        self.yy = 0.0

    def add(self, patches: Array, responses: Array) -> None:
        """Add patches [g, p, D] and responses [p, O]; the layer's own bias is taken off them."""
        if self.site.bias is not None:
            responses = responses - self.site.bias
        grouped = responses.reshape(len(responses), self.site.group, -1).transpose(1, 2, 0)
        self.count += len(responses)
        self.x += patches.sum(axis=1)
        self.y += responses.sum(axis=0)
        self.xx += patches.swapaxes(1, 2) @ patches
        self.yx += grouped @ patches
        self.yy += float(np.vdot(responses, responses))

    def moments(self) -> Moments:
        """The centred second moments, divided by the number of patches."""
        group = self.site.group
        x, y = self.x / self.count, self.y / self.count
        second = self.xx / self.count - x[:, :, None] * x[:, None, :]
        cross = self.yx / self.count - y.reshape(group, -1)[:, :, None] * x[:, None, :]
        return Moments(
            second=second,
            cross=cross.reshape(len(y), -1),
            response=max(self.yy / self.count - float(y @ y), 0.0),
            input_mean=x,
            response_mean=y,
        )
