"""A compact network builder on ``onnx.helper``: one method per layer, shapes tracked, weights seeded.

    net = NetBuilder((1, 3, 224, 224), seed=0, opset=13)
    x = net.relu(net.conv(net.input, 64, 3, pad=1, name="conv1_1"))
    model = net.finish(x, name="my_net")

A layer's node and its output tensor carry the layer's name; its parameters are ``<name>.weight``,
``<name>.bias`` and so on.

Random weights follow He et al. 2015 (arXiv:1502.01852): variance 2 / fan_in keeps the second moment of
a ReLU network constant with depth, so activations neither vanish nor explode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["MAX_OPSET", "MIN_OPSET", "NetBuilder", "Size", "Tensor", "Weights", "image_shape", "scaled"]

Floats = npt.NDArray[np.float32]
Weights = Mapping[str, Floats]
"""Given parameters by name (``"c1.weight"``), instead of random ones."""
Size = int | tuple[int, int]
"""Image size in pixels: one side, or (height, width)."""

MIN_OPSET, MAX_OPSET = 7, 22
PRODUCER = "convrewrite"


@dataclass(frozen=True)
class Tensor:
    """A float32 activation: its name in the graph and its shape (NCHW, or NC after ``flatten``)."""

    name: str
    shape: tuple[int, ...]


def scaled(channels: int, width: float, multiple: int = 8) -> int:
    """``channels * width``, rounded to a multiple (at least one) so that groups and SIMD blocks fit."""
    return max(multiple, round(channels * width / multiple) * multiple)


def image_shape(channels: int, size: Size | None, default: int) -> tuple[int, int, int, int]:
    """NCHW shape of one image of ``size`` (None: ``default``) pixels."""
    height, width = (size, size) if isinstance(size, int) else size or (default, default)
    return (1, channels, height, width)


class NetBuilder:
    """Collects nodes and initializers; a layer method takes the tensors it reads and returns its result."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        seed: int = 0,
        opset: int = 13,
        weights: Weights | None = None,
    ) -> None:
        """Start with the input "image": NCHW, NCL for sound, NCDHW for video.

        ``weights``, where given, must hold every parameter.
        """
        if not MIN_OPSET <= opset <= MAX_OPSET:
            raise ValueError(f"opset {opset} is not supported; use {MIN_OPSET} to {MAX_OPSET}")
        self.input = Tensor("image", input_shape)
        self._opset = opset
        self._rng = np.random.default_rng(seed)
        self._given = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._counts: dict[str, int] = {}

    # Layers with weights

    def conv(
        self,
        x: Tensor,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        pad: int = 0,
        groups: int = 1,
        bias: bool = True,
        name: str | None = None,
    ) -> Tensor:
        """Square convolution: [N,C,H,W] -> [N,channels,H',W'], weight [channels, C/groups, k, k].

        Sound and video have one and three such axes.
        """
        incoming = x.shape[1]
        if incoming % groups or channels % groups:
            raise ValueError(f"{incoming} -> {channels} channels do not divide into {groups} groups")
        name = self._name("conv", name)
        rank = len(x.shape) - 2
        fan_in = incoming // groups * kernel**rank
        weight = self._weight(f"{name}.weight", (channels, incoming // groups, *[kernel] * rank), fan_in)
        inputs = [x.name, weight, *([self._bias(f"{name}.bias", channels)] if bias else [])]
        shape = (x.shape[0], channels, *self._window(x, name, kernel, stride, pad=pad))
        return self._node("Conv", name, inputs, shape, **_window_attributes(kernel, stride, pad, rank), group=groups)

    def deconv(self, x: Tensor, channels: int, kernel: int, *, stride: int, name: str | None = None) -> Tensor:
        """Transposed convolution without padding: each side becomes (side - 1) * stride + kernel."""
        name = self._name("deconv", name)
        rank, incoming = len(x.shape) - 2, x.shape[1]
        fan_in = incoming * kernel**rank // stride**rank
        weight = self._weight(f"{name}.weight", (incoming, channels, *[kernel] * rank), max(1, fan_in))
        shape = (x.shape[0], channels, *((side - 1) * stride + kernel for side in x.shape[2:]))
        attributes = {"kernel_shape": [kernel] * rank, "strides": [stride] * rank}
        inputs = [x.name, weight, self._bias(f"{name}.bias", channels)]
        return self._node("ConvTranspose", name, inputs, shape, **attributes)

    def depthwise(
        self,
        x: Tensor,
        kernel: int,
        *,
        stride: int = 1,
        pad: int = 0,
        bias: bool = True,
        name: str | None = None,
    ) -> Tensor:
        """One filter per channel: a convolution with as many groups as channels."""
        channels = x.shape[1]
        return self.conv(
            x,
            channels,
            kernel,
            stride=stride,
            pad=pad,
            groups=channels,
            bias=bias,
            name=self._name("depthwise", name),
        )

    def batchnorm(self, x: Tensor, *, gain: float = 1.0, name: str | None = None) -> Tensor:
        """Inference-mode BatchNormalization with statistics and scale well away from the identity.

        ``gain`` scales the random scale: a residual branch takes less than 1 so that the sum does not grow.
        """
        name = self._name("batchnorm", name)
        shape = (x.shape[1],)
        scale = self._parameter(f"{name}.scale", shape, lambda: gain * self._rng.uniform(0.7, 1.3, shape))
        bias = self._parameter(f"{name}.bias", shape, lambda: self._rng.normal(0.0, 0.2, shape))
        mean = self._parameter(f"{name}.mean", shape, lambda: self._rng.normal(0.0, 0.2, shape))
        var = self._parameter(f"{name}.var", shape, lambda: self._rng.uniform(0.6, 1.4, shape))
        return self._node("BatchNormalization", name, [x.name, scale, bias, mean, var], x.shape, epsilon=1e-5)

    def gemm(self, x: Tensor, features: int, *, name: str | None = None) -> Tensor:
        """Fully connected layer: [N,K] -> [N,features], weight stored [features, K] (transB = 1)."""
        name = self._name("gemm", name)
        incoming = x.shape[1]
        weight = self._weight(f"{name}.weight", (features, incoming), incoming)
        inputs = [x.name, weight, self._bias(f"{name}.bias", features)]
        return self._node("Gemm", name, inputs, (x.shape[0], features), transB=1)

    # Layers without weights

    def relu(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """max(x, 0)."""
        return self._node("Relu", self._name("relu", name), [x.name], x.shape)

    def maxpool(self, x: Tensor, kernel: int, *, stride: int, pad: int = 0, name: str | None = None) -> Tensor:
        """Largest value of each kernel x kernel window (windows that do not fit are dropped)."""
        return self._pool("MaxPool", x, kernel, stride, pad=pad, name=self._name("maxpool", name))

    def avgpool(self, x: Tensor, kernel: int, *, stride: int, pad: int = 0, name: str | None = None) -> Tensor:
        """Mean of each kernel x kernel window, padding not counted."""
        return self._pool("AveragePool", x, kernel, stride, pad=pad, name=self._name("avgpool", name))

    def global_avg_pool(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """Mean over the whole map: [N,C,H,W] -> [N,C,1,1]."""
        shape = (*x.shape[:2], *[1] * (len(x.shape) - 2))
        return self._node("GlobalAveragePool", self._name("global_avg_pool", name), [x.name], shape)

    def relu6(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """min(max(x, 0), 6)."""
        name = self._name("relu6", name)
        if self._opset < 11:
            return self._node("Clip", name, [x.name], x.shape, min=0.0, max=6.0)
        ends = [self._constant(f"relu6.{end}", np.array(value, np.float32)) for end, value in (("min", 0), ("max", 6))]
        return self._node("Clip", name, [x.name, *ends], x.shape)

    def sigmoid(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """1 / (1 + exp(-x))."""
        return self._node("Sigmoid", self._name("sigmoid", name), [x.name], x.shape)

    def swish(self, x: Tensor) -> Tensor:
        """x * sigmoid(x)."""
        return self.mul(x, self.sigmoid(x))

    def mul(self, a: Tensor, b: Tensor, *, name: str | None = None) -> Tensor:
        """Element-wise product; b may have one cell for all of a's."""
        return self._node("Mul", self._name("mul", name), [a.name, b.name], a.shape)

    def concat(self, *parts: Tensor, name: str | None = None) -> Tensor:
        """Join tensors along the channel axis."""
        shape = (parts[0].shape[0], sum(part.shape[1] for part in parts), *parts[0].shape[2:])
        return self._node("Concat", self._name("concat", name), [part.name for part in parts], shape, axis=1)

    def shuffle(self, x: Tensor, groups: int) -> Tensor:
        """Channel shuffle (Zhang et al. 2017): channel c of group g becomes channel g of group c."""
        batch, channels, *map_ = x.shape
        name = self._name("shuffle", None)
        apart = self._constant(f"{name}.apart", np.array([0, groups, channels // groups, *map_], np.int64))
        whole = self._constant(f"{name}.whole", np.array([0, channels, *map_], np.int64))
        y = self._node("Reshape", f"{name}_apart", [x.name, apart], (batch, groups, channels // groups, *map_))
        perm = [0, 2, 1, *range(3, len(y.shape))]
        y = self._node("Transpose", f"{name}_swapped", [y.name], tuple(y.shape[i] for i in perm), perm=perm)
        return self._node("Reshape", name, [y.name, whole], x.shape)

    def lrn(
        self,
        x: Tensor,
        *,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 2.0,
        name: str | None = None,
    ) -> Tensor:
        """Local response normalisation across channels, with the meaning of AlexNet's section 3.3.

        There the sum of squares is weighted by ``alpha``; ONNX weights it by ``alpha / size``.
        """
        attributes = {"size": size, "alpha": alpha * size, "beta": beta, "bias": k}
        return self._node("LRN", self._name("lrn", name), [x.name], x.shape, **attributes)

    def flatten(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """[N,C,H,W] -> [N, C*H*W], in C, H, W order."""
        shape = (x.shape[0], int(np.prod(x.shape[1:])))
        return self._node("Flatten", self._name("flatten", name), [x.name], shape, axis=1)

    def dropout(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """Dropout, the identity at inference, with the papers' ratio: 0.5, ONNX's default at every opset."""
        return self._node("Dropout", self._name("dropout", name), [x.name], x.shape)

    def add(self, a: Tensor, b: Tensor, *, name: str | None = None) -> Tensor:
        """Element-wise sum of two tensors of one shape."""
        if a.shape != b.shape:
            raise ValueError(f"cannot add {a.name!r} {a.shape} and {b.name!r} {b.shape}")
        return self._node("Add", self._name("add", name), [a.name, b.name], a.shape)

    def softmax(self, x: Tensor, *, name: str | None = None) -> Tensor:
        """Probabilities over the classes, axis 1, of a [N,K] tensor."""
        return self._node("Softmax", self._name("softmax", name), [x.name], x.shape, axis=1)

    def finish(self, output: Tensor, *, name: str, open_batch: bool = False) -> onnx.ModelProto:
        """The model with one input, "image", and one output, ``output``; ``name`` names the graph.

        ``open_batch`` leaves the first axis of both open, as the symbol N.
        """
        unused = sorted(set(self._given or ()) - set(self._initializers))
        if unused:
            raise ValueError(f"weights that {name} has no layer for: {', '.join(unused)}")
        ends = [
            helper.make_tensor_value_info(
                end.name, TensorProto.FLOAT, ["N" if open_batch else end.shape[0], *end.shape[1:]]
            )
            for end in (self.input, output)
        ]
        graph = helper.make_graph(
            self._nodes,
            name,
            ends[:1],
            ends[1:],
            initializer=list(self._initializers.values()),
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self._opset)],
            ir_version=8 if self._opset <= 18 else 10,  # onnx's default may be newer than ONNX Runtime reads
            producer_name=PRODUCER,
        )

    # Parts

    def _name(self, kind: str, given: str | None) -> str:
        if given is not None:
            return given
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind}{self._counts[kind]}"

    def _node(self, op: str, name: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> Tensor:
        self._nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return Tensor(name, shape)

    def _pool(self, op: str, x: Tensor, kernel: int, stride: int, pad: int, name: str) -> Tensor:
        shape = (*x.shape[:2], *self._window(x, name, kernel, stride, pad=pad))
        return self._node(op, name, [x.name], shape, **_window_attributes(kernel, stride, pad, len(x.shape) - 2))

    def _window(self, x: Tensor, name: str, kernel: int, stride: int, pad: int) -> tuple[int, ...]:
        if not 3 <= len(x.shape) <= 5:
            raise ValueError(f"{name!r} needs a map [N,C,H,W], got {x.name!r} {x.shape}")
        sides = tuple((side + 2 * pad - kernel) // stride + 1 for side in x.shape[2:])
        if min(sides) < 1:
            raise ValueError(f"the image is too small: {name!r} has a {kernel}x{kernel} window on {x.shape[2:]}")
        return sides

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        self._initializers[name] = numpy_helper.from_array(value, name)
        return name

    def _weight(self, name: str, shape: tuple[int, ...], fan_in: int) -> str:
        def he() -> Floats:
            values = self._rng.standard_normal(shape, dtype=np.float32)
            values *= np.float32((2.0 / fan_in) ** 0.5)
            return values

        return self._parameter(name, shape, he)

    def _bias(self, name: str, channels: int) -> str:
        return self._parameter(name, (channels,), lambda: self._rng.normal(0.0, 0.1, channels))

    def _parameter(self, name: str, shape: tuple[int, ...], draw: Callable[[], npt.NDArray[Any]]) -> str:
        if self._given is None:
            values = draw()
        elif name in self._given:
            values = self._given[name]
        else:
            raise ValueError(f"no weights given for {name!r}")
        if values.shape != shape:
            raise ValueError(f"{name!r} has shape {values.shape}, the layer needs {shape}")
        self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name)
        return name


def _window_attributes(kernel: int, stride: int, pad: int, rank: int) -> dict[str, list[int]]:
    return {"kernel_shape": [kernel] * rank, "strides": [stride] * rank, "pads": [pad] * (2 * rank)}
