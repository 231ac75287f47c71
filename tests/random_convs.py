"""Random convolutions and small graphs of planted convolutions for `test_separable_random`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

from helpers import Array, Net
from random_trunks import Draw

EXTENTS = {1: (9, 24), 2: (8, 14), 3: (6, 9)}
KERNELS = {1: 7, 2: 5, 3: 3}
CHANNELS = {1: 8, 2: 6, 3: 4}
"""Of a group, at most."""


@dataclass(frozen=True)
class RandomConv:
    """One Conv, with a BatchNormalization or without, as a model.

    Attributes:
        weight, bias: as stored. gain: the factor of the BatchNormalization per channel; 1 without one.
        attrs: of the Conv.
    """

    model: onnx.ModelProto
    weight: Array
    bias: Array | None
    gain: Array
    norm: dict[str, Array]
    attrs: dict[str, Any]
    dtype: np.dtype[Any]

    def __repr__(self) -> str:
        stored = f"{self.dtype} {list(self.weight.shape)}, bias {self.bias is not None}, gain {self.gain}"
        opset, ir = self.model.opset_import[0].version, self.model.ir_version
        return f"opset {opset}, IR {ir}, {stored}, {self.attrs}\n{onnx.printer.to_text(self.model.graph)[:2000]}"

    def error(self, kernel: Array) -> float:
        """The relative Frobenius error of another kernel in the place of this one."""
        gain = self.gain.reshape(-1, *[1] * (self.weight.ndim - 1))
        wide = gain * self.weight.astype(np.float64)
        return float(np.linalg.norm(gain * kernel.astype(np.float64) - wide) / np.linalg.norm(wide))


@dataclass
class _Convs:
    draw: Draw
    rank: int
    net: Net = field(init=False)

    def one(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def each(self, low: int, high: int) -> list[int]:
        return [self.one(low, high) for _ in range(self.rank)]

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def build(self) -> RandomConv:
        rank, pick = self.rank, self.pick
        dtype = np.dtype(pick(np.float32, np.float32, np.float32, np.float16))
        kind = pick("dense", "dense", "grouped", "depthwise", "multiplier")
        group = 1 if kind == "dense" else self.one(2, 5)
        each = 1 if kind in ("depthwise", "multiplier") else self.one(1, CHANNELS[rank])
        outs = {"depthwise": 1, "multiplier": self.one(2, 3)}.get(kind, self.one(1, CHANNELS[rank]))
        kernel = self.each(1, KERNELS[rank])
        attrs = self.attributes(kernel, group)
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, attrs.get("dilations", [1] * rank), strict=True)]
        size = [max(n, r) for n, r in zip(self.each(*EXTENTS[rank]), reach, strict=True)]
        opset = self.one(7, 22)
        ir = pick(None, None, 4) if opset < 9 else pick(None, None, 10)
        self.net = net = Net(self.one(1, 2), each * group, *size, opset=opset, ir=ir, dtype=dtype, seed=self.one(0, 9))
        weight = self.weight((outs * group, each, *kernel)).astype(dtype)
        bias = net.rng.standard_normal(outs * group).astype(dtype) if pick(True, False) else None
        inputs = ["x", net.const(weight, "W")]
        if bias is not None:
            inputs.append(net.const(bias, "b"))
        elif pick(True, False, False):
            inputs.append("")
        y = net.node("Conv", *inputs, name=pick("conv", ""), outputs=["y"], **attrs)
        norm, gain = {}, np.ones(outs * group)
        if pick(True, False):
            norm = self.norm(outs * group)
            more = {"epsilon": 1e-3} if pick(True, False) else {}
            y = net.BatchNormalization(y, *(net.const(values, name) for name, values in norm.items()), **more)
            variance = norm["variance"].astype(np.float64) + more.get("epsilon", 1e-5)
            gain = norm["scale"].astype(np.float64) / np.sqrt(variance)
        if pick(True, False):
            y = net.Relu(y)
        return RandomConv(net.model(y), weight, bias, gain, norm, attrs, dtype)

    def attributes(self, kernel: Sequence[int], group: int) -> dict[str, Any]:
        """Strides, dilations, padding; any of them may be left to its default."""
        attrs: dict[str, Any] = {"group": group} if group > 1 else {}
        if self.pick(True, False):
            attrs["kernel_shape"] = list(kernel)
        if self.pick(True, False):
            attrs["strides"] = self.each(1, 3)
        if self.pick(True, False, False):
            attrs["dilations"] = self.each(1, 2)
        padding = self.pick("none", "pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET")
        if padding in ("pads", "NOTSET"):
            attrs["pads"] = self.each(0, 2) + self.each(0, 2)
        if padding not in ("none", "pads"):
            attrs["auto_pad"] = padding
        if padding.startswith("SAME"):
            attrs.pop("dilations", None)  # ONNX Runtime and the shape inference of ONNX do not agree there
        return attrs

    def weight(self, shape: Sequence[int]) -> Array:
        """Low rank and noise, at any scale."""
        rng = self.net.rng
        noise = rng.standard_normal(shape)
        form = self.pick("full", "one", "one", "sum", "channels")
        if form == "full":
            return np.asarray(noise)
        planted: Array = np.zeros(shape)
        for _ in range(2 if form == "sum" else 1):
            planted = planted + math.prod(
                rng.uniform(0.3, 1.5, [n if a == axis else 1 for a in range(len(shape))])
                for axis, n in enumerate(shape)
            )
        if form == "channels":
            planted = planted[:, :, ...] * rng.standard_normal((1, *shape[1:]))
        level = self.pick(0.0, 1e-5, 1e-3, 0.03, 0.3)
        scale = self.pick(1.0, 1.0, 1e-2, 20.0)
        return np.asarray(scale * (planted + level * noise))

    def norm(self, channels: int) -> dict[str, Array]:
        """Scale of either sign, sometimes 0 in a channel; offset, mean, variance."""
        rng, dtype = self.net.rng, self.net.dtype
        scale = rng.uniform(0.4, 1.5, channels) * rng.choice([-1, 1], channels)
        if channels > 1 and self.pick(True, False, False):
            scale[0] = 0.0
        values = {
            "scale": scale,
            "offset": rng.standard_normal(channels),
            "mean": rng.standard_normal(channels),
            "variance": rng.uniform(0.3, 2, channels),
        }
        return {name: value.astype(dtype) for name, value in values.items()}


@st.composite
def convs(draw: Draw, rank: int) -> RandomConv:
    """One random convolution of that many spatial axes."""
    return _Convs(draw, rank).build()


# Graphs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlantedGraph:
    """A small graph; `planted` are the outputs of its convolutions of low rank, `full` of those that are not."""

    model: onnx.ModelProto
    planted: tuple[str, ...]
    full: tuple[str, ...]

    def __repr__(self) -> str:
        return onnx.printer.to_text(self.model.graph)[:4000]


class _Graphs:
    """Draws a graph block by block; every block keeps the 16 channels and the size."""

    WIDTH = 16

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.net = Net(1, self.WIDTH, 9, 8, opset=self.one(7, 22), seed=self.one(0, 9))
        self.planted: list[str] = []
        self.full: list[str] = []
        self.outputs: list[str] = []
        self.weights: list[str] = []

    def one(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def kernel(self, out: int, form: str, k: int) -> Array:
        """A kernel [out, WIDTH, k, k] that some form finds cheaper, or "full" rank."""
        rng, width = self.net.rng, self.WIDTH
        if form == "spatial":
            values = np.einsum("ih,ow->oihw", rng.standard_normal((width, k)), rng.standard_normal((out, k)))
        elif form == "channel":
            values = np.einsum("o,ihw->oihw", rng.standard_normal(out), rng.standard_normal((width, k, k)))
        elif form == "depthwise":
            values = np.einsum("oi,ihw->oihw", rng.standard_normal((out, width)), rng.standard_normal((width, k, k)))
        else:
            values = rng.standard_normal((out, width, k, k))
        return np.asarray(values / np.linalg.norm(values) * math.sqrt(out))

    def conv(self, x: str, out: int = WIDTH, weight: str = "", form: str = "") -> str:
        """A convolution that keeps the size."""
        net = self.net
        form = form or self.pick("spatial", "channel", "depthwise", "spatial", "full")
        shared = bool(weight)
        k = self.pick(3, 5) if not shared else net.initializers[weight].dims[2]
        weight = weight or net.const(self.kernel(out, form, k))
        inputs = [x, weight]
        if self.pick(True, False):
            inputs.append(net.const(net.rng.standard_normal(out)))
        y = str(net.node("Conv", *inputs, pads=[k // 2] * 4, **self.pick({}, {"kernel_shape": [k, k]})))
        (self.full if form == "full" else self.planted).append(y)
        self.last = weight, form
        if self.pick(True, False):
            y = self.norm(y, out)
        return str(net.Relu(y)) if self.pick(True, False) else y

    def norm(self, y: str, out: int) -> str:
        rng = self.net.rng
        values = rng.uniform(0.5, 1.5, out), rng.standard_normal(out), rng.standard_normal(out)
        return str(self.net.BatchNormalization(y, *map(self.net.const, (*values, rng.uniform(0.5, 2, out)))))

    def inception(self, x: str) -> str:
        """Branches of one input, joined."""
        branches = [self.conv(x, 8), self.conv(x, 8)] if self.pick(True, False) else [self.conv(x, 8), self.pool(x)]
        return str(self.net.Concat(*branches, axis=1))

    def pool(self, x: str) -> str:
        """The first 8 channels, pooled at stride 1."""
        weight = np.eye(8, self.WIDTH)[:, :, None, None]
        y = str(self.net.Conv(x, self.net.const(weight)))
        self.full.append(y)
        return str(self.net.MaxPool(y, kernel_shape=[3, 3], pads=[1] * 4))

    def residual(self, x: str) -> str:
        return str(self.net.Add(x, self.conv(self.net.Relu(self.conv(x)))))

    def shared(self, x: str) -> str:
        """Two convolutions with one weight."""
        first = self.conv(x)
        weight, form = self.last
        return self.conv(first, weight=weight, form=form)

    def twice(self, x: str) -> str:
        """A convolution whose result is read before and behind its BatchNormalization."""
        y = self.conv(x)
        return str(self.net.Add(self.norm(y, self.WIDTH), y))

    def branch(self, x: str) -> str:
        """An If whose subgraphs read what a convolution gives."""
        net, y = self.net, self.conv(x)
        cond = net.Greater(net.reduce("ReduceMean", x, [0, 1, 2, 3], keepdims=0), net.const(np.float32(0.0)))
        name = f"branch{len(net.nodes)}"
        bodies = []
        for place, nodes in enumerate(
            (
                [helper.make_node("Neg", [y], [f"{name}/0"])],
                [helper.make_node("Abs", [y], [f"{name}/1"])],
            )
        ):
            info = helper.make_tensor_value_info(f"{name}/{place}", TensorProto.FLOAT, [1, self.WIDTH, 9, 8])
            bodies.append(helper.make_graph(nodes, f"{name}/{place}", [], [info]))
        made = str(net.node("If", cond, then_branch=bodies[0], else_branch=bodies[1]))
        return str(net.Add(made, y)) if self.pick(True, False) else made

    def build(self) -> PlantedGraph:
        x = "x"
        for _ in range(self.one(1, 4)):
            x = self.pick(self.conv, self.inception, self.residual, self.shared, self.twice, self.branch)(x)
            if self.one(0, 3) == 0:
                self.outputs.append(x)
        names = list(dict.fromkeys([*self.outputs, x]))
        shapes = {name: [1, self.WIDTH, 9, 8] for name in names}
        return PlantedGraph(self.net.model(*names, shapes=shapes), tuple(self.planted), tuple(self.full))


@st.composite
def planted_graphs(draw: Draw) -> PlantedGraph:
    """A graph of convolutions whose ranks are known."""
    return _Graphs(draw).build()
