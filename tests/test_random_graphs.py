"""Random small nets against ONNX Runtime without optimizations: `windows` on every crop, else trunk and head.

Weights, inputs and statistics are small integers, so most nets compute exact sums and are compared bit for bit; where
an operator rounds (Softmax, a mean of three cells) a tolerance is used. A net that was drawn without padding must be
claimed as `windows`; whatever is claimed must hold.

A failure prints the net, node by node, and a blob that draws it again. `CONVREWRITE_EXAMPLES=5000` draws others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, event, given, note, reject, settings
from hypothesis import strategies as st
from onnx import helper

import oracles
from convrewrite.passes.fcn import Fcn
from convrewrite.rewrite import Site
from helpers import Array, Feeds, Net, run

EXAMPLES = int(os.environ.get("CONVREWRITE_EXAMPLES", "0"))
BOUND = 3
ROUNDING = 1e-4
BATCH = 2

SETTINGS = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

Draw = Callable[..., Any]


@dataclass(frozen=True)
class Tensor:
    """A tensor of the net under construction: its name, shape, and in units of 2**-bits a bound of its entries."""

    name: str
    shape: tuple[int, ...]
    bound: float
    bits: int = 0


@dataclass(frozen=True)
class RandomNet:
    """A drawn net. `clean`: no operator was drawn that could break the window property."""

    model: onnx.ModelProto
    axes: str
    native: tuple[int, ...]
    exact: bool
    clean: bool
    window: tuple[int, ...] | None
    seed: int

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def __repr__(self) -> str:
        graph = self.model.graph
        shapes = {t.name: list(t.dims) for t in graph.initializer}
        lines = [f"opset {self.model.opset_import[0].version}, x {self.axes} {self.native}, seed {self.seed}"]
        for node in graph.node:
            attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            inputs = [f"{name} {shapes[name]}" if name in shapes else name for name in node.input]
            lines.append(f"  {', '.join(node.output)} = {node.op_type}({', '.join(inputs)}) {attrs or ''}")
        lines.append(f"  outputs {[o.name for o in graph.output]}")
        return "\n".join(lines)


class Builder:
    """Draws a net operator by operator; shapes and bounds are its own, not those of the code under test."""

    def __init__(self, draw: Draw, rank: int, padded: bool):
        self.draw, self.rank, self.padded = draw, rank, padded
        self.opset = draw(st.integers(7, 23))
        self.seed = draw(st.integers(0, 2**16))
        self.net = Net(opset=self.opset, seed=self.seed)
        self.exact = self.clean = True
        self.baked = False
        self.vectors: list[str] = []
        self.outputs: list[str] = []

    # Helpers --------------------------------------------------------------------------------------------------------

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def maybe(self) -> bool:
        return bool(self.draw(st.booleans()))

    def per_axis(self, low: int, high: int) -> list[int]:
        return [self.draw(st.integers(low, high)) for _ in range(self.rank)]

    def values(self, *shape: int, low: int = -2, high: int = 2) -> Array:
        """Integers, half of them 0, so that sums stay small."""
        mask = self.net.rng.integers(0, 2, shape)
        return (mask * self.net.rng.integers(low, high + 1, shape)).astype(np.float32)

    def const(self, values: Array) -> str:
        """A constant as an initializer or in one of its disguises."""
        form = self.draw(st.integers(0, 9))
        if form == 1:
            return str(self.net.Constant(value=onnx.numpy_helper.from_array(values)))
        if form == 2 and values.ndim > 1:
            return str(self.net.Transpose(self.net.const(np.ascontiguousarray(values.T))))
        if form == 3:
            return str(self.net.Reshape(self.net.const(values.reshape(-1)), self.net.const(list(values.shape))))
        if form == 4:
            return str(self.net.Identity(self.net.const(values)))
        return self.net.const(values)

    def inexact(self) -> None:
        self.exact = False

    def unclean(self) -> None:
        self.clean = False

    def tensor(self, name: Any, shape: Sequence[int], bound: float, bits: int = 0) -> Tensor:
        if bound >= 2.0**23:
            self.inexact()
        return Tensor(str(name), tuple(shape), bound, bits)

    def like(self, name: Any, x: Tensor, bound: float | None = None) -> Tensor:
        return self.tensor(name, x.shape, x.bound if bound is None else bound, x.bits)

    # Trunk ----------------------------------------------------------------------------------------------------------

    def geometry(self, x: Tensor, most: int, *, same: bool = False) -> tuple[dict[str, Any], list[int], list[int]] | None:
        """Attributes of a sliding operator with its kernel and output extents; None where it does not fit."""
        size = x.shape[2:]
        kernel = self.per_axis(1, most)
        strides = [1] * self.rank if same else self.per_axis(1, 2)
        dilations = self.per_axis(1, 2) if self.opset >= 11 and self.draw(st.integers(0, 3)) == 0 else [1] * self.rank
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        attrs: dict[str, Any] = {"kernel_shape": kernel}
        if same or self.maybe():
            attrs["strides"] = strides
        else:
            strides = [1] * self.rank
        if any(d > 1 for d in dilations):
            attrs["dilations"] = dilations
        if same:
            begin = [(r - 1) // 2 for r in reach]
            end = [r - 1 - b for r, b in zip(reach, begin, strict=True)]
            if not self.padded and any(begin + end):
                return None
            attrs["pads"] = begin + end
        elif not self.padded:
            begin = end = [0] * self.rank
            if self.maybe():
                attrs.update(self.pick({"auto_pad": "VALID"}, {"pads": [0] * (2 * self.rank)}))
        else:
            form = self.pick("none", "pads", "pads", "SAME_UPPER", "SAME_LOWER")
            begin, end = [0] * self.rank, [0] * self.rank
            if form == "pads":
                begin = [self.draw(st.integers(0, k // 2)) for k in kernel]
                end = [self.draw(st.integers(0, k // 2)) for k in kernel]
                attrs["pads"] = begin + end
            elif form != "none" and all(d == 1 for d in dilations):
                attrs["auto_pad"] = form
                totals = [max((math.ceil(n / s) - 1) * s + r - n, 0) for n, s, r in zip(size, strides, reach, strict=True)]
                begin = [t // 2 for t in totals]
                end = [t - b for t, b in zip(totals, begin, strict=True)]
        room = [n + b + e - r for n, b, e, r in zip(size, begin, end, reach, strict=True)]
        if min(room) < 0:
            return None
        if any(begin + end):
            self.unclean()
        return attrs, kernel, [r // s + 1 for r, s in zip(room, strides, strict=True)]

    def conv(self, x: Tensor, *, outputs: int | None = None, same: bool = False, one: bool = False) -> Tensor:
        found = self.geometry(x, 1 if one else 3, same=same or one)
        if found is None:
            return x if outputs is None else self.conv(x, outputs=outputs, one=True)
        attrs, kernel, size = found
        channels = x.shape[1]
        group = self.pick(*(g for g in range(1, channels + 1) if channels % g == 0))
        out = outputs or group * self.draw(st.integers(1, 2))
        if out % group:
            group = 1
        weight = self.values(out, channels // group, *kernel)
        bias = self.values(out) if self.maybe() else None
        if group > 1:
            attrs["group"] = group
        if not any(attrs.get("pads", [])) and self.maybe():
            del attrs["kernel_shape"]
        inputs = [x.name, self.const(weight)] + ([self.const(bias)] if bias is not None else [])
        bound = x.bound * float(np.abs(weight).reshape(out, -1).sum(1).max()) + BOUND * 2.0**x.bits
        return self.tensor(self.net.Conv(*inputs, **attrs), (x.shape[0], out, *size), bound, x.bits)

    def pool(self, x: Tensor) -> Tensor:
        op = self.pick("MaxPool", "AveragePool", "MaxPool", "AveragePool", "LpPool")
        found = self.geometry(x, 3)
        if found is None:
            return x
        attrs, kernel, size = found
        if op != "MaxPool" or self.opset < 10:
            attrs_dilated = attrs.pop("dilations", None)
            if attrs_dilated:
                return x if self.clean else self.unfit(x)
        pads = any(attrs.get("pads", [])) or "SAME" in attrs.get("auto_pad", "")
        bits = 0
        if op == "AveragePool":
            if self.maybe() and self.opset >= 7:
                attrs["count_include_pad"] = self.draw(st.integers(0, 1))
            area = math.prod(kernel)
            if area & (area - 1) or (pads and not attrs.get("count_include_pad")):
                self.inexact()
            bits = int(math.log2(area)) if not area & (area - 1) else 0
        elif op == "LpPool":
            attrs["p"] = self.pick(1, 2)
            self.inexact()
        if op != "LpPool" and self.opset >= 10 and self.draw(st.integers(0, 3)) == 0 and "auto_pad" not in attrs:
            return self.ceiled(x, op, attrs, kernel)
        bound = x.bound * (math.prod(kernel) if op == "AveragePool" else 1)
        return self.tensor(self.net.node(op, x.name, **attrs), (*x.shape[:2], *size), bound, x.bits + bits)

    def unfit(self, x: Tensor) -> Tensor:
        return x

    def ceiled(self, x: Tensor, op: str, attrs: dict[str, Any], kernel: Sequence[int]) -> Tensor:
        """The same pool with ceil_mode, its output counted by the rule that the last window starts in the map."""
        strides = attrs.get("strides", [1] * self.rank)
        dilations = attrs.get("dilations", [1] * self.rank)
        pads = attrs.get("pads", [0] * (2 * self.rank))
        size: list[int] = []
        for axis, extent in enumerate(x.shape[2:]):
            begin, end = pads[axis], pads[axis + self.rank]
            room = extent + begin + end - (kernel[axis] - 1) * dilations[axis] - 1
            count = -(-room // strides[axis]) + 1
            count -= (count - 1) * strides[axis] >= extent + begin
            size.append(count)
            if room % strides[axis]:
                self.unclean()
                if op == "AveragePool":
                    self.inexact()
        bound = x.bound * (math.prod(kernel) if op == "AveragePool" else 1)
        bits = int(math.log2(math.prod(kernel))) if op == "AveragePool" and self.exact else 0
        return self.tensor(self.net.node(op, x.name, ceil_mode=1, **attrs), (*x.shape[:2], *size), bound, x.bits + bits)

    def unary(self, x: Tensor) -> Tensor:
        op = self.pick("Relu", "Relu", "Abs", "Neg", "Identity", "LeakyRelu", "Clip", "Sign", "Dropout", "Sigmoid", "PRelu", "Tanh")
        net = self.net
        if op == "LeakyRelu":
            return self.tensor(net.LeakyRelu(x.name, alpha=0.5), x.shape, 2 * x.bound, x.bits + 1)
        if op == "Clip":
            if self.opset < 11:
                return self.like(net.Clip(x.name, min=-2.0, max=5.0), x, min(x.bound, 5.0 * 2.0**x.bits))
            bounds = [net.const(np.float32(value)) for value in (-2, 5)]
            return self.like(net.Clip(x.name, *bounds), x, min(x.bound, 5.0 * 2.0**x.bits))
        if op == "Sign":
            if self.opset < 9:
                return x
            return self.tensor(net.Sign(x.name), x.shape, 1)
        if op in ("Sigmoid", "Tanh"):
            self.inexact()
            return self.tensor(net.node(op, x.name), x.shape, 1)
        if op == "PRelu":
            slope = self.values(*self.channelwise(x))
            return self.like(net.PRelu(x.name, self.const(slope)), x, 2 * x.bound)
        if op == "Dropout":
            return self.like(net.Dropout(x.name), x)
        return self.like(net.node(op, x.name), x)

    def channelwise(self, x: Tensor) -> tuple[int, ...]:
        """A shape that broadcasts against [N, C, ...] per channel, or a scalar."""
        channels, rest = x.shape[1], (1,) * (len(x.shape) - 2)
        return tuple(self.pick((channels, *rest), (1, channels, *rest), (1,)))

    def arithmetic(self, x: Tensor) -> Tensor:
        op = self.pick("Add", "Sub", "Mul", "Max" if self.opset >= 8 else "Add")
        values = self.values(*self.channelwise(x))
        other = self.const(values)
        operands = (x.name, other) if self.maybe() else (other, x.name)
        bound = 2 * x.bound if op == "Mul" else x.bound + 2 * 2.0**x.bits
        return self.like(self.net.node(op, *operands), x, bound)

    def batch_norm(self, x: Tensor) -> Tensor:
        """With epsilon 0 and variances 1 and 4 it is exact, up to a halving."""
        channels = x.shape[1]
        variance = self.net.rng.choice([1.0, 4.0], channels).astype(np.float32)
        params = [self.values(channels), self.values(channels), self.values(channels), variance]
        name = self.net.BatchNormalization(x.name, *map(self.const, params), epsilon=0.0)
        return self.tensor(name, x.shape, 4 * x.bound + 12 * 2.0**x.bits, x.bits + 1)

    def residual(self, x: Tensor) -> Tensor:
        branch = self.unary(self.conv(x, outputs=x.shape[1], same=True))
        if branch.shape != x.shape:
            return branch
        op = self.pick("Add", "Sum" if self.opset >= 8 else "Add", "Sub")
        names = (x.name, branch.name) if self.maybe() else (branch.name, x.name)
        bits = max(x.bits, branch.bits)
        bound = x.bound * 2.0 ** (bits - x.bits) + branch.bound * 2.0 ** (bits - branch.bits)
        return self.tensor(self.net.node(op, *names), x.shape, bound, bits)

    def concat(self, x: Tensor) -> Tensor:
        branches = [self.conv(x, outputs=self.draw(st.integers(1, 2)), same=True) for _ in range(2)]
        if self.maybe():
            branches.append(x)
        channels = sum(branch.shape[1] for branch in branches)
        name = self.net.Concat(*(branch.name for branch in branches), axis=self.pick(1, 1 - len(x.shape)) if self.opset >= 11 else 1)
        return self.tensor(name, (x.shape[0], channels, *x.shape[2:]), max(b.bound for b in branches), x.bits)

    def excite(self, x: Tensor) -> Tensor:
        """A squeeze-and-excite block."""
        self.unclean()
        pool = self.pick("GlobalMaxPool", "GlobalAveragePool", "ReduceMax")
        channels = x.shape[1]
        if pool == "ReduceMax":
            pooled = self.net.reduce("ReduceMax", x.name, list(range(2, 2 + self.rank)), keepdims=1)
        else:
            pooled = self.net.node(pool, x.name)
        if pool == "GlobalAveragePool":
            self.inexact()
        shape = (channels, channels, *(1,) * self.rank)
        weight = self.values(*shape)
        if self.maybe():
            gate = self.net.Conv(pooled, self.const(weight))
        else:
            flat = self.net.Flatten(pooled)
            gate = self.net.Gemm(flat, self.const(weight.reshape(channels, channels)), self.const(self.values(channels)), transB=1)
            gate = self.net.Reshape(gate, self.net.const([-1, channels, *(1,) * self.rank]))
        if self.maybe():
            gate = self.net.Relu(gate)
        else:
            gate = self.net.Sigmoid(gate)
            self.inexact()
        return self.like(self.net.Mul(x.name, gate), x, x.bound * (2 * channels * x.bound + 2))

    def shuffle(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        group = self.pick(*(g for g in range(1, channels + 1) if channels % g == 0))
        self.baked = True
        lead = self.pick(-1, 0)
        apart = self.net.Reshape(x.name, self.net.const([lead, group, channels // group, *x.shape[2:]]))
        turned = self.net.Transpose(apart, perm=[0, 2, 1, *range(3, 3 + self.rank)])
        return self.like(self.net.Reshape(turned, self.net.const([lead, channels, *x.shape[2:]])), x)

    def pad(self, x: Tensor) -> Tensor:
        if not self.padded:
            return x
        self.unclean()
        begin, end = self.per_axis(0, 2), self.per_axis(0, 2)
        pads = [0, 0, *begin, 0, 0, *end]
        mode = self.pick("constant", "edge", "reflect")
        if mode == "reflect" and min(x.shape[2:]) <= 2:
            mode = "constant"
        if self.opset < 11:
            name = self.net.Pad(x.name, pads=pads, mode=mode)
        else:
            name = self.net.Pad(x.name, self.net.const(pads), mode=mode)
        size = [n + b + e for n, b, e in zip(x.shape[2:], begin, end, strict=True)]
        return self.tensor(name, (*x.shape[:2], *size), x.bound, x.bits)

    def crop(self, x: Tensor) -> Tensor:
        """A Slice of the map."""
        axis = self.draw(st.integers(2, 1 + self.rank))
        extent = x.shape[axis]
        if extent < 3:
            return x
        self.unclean()
        start, end = self.pick((1, extent), (0, extent - 1), (1, extent - 1), (0, -1), (1, 2**31), (-extent + 1, extent))
        if self.opset < 10:
            name = self.net.Slice(x.name, starts=[start], ends=[end], axes=[axis])
        else:
            name = self.net.Slice(x.name, *(self.net.const([value]) for value in (start, end, axis)))
        shape = list(x.shape)
        shape[axis] = len(range(extent)[slice(start, end)])
        return self.tensor(name, shape, x.bound, x.bits)

    def channel_pick(self, x: Tensor) -> Tensor:
        """Slice, Gather or Split over the channels."""
        channels = x.shape[1]
        if channels < 2:
            return x
        op = self.pick("Gather", "Slice", "Split")
        if op == "Gather":
            chosen = [self.draw(st.integers(0, channels - 1)) for _ in range(self.draw(st.integers(1, 4)))]
            name = self.net.Gather(x.name, self.net.const(chosen), axis=1)
            return self.tensor(name, (x.shape[0], len(chosen), *x.shape[2:]), x.bound, x.bits)
        first = self.draw(st.integers(1, channels - 1))
        if op == "Split":
            sizes = [first, channels - first]
            if self.opset < 13:
                one, two = self.net.node("Split", x.name, outputs=2, axis=1, split=sizes)
            else:
                one, two = self.net.node("Split", x.name, self.net.const(sizes), outputs=2, axis=1)
            name = self.net.Concat(two, one, axis=1)
            return self.like(name, x)
        if self.opset < 10:
            name = self.net.Slice(x.name, starts=[0], ends=[first], axes=[1])
        else:
            name = self.net.Slice(x.name, *(self.net.const([value]) for value in (0, first, 1)))
        return self.tensor(name, (x.shape[0], first, *x.shape[2:]), x.bound, x.bits)

    def channels_last(self, x: Tensor) -> Tensor:
        """Transpose to channels last, an operator there, and back."""
        turned = self.net.Transpose(x.name, perm=[0, *range(2, 2 + self.rank), 1])
        turned = self.net.Add(turned, self.const(self.values(x.shape[1])))
        back = self.net.Transpose(turned, perm=[0, 1 + self.rank, *range(1, 1 + self.rank)])
        return self.like(back, x, x.bound + 2 * 2.0**x.bits)

    def lrn(self, x: Tensor) -> Tensor:
        self.inexact()
        return self.tensor(self.net.LRN(x.name, size=3), x.shape, x.bound)

    def trunk(self, x: Tensor) -> Tensor:
        steps = [self.conv, self.conv, self.conv, self.pool, self.pool, self.unary, self.unary, self.arithmetic]
        steps += [self.batch_norm, self.residual, self.concat, self.shuffle, self.channel_pick, self.channels_last]
        steps += [self.lrn] if self.rank == 2 else []
        steps += [self.excite, self.pad, self.crop] if self.padded else []
        for _ in range(self.draw(st.integers(0, 5))):
            x = self.draw(st.sampled_from(steps))(x)
            if x.shape[1] > 6:
                x = self.conv(x, outputs=2, one=True)
        return x

    # Head -----------------------------------------------------------------------------------------------------------

    def collapse(self, x: Tensor) -> Tensor:
        """From a map to [N, F]."""
        form = self.pick("flatten", "flatten", "last", "last", "pool", "pool", "reduce", "global")
        net, size, spatial = self.net, x.shape[2:], list(range(2, 2 + self.rank))
        if form == "global":
            op = self.pick("GlobalMaxPool", "GlobalAveragePool")
            self.averaged(op == "GlobalAveragePool", size)
            x = self.tensor(net.node(op, x.name), (*x.shape[:2], *(1,) * self.rank), x.bound)
        elif form == "pool":
            x = self.whole_pool(x)
        elif form == "reduce":
            op = self.pick("ReduceMax", "ReduceSum", "ReduceMean", "ReduceMin")
            axes = self.pick(spatial, spatial, spatial[:1], spatial[-1:])
            axes = [a - len(x.shape) if self.opset >= 11 and self.maybe() else a for a in axes]
            gone = [a % len(x.shape) for a in axes]
            cells = math.prod(x.shape[a] for a in gone)
            self.averaged(op in ("ReduceMean", "ReduceSum"), [cells])
            keep = self.draw(st.integers(0, 1))
            left = [1 if a in gone else n for a, n in enumerate(x.shape) if keep or a not in gone]
            x = self.tensor(net.reduce(op, x.name, axes, keepdims=keep), left, x.bound * (cells if op == "ReduceSum" else 1))
        elif form == "last":
            name = net.Transpose(x.name, perm=[0, *spatial, 1])
            if self.maybe():
                name = net.Add(name, self.const(self.values(x.shape[1])))
            if self.maybe():
                name = net.Relu(name)
            x = self.tensor(name, (x.shape[0], *size, x.shape[1]), x.bound + 2 * 2.0**x.bits, x.bits)
        return self.flat(x)

    def averaged(self, rounds: bool, size: Sequence[int]) -> None:
        area = math.prod(size)
        if rounds and area & (area - 1):
            self.inexact()

    def whole_pool(self, x: Tensor) -> Tensor:
        """A pool whose one window holds the whole map, perhaps padding too."""
        size = x.shape[2:]
        op = self.pick("MaxPool", "AveragePool")
        begin = [0] * self.rank
        end = self.per_axis(0, 1) if self.padded else [0] * self.rank
        kernel = [n + e for n, e in zip(size, end, strict=True)]
        attrs: dict[str, Any] = {"kernel_shape": kernel}
        if any(end) or self.maybe():
            attrs["pads"] = begin + end
        if self.maybe():
            attrs["strides"] = self.per_axis(1, 3)
        if op == "AveragePool" and self.maybe():
            attrs["count_include_pad"] = self.draw(st.integers(0, 1))
        self.averaged(op == "AveragePool", size if not attrs.get("count_include_pad") else kernel)
        if any(e >= k for e, k in zip(end, kernel, strict=True)):
            return x
        if op == "AveragePool" and any(end):
            self.inexact()
        return self.tensor(self.net.node(op, x.name, **attrs), (*x.shape[:2], *(1,) * self.rank), x.bound)

    def flat(self, x: Tensor) -> Tensor:
        """[N, ...] to [N, F] in one of its forms."""
        net, features, batch = self.net, math.prod(x.shape[1:]), x.shape[0]
        fixed = self.batch_dim == batch
        if len(x.shape) == 2 and self.maybe():
            return x
        forms = ["flatten", "reshape", "reshape", "reshape0", "computed"]
        ones = [axis for axis in range(2, len(x.shape)) if x.shape[axis] == 1]
        if len(ones) == len(x.shape) - 2 and ones:
            forms += ["squeeze", "squeeze"]
        form = self.draw(st.sampled_from(forms))
        if form == "flatten":
            name = net.Flatten(x.name, **self.pick({}, {"axis": 1}))
        elif form == "squeeze":
            name = net.with_axes("Squeeze", x.name, ones)
        elif form == "reshape":
            name = net.Reshape(x.name, net.const([batch, features] if fixed and self.maybe() else [-1, features]))
        elif form == "reshape0":
            name = net.Reshape(x.name, net.const([0, -1]))
        else:
            first = net.Gather(net.Shape(x.name), net.const([0]), axis=0)
            name = net.Reshape(x.name, net.Concat(first, net.const([-1]), axis=0))
        return self.tensor(name, (batch, features), x.bound, x.bits)

    def vector(self, x: Tensor) -> Tensor:
        """Join a second input that is no image."""
        if self.vectors:
            return x
        name = self.net.input("v", self.batch_dim, 3)
        self.vectors.append(name)
        joined = self.net.Concat(*((x.name, name) if self.maybe() else (name, x.name)), axis=1)
        return self.tensor(joined, (x.shape[0], x.shape[1] + 3), max(x.bound, BOUND * 2.0**x.bits), x.bits)

    def fc(self, x: Tensor) -> Tensor:
        """A fully connected layer in one of its forms."""
        net, features, out = self.net, x.shape[1], self.draw(st.integers(1, 4))
        weight = self.values(out, features)
        bias = self.values(out)
        bound = x.bound * float(np.abs(weight).sum(1).max()) + 2 * 2.0**x.bits
        form = self.pick("gemm", "gemm", "matmul", "matmul", "left", "left-gemm")
        if form == "gemm":
            attrs: dict[str, Any] = {"transB": 1} if self.maybe() else {}
            if self.maybe():
                attrs |= {"alpha": 2.0, "beta": float(self.pick(0, 1, 3))}
            shape = self.pick((out,), (1, out), (1,))
            more = [self.const(bias[: math.prod(shape)].reshape(shape))] if self.maybe() or self.opset < 11 else []
            name = net.Gemm(x.name, self.const(weight if attrs.get("transB") else weight.T), *more, **attrs)
            bound = 2 * bound + 6 * 2.0**x.bits
        elif form == "matmul":
            name = net.MatMul(x.name, self.const(np.ascontiguousarray(weight.T)))
            if self.maybe():
                other = self.const(bias.reshape(self.pick((out,), (1, out))))
                name = net.Add(*((name, other) if self.maybe() else (other, name)))
        elif form == "left":
            name = net.MatMul(self.const(weight), net.Transpose(x.name, perm=[1, 0]))
            if self.maybe():
                name = net.Add(name, self.const(bias.reshape(out, 1)))
            name = net.Transpose(name, perm=[1, 0])
        else:
            name = net.Gemm(self.const(weight), x.name, self.const(bias.reshape(out, 1)), transB=1)
            name = net.Transpose(name, perm=[1, 0])
        return self.tensor(name, (x.shape[0], out), bound, x.bits)

    def fold(self, x: Tensor) -> Tensor:
        """[N, K] to [N, a, b] and back, perhaps transposed."""
        features = x.shape[1]
        one = self.pick(*(g for g in range(1, features + 1) if features % g == 0))
        name = self.net.Reshape(x.name, self.net.const([-1, one, features // one]))
        if self.maybe():
            name = self.net.Add(name, self.const(self.values(*self.pick((one, 1), (features // one,), (1, one, features // one)))))
        if self.maybe():
            name = self.net.Transpose(name, perm=[0, 2, 1])
        return self.like(self.net.Reshape(name, self.net.const([-1, features])), x, x.bound + 2 * 2.0**x.bits)

    def skip(self, x: Tensor) -> Tensor:
        """Two branches from one tensor, joined or added."""
        one, two = self.fc(x), self.fc(x)
        if one.shape == two.shape and self.maybe():
            return self.tensor(self.net.Add(one.name, two.name), one.shape, one.bound + two.bound, x.bits)
        name = self.net.Concat(one.name, two.name, axis=1)
        return self.tensor(name, (x.shape[0], one.shape[1] + two.shape[1]), max(one.bound, two.bound), x.bits)

    def head(self, x: Tensor) -> Tensor:
        steps = [self.fc, self.fc, self.unary, self.arithmetic, self.batch_norm, self.fold, self.channel_pick, self.skip]
        if self.maybe():
            x = self.vector(x)
        if self.draw(st.integers(0, 3)):
            x = self.fc(x)
        for _ in range(self.draw(st.integers(0, 4))):
            x = self.draw(st.sampled_from(steps))(x)
            if self.draw(st.integers(0, 5)) == 0:
                self.outputs.append(x.name)
        return x

    def tail(self, x: Tensor) -> str:
        net = self.net
        form = self.pick("none", "none", "none", "Softmax", "LogSoftmax", "ArgMax", "ReduceMax", "fold", "Unsqueeze")
        if form in ("Softmax", "LogSoftmax"):
            self.inexact()
            return str(net.node(form, x.name, **self.pick({"axis": 1}, {"axis": -1} if self.opset >= 11 else {}, {})))
        if form == "ArgMax":
            return str(net.ArgMax(x.name, axis=1, keepdims=self.draw(st.integers(0, 1))))
        if form == "ReduceMax":
            return str(net.reduce("ReduceMax", x.name, [1], keepdims=self.draw(st.integers(0, 1))))
        if form == "fold":
            one = self.pick(*(g for g in range(1, x.shape[1] + 1) if x.shape[1] % g == 0))
            return str(net.Reshape(x.name, net.const([-1, one, x.shape[1] // one])))
        if form == "Unsqueeze":
            return str(net.with_axes("Unsqueeze", x.name, [self.pick(1, 2)]))
        return x.name

    # All of it ------------------------------------------------------------------------------------------------------

    def build(self) -> RandomNet:
        """Draw the net."""
        sizes = self.per_axis(5, 12)
        channels = self.draw(st.integers(1, 3))
        form = self.pick("fixed", "fixed", "batch", "symbolic")
        batch = 1 if form == "fixed" else BATCH
        self.batch_dim: int | str = "N" if form == "symbolic" else batch
        last = self.draw(st.integers(0, 3)) == 0
        letters = "HW" if self.rank == 2 else "L"
        axes = f"N{letters}C" if last else f"NC{letters}"
        open_size = self.draw(st.integers(0, 7)) == 0
        size_dims: list[int | str] = [f"s{i}" for i in range(self.rank)] if open_size else list(sizes)
        dims = [self.batch_dim, *size_dims, channels] if last else [self.batch_dim, channels, *size_dims]
        native = (batch, *sizes, channels) if last else (batch, channels, *sizes)
        x = self.tensor(self.net.input("x", *dims), (batch, channels, *sizes), BOUND)
        if last:
            x = self.like(self.net.Transpose("x", perm=[0, 1 + self.rank, *range(1, 1 + self.rank)]), x)
        x = self.trunk(x)
        branches = [x, x] if self.draw(st.integers(0, 5)) == 0 else [x]
        for branch in branches:
            end = self.tail(self.head(self.collapse(branch)))
            self.outputs.append(end)
        model = self.finished(native)
        window = tuple(sizes) if open_size else None
        return RandomNet(model, axes, native, self.exact, self.clean, window, self.seed)

    def finished(self, native: Sequence[int]) -> onnx.ModelProto:
        """The model; its outputs declare the shapes that they have in ONNX Runtime at the native size."""
        made = {name for node in self.net.nodes for name in node.output}
        outputs = [name for name in dict.fromkeys(self.outputs) if name in made]
        empty = [helper.make_empty_tensor_value_info(name) for name in outputs]
        nodes, inputs, constants = self.net.nodes, self.net.inputs, list(self.net.initializers.values())
        opsets, ir = [helper.make_opsetid("", self.opset)], max(4, self.net.ir)
        graph = helper.make_graph(nodes, "net", inputs, empty, constants)
        feeds = {"x": np.zeros(native, np.float32), "v": np.zeros((native[0], 3), np.float32)}
        try:
            values = run(helper.make_model(graph, opset_imports=opsets, ir_version=ir), feeds)
        except Exception as error:  # such as SAME pads that ONNX Runtime finds negative
            event(f"ONNX Runtime does not run it: {type(error).__name__}")
            reject()
        del graph.output[:]
        for name, value in values.items():
            kind, dims = helper.np_dtype_to_tensor_dtype(value.dtype), [self.batch_dim, *value.shape[1:]]
            graph.output.append(helper.make_tensor_value_info(name, kind, dims))
        if self.net.ir < 4:
            graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in constants)
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.net.ir)


@st.composite
def nets(draw: Draw, rank: int, padded: bool) -> RandomNet:
    """Random nets."""
    return Builder(draw, rank, padded).build()


def numbers(rng: np.random.Generator) -> Callable[[Sequence[int]], Array]:
    return lambda shape: rng.integers(-BOUND, BOUND + 1, shape).astype(np.float32)


def check(net: RandomNet, extra: Sequence[int]) -> None:
    """Convert a drawn net and compare it with its oracle."""
    made = oracles.lift(net.model, Fcn(window=net.window))
    if isinstance(made, Site):
        event(f"{made.outcome}: {made.reason}")
        note(str(made))
        assert made.reason in ALLOWED, made
        return
    draw_numbers = numbers(np.random.default_rng(net.seed))
    tolerance = 0.0 if net.exact else ROUNDING
    window = made.window
    feeds: Feeds = {"x": draw_numbers(net.native), "v": draw_numbers((net.native[0], 3))}
    oracles.check_native(made, feeds, tolerance)
    if window.axes != net.axes:  # without any layer that slides, one image row can as well be one pixel's channels
        event(f"{net.axes} read as {window.axes}")
    elif net.clean:
        assert window.equivalence == "windows" or "Softmax" in window.why, window.why
    positions = (3, 2)[: len(window.size)]
    least = window.image_size(positions)
    if window.equivalence == "windows":
        size = tuple(n + e % s for n, e, s in zip(least, extra, window.stride, strict=False))
        larger = {**feeds, "x": draw_numbers(oracles.image_shape(window, net.native, size))}
        oracles.check_windows(made, larger, positions, tolerance, draw_numbers)
        event(f"windows, {'exact' if net.exact else 'rounded'}")
        return
    assert window.why
    larger = {**feeds, "x": draw_numbers(oracles.image_shape(window, net.native, least))}
    try:
        oracles.check_trunk_and_head(made, larger, positions, tolerance)
        event(f"native-size, {'exact' if net.exact else 'rounded'}")
    except oracles.NoTrunk:
        event("native-size, without a trunk to compare with")


ALLOWED = frozenset({"fcn/already-convolutional", "fcn/position-in-output", "fcn/position-dependent-constant", "fcn/mixed-axes", "fcn/no-rule", "fcn/spatial-broadcast", "fcn/stride-mismatch", "fcn/uncontracted-channels"})


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True], ids=["valid", "padded"])
@pytest.mark.parametrize("rank", [1, 2])
def test_random_net(rank: int, padded: bool) -> None:
    """Whatever is drawn gives the same as its original, or is left alone with a reason."""

    @SETTINGS
    @given(net=nets(rank, padded), extra=st.tuples(st.integers(0, 7), st.integers(0, 7)))
    def run_all(net: RandomNet, extra: tuple[int, int]) -> None:
        check(net, extra)

    run_all()
