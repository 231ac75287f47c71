"""Random trunks for `test_random_graphs`: convolutions, pools, residual sums, gates, shuffles, crops.

Shapes and bounds of the entries are kept here, by arithmetic of its own: nothing of the code under test is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st

from helpers import Array, Net

BOUND = 3
"""Inputs are integers from -BOUND to BOUND."""

Draw = Callable[..., Any]


@dataclass(frozen=True)
class Tensor:
    """A tensor of the net under construction: its name, shape, and in units of 2**-bits a bound of its entries."""

    name: str
    shape: tuple[int, ...]
    bound: float
    bits: int = 0


class Trunks:
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

    def geometry(
        self, x: Tensor, most: int, *, same: bool = False
    ) -> tuple[dict[str, Any], list[int], list[int]] | None:
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
                totals = [
                    max((math.ceil(n / s) - 1) * s + r - n, 0) for n, s, r in zip(size, strides, reach, strict=True)
                ]
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
        if "dilations" in attrs and (op != "MaxPool" or self.opset < 10):
            return x
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
        op = self.pick(
            "Relu", "Relu", "Abs", "Neg", "Identity", "LeakyRelu", "Clip", "Sign", "Dropout", "Sigmoid", "PRelu", "Tanh"
        )
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
        name = self.net.Concat(
            *(branch.name for branch in branches), axis=self.pick(1, 1 - len(x.shape)) if self.opset >= 11 else 1
        )
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
            gate = self.net.Gemm(
                flat, self.const(weight.reshape(channels, channels)), self.const(self.values(channels)), transB=1
            )
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
        start, end = self.pick(
            (1, extent), (0, extent - 1), (1, extent - 1), (0, -1), (1, 2**31), (-extent + 1, extent)
        )
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
