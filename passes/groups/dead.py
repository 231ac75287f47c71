"""Channels that nothing reads, and channels that are constant: left out where they are made and where they are read.

    conv A ── Relu ── conv B            A makes channel 3, but the kernels of B for it are zero:  row 3 of A and
                                        column 3 of B go
    conv A ── Relu ── conv B            row 5 of A is zero, so channel 5 is max(bias, 0) = c in every cell:  row 5 of A
                                        and column 5 of B go, and the bias of B grows by c times the sum of each kernel

A channel may go if every convolution or Gemm that reads it has zeros for it, or reads a known constant there and sees
no padding: at the border the padding's zeros stand in for some of the constants, so the sum is another one. There only
the constant 0 may go. All layers of a space of channels lose the channel together: through a residual Add it must be
dead, or unread, in all branches. A layer that no longer makes a channel may have been the only one to read another, in
front of it: that goes too, and so on towards the input.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.convsite import ConvSite, read_site
from convrewrite.engine.layers import LinearLayer
from convrewrite.passes.groups.absorb import Take, perform, takes
from convrewrite.passes.groups.detection import Array, kernel_norms
from convrewrite.passes.groups.neighbours import find_space
from convrewrite.passes.groups.network import Network
from convrewrite.passes.groups.spaces import Edit, Space, Stop
from convrewrite.passes.groups.steady import Steady, sees_zeros, steady_channels
from convrewrite.passes.groups.weights import Workshop, node_of


@dataclass(frozen=True)
class Shift:
    """What the bias of the node that gives `anchor` grows by, after everything is taken."""

    anchor: str
    amount: Array


@dataclass(frozen=True)
class Trim:
    """Channels left out.

    Attributes:
        takes: what is left of each constant. shifts: constants that go into a bias. tensors: that lose channels.
        inputs, outputs: how many channels the convolution itself loses.
    """

    takes: tuple[Take, ...]
    shifts: tuple[Shift, ...]
    tensors: tuple[str, ...]
    inputs: int
    outputs: int

    def __str__(self) -> str:
        counts = (f"{count} {kind}" for count, kind in ((self.inputs, "input"), (self.outputs, "output")) if count)
        return f"without {' and '.join(counts)} channels"


@dataclass(frozen=True)
class Trims:
    """Channels left out around a convolution, and then in front of it, one layer after the other.

    Attributes:
        steps: in order. graph: a copy, without them.
    """

    steps: tuple[Trim, ...]
    graph: gs.Graph

    def __str__(self) -> str:
        further = sum(step.inputs for step in self.steps[1:])
        return f"{self.steps[0]}{f' and {further} in front of them' if further else ''}"

    @property
    def convolutions(self) -> set[str]:
        """Outputs of the convolutions that read or give fewer channels."""
        nodes = {t.name: node for node in self.graph.nodes for t in node.outputs}
        return {t.anchor for step in self.steps for t in step.takes if t.input == 1 and nodes[t.anchor].op == "Conv"}

    def shifts(self, anchor: str) -> int:
        """Entries of what the bias of one node grows by."""
        return max((len(s.amount) for step in self.steps for s in step.shifts if s.anchor == anchor), default=0)


def find_trims(graph: gs.Graph, site: ConvSite, norms: Array) -> Trims | Stop | None:
    """What can be left out around a convolution; or why its dead channels stay; None where it has none."""
    net = Network(graph)
    first = find_trim(net, site, norms)
    if not isinstance(first, Trim):
        return first
    left, steps = graph.copy(), [first]
    trim(left, first)
    todo = _fewer_rows(net, first)
    while todo:
        anchor = todo.pop(0)
        reader = read_site(left, node_of(left, anchor), "groups")
        kernels = kernel_norms(reader.weight) if isinstance(reader, ConvSite) and reader.group == 1 else np.ones((1, 1))
        if isinstance(reader, ConvSite) and not kernels.any(0).all():
            net = Network(left)
            step = find_trim(net, reader, kernels, outputs=False)
            if isinstance(step, Trim):
                trim(left, step)
                steps.append(step)
                todo += _fewer_rows(net, step)
    return Trims(tuple(steps), left)


def _fewer_rows(net: Network, step: Trim) -> list[str]:
    """Convolutions that give fewer channels, so that they may read fewer as well."""
    return [t.anchor for t in step.takes if net.node(t.anchor).op == "Conv" and t.input == 1 and _takes_rows(net, t)]


def find_trim(net: Network, site: ConvSite, norms: Array, outputs: bool = True) -> Trim | Stop | None:
    """One step; `outputs`: whether dead output channels are looked at too."""
    dead = np.flatnonzero(~norms.any(0)), np.flatnonzero(~norms.any(1))[: None if outputs else 0]
    out, inputs = site.channels
    changes: list[tuple[Space, Array]] = []
    shifts: dict[str, Array] = {}
    stop: Stop | None = None
    lost = [0, 0]
    for side, (tensor, size) in enumerate(((site.data, inputs), (site.anchor, out))):
        if not len(dead[side]) or any(tensor in space.members for space, _ in changes):
            continue
        space = find_space(net, tensor, size, "")
        found = _removable(net, space, dead[side])
        if isinstance(found, Stop):
            stop = stop or found
            continue
        gone, amounts = found
        if changes and any(name in changes[0][0].members for name in space.members):
            continue  # both sides have a tensor in common, but not these two: one after the other
        changes.append((space, np.setdiff1d(np.arange(size), gone)))
        for anchor, amount in amounts.items():
            shifts[anchor] = shifts.get(anchor, 0.0) + amount
        for place, name in enumerate((site.data, site.anchor)):
            for own in space.members.get(name, ()):
                lost[place] += int(((gone >= own.start) & (gone < own.start + own.size)).sum())
    if not changes:
        return stop
    made = takes(net, changes)
    rows = {take.anchor: take.index for take in made if take.input == 1 and _takes_rows(net, take)}
    moved = tuple(Shift(a, amount[rows[a]] if a in rows else amount) for a, amount in shifts.items() if amount.any())
    tensors = tuple(dict.fromkeys(name for space, _ in changes for name in space.members))
    return Trim(made, moved, tensors, inputs=lost[0], outputs=lost[1])


def trim(graph: gs.Graph, plan: Trim) -> None:
    """Remove the dead channels."""
    perform(graph, plan.takes)
    tensors = graph.tensors()
    for name in plan.tensors:
        tensors[name].shape = None
    shop = Workshop(graph)
    for shift in plan.shifts:
        node = node_of(graph, shift.anchor)
        label = node.name or shift.anchor
        has_bias = len(node.inputs) > 2 and bool(node.inputs[2].name)
        old = shop.constants.value(node.inputs[2]) if has_bias else None
        weight = shop.constants.value(node.inputs[1])
        assert weight is not None, "the plan has made sure that the weight is constant"
        total = shift.amount if old is None else old.astype(np.float64) + shift.amount
        bias = shop.constant(f"{label}/groups/bias", total.astype(weight.dtype if old is None else old.dtype))
        if len(node.inputs) > 2:
            node.inputs[2] = bias
        else:
            node.inputs.append(bias)


def _takes_rows(net: Network, take: Take) -> bool:
    node = net.node(take.anchor)
    if node.op == "Gemm":
        return take.axis == (0 if LinearLayer.from_node(node, weight=1).rows_are_outputs else 1)
    return take.axis == (1 if node.op in ("ConvTranspose", "MatMul") else 0)


def _removable(net: Network, space: Space, wanted: Array) -> tuple[Array, dict[str, Array]] | Stop:
    """Which of the wanted channels can go, and what that adds to the biases by the names of nodes' outputs."""
    if space.rigid:
        first = space.rigid[0]
        return Stop("groups/dead-kept", first.detail)
    steady = steady_channels(net, space)
    allowed = np.zeros(space.size, bool)
    allowed[wanted] = True
    padded = np.zeros(space.size, bool)
    reading: list[_Reading] = []
    for edit in space.edits:
        if edit.columns:
            read = _reading(net, edit, space.size, steady.get(net.node(edit.anchor).inputs[0].name))
            reading.append(read)
            padded |= read.known & ~read.free & read.padded
            allowed &= read.free
    for ranges in space.members.values():
        if len(ranges) == 1 and allowed[ranges[0].start : ranges[0].start + ranges[0].size].all():
            allowed[ranges[0].start] = False  # something has to be left
    gone = np.flatnonzero(allowed)
    if not len(gone):
        if padded[wanted].any():
            where = next(read.label for read in reading if read.padded and (read.known & ~read.free).any())
            return Stop("groups/dead-in-padding", where)
        return Stop("groups/dead-kept", "something reads them: they are not constant, or all that there is")
    amounts: dict[str, Array] = {}
    for read in reading:
        amounts[read.anchor] = amounts.get(read.anchor, 0.0) + read.response[:, gone].sum(1)
    return gone, amounts


