"""Random nets for `test_random_graphs`: a random trunk, one or two heads in all the forms that exporters write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import event, reject
from hypothesis import strategies as st
from onnx import helper

from helpers import run
from random_trunks import BOUND, Draw, Tensor, Trunks

BATCH = 2


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


class Builder(Trunks):
    """Draws the whole net."""

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
            x = self.tensor(
                net.reduce(op, x.name, axes, keepdims=keep), left, x.bound * (cells if op == "ReduceSum" else 1)
            )
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
            name = self.net.Add(
                name, self.const(self.values(*self.pick((one, 1), (features // one,), (1, one, features // one))))
            )
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
        steps = [
            self.fc,
            self.fc,
            self.unary,
            self.arithmetic,
            self.batch_norm,
            self.fold,
            self.channel_pick,
            self.skip,
        ]
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
    """Random nets of one or two spatial axes; without `padded`, of operators that keep the window property."""
    return Builder(draw, rank, padded).build()