@dataclass(frozen=True)
class _Reading:
    """How one layer reads the channels of a space.

    Attributes:
        known: which it reads as constants. free: which it can do without, once its bias is shifted.
        response: [O, channels], what each constant adds to each of its outputs. padded: whether it sees padding.
    """

    anchor: str
    label: str
    known: Array
    free: Array
    response: Array
    padded: bool


def _reading(net: Network, edit: Edit, size: int, data: Steady | None) -> _Reading:
    node = net.node(edit.anchor)
    weight = net.value(node.inputs[1])
    assert weight is not None, "columns are noted of constant weights alone"
    columns = np.moveaxis(weight.astype(np.float64), edit.axis, 0)  # [columns, O, *kernel] or [columns, O]
    columns = columns[edit.range.at : edit.range.end]
    sums = columns.reshape(*columns.shape[:2], -1).sum(2)
    unread = ~columns.reshape(len(columns), -1).any(1)
    known, values = np.zeros(len(columns), bool), np.zeros(len(columns))
    if data is not None:
        known = data.known[edit.range.at : edit.range.end]
        values = np.where(known, data.values[edit.range.at : edit.range.end].astype(np.float64), 0.0)
    padded = node.op == "ConvTranspose" or (node.op == "Conv" and sees_zeros(node, tuple(weight.shape[2:])))
    scale = 1.0
    foldable = not padded and node.op != "MatMul"
    if node.op == "Gemm":
        foldable, scale = _gemm_scale(net, node)
    free = unread | (known & ((values == 0) | foldable))
    channel = edit.range.start + np.arange(len(columns)) // edit.range.repeat
    every = np.ones(size, bool)
    np.logical_and.at(every, channel, free)
    constant = np.ones(size, bool)
    np.logical_and.at(constant, channel, known)
    response = np.zeros((sums.shape[1], size))
    np.add.at(response.T, channel, scale * values[:, None] * sums)
    outside = np.ones(size, bool)
    outside[channel] = False
    return _Reading(
        edit.anchor, net.label(node), constant & ~outside, free=every | outside, response=response, padded=padded
    )


def _gemm_scale(net: Network, node: gs.Node) -> tuple[bool, float]:
    """Whether a Gemm has a bias vector or none, and what its bias grows by for each unit of its product."""
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return beta == 1.0, alpha
    shape, weight = net.shape(node.inputs[2]), net.shape(node.inputs[1])
    out = None if weight is None else weight[0 if LinearLayer.from_node(node, weight=1).rows_are_outputs else 1]
    full = shape is not None and len(shape) > 0 and shape[-1] == out
    return bool(full and beta != 0.0), alpha / (beta or 1.0)
