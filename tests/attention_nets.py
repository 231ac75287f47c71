"""Attention blocks, and heads and networks of attention, as PyTorch's two exporters write them (see `torch_nets`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from torch_nets import Torch

from helpers import Array

Block = Callable[[Torch, str], str]


# Blocks -------------------------------------------------------------------------------------------------------------


def eca(net: Torch, x: str) -> str:
    """The authors': a convolution along the channels of the mean, and the gate written out over the map."""
    line = net.Transpose(net.axes("Squeeze", net.adaptive_mean(x), [3]), perm=[0, 2, 1])
    line = net.Conv(line, net.real(1, 1, 3), kernel_shape=[3], pads=[1, 1])
    gate = net.Sigmoid(net.axes("Unsqueeze", net.Transpose(line, perm=[0, 2, 1]), [-1]))
    return str(net.Mul(x, net.expand_as(gate, x)))


def eca_by_views(net: Torch, x: str) -> str:
    """As timm has it: views between the mean and the convolution."""
    c = net.shape(x)[1]
    line = net.Conv(net.view(net.mean(x, [2, 3], 0), 1, c), net.real(1, 1, 3), kernel_shape=[3], pads=[1, 1])
    return str(net.Mul(x, net.expand_as(net.Sigmoid(net.view(line, c, 1, 1)), x)))


def cbam(net: Torch, x: str) -> str:
    """Means and maxima through one MLP; then means and maxima over the channels, and a 7x7 convolution."""
    c, h, w = net.shape(x)[1:]
    first, second = (net.real(2, c), net.real(2)), (net.real(c, 2), net.real(c))

    def mlp(pooled: str) -> str:
        flat = net.Flatten(pooled) if net.script else net.view(pooled, c)
        return str(net.Gemm(net.Relu(net.Gemm(flat, *first, transB=1)), *second, transB=1))

    pool = {"kernel_shape": [h, w], "strides": [h, w]}
    gate = net.Sigmoid(net.Add(mlp(net.AveragePool(x, **pool)), mlp(net.MaxPool(x, **pool))))
    x = net.Mul(x, net.expand_as(net.axes("Unsqueeze", gate, [2, 3]), x))
    both = net.Concat(net.axes("ReduceMax", x, [1], keepdims=1), net.mean(x, [1]), axis=1)
    return str(net.Mul(x, net.Sigmoid(net.conv2d(both, 1, 7, pad=3))))


def cbam_of_convolutions(net: Torch, x: str) -> str:
    """As timm has it: the shared MLP is of 1x1 convolutions, and nothing is written out."""
    c = net.shape(x)[1]
    first, second = net.real(2, c, 1, 1), net.real(c, 2, 1, 1)

    def mlp(pooled: str) -> str:
        return str(net.Conv(net.Relu(net.Conv(pooled, first)), second))

    peak = net.GlobalMaxPool(x) if net.script else net.axes("ReduceMax", x, [2, 3], keepdims=1)
    x = net.Mul(x, net.Sigmoid(net.Add(mlp(net.adaptive_mean(x)), mlp(peak))))
    both = net.Concat(net.mean(x, [1]), net.axes("ReduceMax", x, [1], keepdims=1), axis=1)
    return str(net.Mul(x, net.Sigmoid(net.conv2d(both, 1, 7, pad=3))))


def sk(net: Torch, x: str) -> str:
    """Branches stacked; the mean over the columns, then over the rows; a softmax over the branches."""
    c = net.shape(x)[1]
    branches = [net.conv2d(x, c, 3, pad=1), net.conv2d(x, c, 3, pad=2, dilation=2)]
    stack = net.Concat(*(net.axes("Unsqueeze", b, [1]) for b in branches), axis=1)
    pooled = net.mean(net.mean(net.axes("ReduceSum", stack, [1], keepdims=0), [-1], 0), [-1], 0)
    squeezed = net.linear(pooled, 4)
    scores = [net.axes("Unsqueeze", net.linear(squeezed, c), [1]) for _ in branches]
    weights = net.Softmax(net.Concat(*scores, axis=1), axis=1)
    weights = net.axes("Unsqueeze", net.axes("Unsqueeze", weights, [-1]), [-1])
    return net.axes("ReduceSum", net.Mul(stack, weights), [1], keepdims=0)


def sk_by_views(net: Torch, x: str) -> str:
    """The scores of both branches in one line, then a view, and each branch by its number."""
    c = net.shape(x)[1]
    branches = [net.conv2d(x, c, 3, pad=1), net.conv2d(x, c, 3, pad=2, dilation=2)]
    pooled = net.adaptive_mean(net.Add(*branches))
    squeezed = net.linear(net.Flatten(pooled) if net.script else net.view(pooled, c), 4)
    scores = net.Concat(*(net.linear(squeezed, c) for _ in branches), axis=1)
    weights = net.Softmax(net.view(scores, 2, c), axis=1)
    picked = [net.Gather(weights, net.const(np.asarray(i), dtype=np.int64), axis=1) for i in range(2)]
    return str(net.Add(*(net.Mul(b, net.view(p, c, 1, 1)) for b, p in zip(branches, picked, strict=True))))


def grn(net: Torch, x: str) -> str:
    """Of ConvNeXt V2, channels last: the L2 norm of each channel's map, by its mean over the channels."""
    c = net.shape(x)[1]
    x = net.Transpose(x, perm=[0, 2, 3, 1])
    norm = net.axes("ReduceL2", x, [1, 2], keepdims=1)
    ratio = net.Div(norm, net.Add(net.mean(norm, [-1]), net.const(np.float32(1e-6))))
    y = net.Add(net.Mul(net.real(1, 1, 1, c), net.Mul(x, ratio)), net.real(1, 1, 1, c))
    return str(net.Transpose(net.Add(y, x), perm=[0, 3, 1, 2]))


def grn_channels_first(net: Torch, x: str) -> str:
    """The same, [N, C, H, W], the norm written out."""
    c = net.shape(x)[1]
    norm = net.Sqrt(net.axes("ReduceSum", net.Mul(x, x), [2, 3], keepdims=1))
    ratio = net.Div(norm, net.Add(net.mean(norm, [1]), net.const(np.float32(1e-6))))
    return str(net.Add(net.Add(net.Mul(net.real(1, c, 1, 1), net.Mul(x, ratio)), net.real(1, c, 1, 1)), x))


def gc(net: Torch, x: str) -> str:
    """Global context: the map summed with a softmax over its positions, transformed, and added to every position."""
    c, h, w = net.shape(x)[1:]
    features = net.axes("Unsqueeze", net.view(x, c, h * w), [1])
    mask = net.Softmax(net.view(net.conv2d(x, 1, 1), 1, h * w), axis=2)
    context = net.view(net.MatMul(features, net.axes("Unsqueeze", mask, [-1])), c, 1, 1)
    hidden = net.LayerNormalization(net.conv2d(context, 3, 1), net.real(3, 1, 1), net.real(3, 1, 1), axis=-3)
    return str(net.Add(x, net.conv2d(net.Relu(hidden), c, 1)))


def softmax_of_positions(net: Torch, x: str) -> str:
    """The map times a softmax over its positions, and no sum: a map like any other."""
    h, w = net.shape(x)[2:]
    weights = net.view(net.Softmax(net.view(net.conv2d(x, 1, 1), 1, h * w), axis=-1), 1, h, w)
    return str(net.Add(x, net.Mul(x, weights)))


def gather_excite(net: Torch, x: str) -> str:
    """The mean, interpolated to the map: by extents that a Shape gives, or by numbers."""
    c, h, w = net.shape(x)[1:]
    pooled = net.adaptive_mean(x)
    if net.script:
        ends = [net.const([n]) for n in (0, 2, 4)]
        ahead = net.Slice(net.Shape(pooled), ends[0], ends[1], ends[0])
        sizes = net.Concat(ahead, net.Slice(net.Shape(x), ends[1], ends[2], ends[0]), axis=0)
        wide = net.Resize(pooled, "", "", sizes, mode="nearest", coordinate_transformation_mode="asymmetric")
    else:
        wide = net.Resize(pooled, "", net.const(np.float32([1, 1, h, w])), mode="linear")
    assert net.shape(wide)[1:] == (c, h, w)
    return str(net.Mul(x, net.Sigmoid(wide)))


BLOCKS: dict[str, Block] = {
    "gather-excite": gather_excite,
    "gc": gc,
    "softmax-of-positions": softmax_of_positions,
    "eca": eca,
    "eca-by-views": eca_by_views,
    "cbam": cbam,
    "cbam-of-convolutions": cbam_of_convolutions,
    "sk": sk,
    "sk-by-views": sk_by_views,
    "grn": grn,
    "grn-channels-first": grn_channels_first,
}
"""Blocks that stay global."""


# Heads that have windows ----------------------------------------------------------------------------------------------


def attention_by_sum(net: Torch, x: str) -> str:
    """The map times a softmax over its positions, summed up."""
    h, w = net.shape(x)[2:]
    weights = net.view(net.Softmax(net.view(net.conv2d(x, 1, 1), 1, h * w), axis=-1), 1, h, w)
    return net.linear(net.axes("ReduceSum", net.Mul(x, weights), [2, 3], keepdims=0), 5)


def attention_per_channel(net: Torch, x: str) -> str:
    """A softmax of its own for each channel, over positions in a line; the mean of the products in place of the sum."""
    c, h, w = net.shape(x)[1:]
    weights = net.Softmax(net.view(net.conv2d(x, c, 1), c, h * w), axis=2)
    return net.linear(net.mean(net.Mul(weights, net.view(x, c, h * w)), [2], 0), 5)


def attention_statistics(net: Torch, x: str) -> str:
    """Attentive statistics pooling: the weighted mean and deviation of each channel."""
    c, h, w = net.shape(x)[1:]
    line = net.view(x, c, h * w)
    weights = net.Softmax(net.view(net.conv2d(x, c, 1), c, h * w), axis=2)
    mean = net.axes("ReduceSum", net.Mul(weights, line), [2], keepdims=0)
    square = net.axes("ReduceSum", net.Mul(weights, net.Mul(line, line)), [2], keepdims=0)
    spread = net.Sqrt(net.Relu(net.Add(net.Sub(square, net.Mul(mean, mean)), net.const(np.float32(1)))))
    return net.linear(net.Concat(mean, spread, axis=1), 5)


def attention_by_product(net: Torch, x: str) -> str:
    """One query, and a matrix product with the map."""
    c, h, w = net.shape(x)[1:]
    weights = net.Softmax(net.view(net.conv2d(x, 1, 1), 1, h * w), axis=-1)
    summed = net.MatMul(net.view(x, c, h * w), net.Transpose(weights, perm=[0, 2, 1]))
    return net.linear(net.axes("Squeeze", summed, [2]), 5)


def attention_of_tokens(net: Torch, x: str) -> str:
    """Two queries that are learned, over tokens [N, T, C]."""
    t = tokens(net, x)
    c = net.shape(t)[-1]
    weights = net.Softmax(net.MatMul(t, net.real(c, 2)), axis=1)
    return net.linear(net.view(net.MatMul(net.Transpose(weights, perm=[0, 2, 1]), t), 2 * c), 5)


def attention_of_heads(net: Torch, x: str) -> str:
    """Two heads, each with one query, and its own half of the values: [N, 2, 1, T] times [N, 2, T, C / 2]."""
    c, h, w = net.shape(x)[1:]
    weights = net.Softmax(net.view(net.conv2d(x, 2, 1), 2, 1, h * w), axis=-1)
    values = net.Transpose(net.view(net.conv2d(x, c, 1), 2, c // 2, h * w), perm=[0, 1, 3, 2])
    return net.linear(net.view(net.MatMul(weights, values), c), 5)


HEADS: dict[str, Block] = {
    "attention-by-sum": attention_by_sum,
    "attention-per-channel": attention_per_channel,
    "attention-statistics": attention_statistics,
    "attention-by-product": attention_by_product,
    "attention-of-tokens": attention_of_tokens,
    "attention-of-heads": attention_of_heads,
}
"""Attention poolings as heads."""


# What is refused ----------------------------------------------------------------------------------------------------


def coordinate_attention(net: Torch, x: str) -> str:
    c, h, w = net.shape(x)[1:]
    rows = net.AveragePool(x, kernel_shape=[1, w], strides=[1, w])
    columns = net.Transpose(net.AveragePool(x, kernel_shape=[h, 1], strides=[h, 1]), perm=[0, 1, 3, 2])
    y = net.Relu(net.conv2d(net.Concat(rows, columns, axis=2), 4, 1))
    if net.script:
        parts = [net.Slice(y, net.const([0]), net.const([h]), net.const([2]))]
        parts.append(net.Slice(y, net.const([h]), net.const([h + w]), net.const([2])))
    else:
        parts = list(net.Split(y, net.const([h, w]), axis=2, outputs=2))
    x = net.Mul(x, net.Sigmoid(net.conv2d(parts[0], c, 1)))
    return str(net.Mul(x, net.Sigmoid(net.conv2d(net.Transpose(parts[1], perm=[0, 1, 3, 2]), c, 1))))


def strip_pooling(net: Torch, x: str) -> str:
    """A mean over each row, weighed, and times the row."""
    return str(net.Mul(x, net.Sigmoid(net.conv2d(net.mean(x, [3]), net.shape(x)[1], 1))))


def strip_pooling_by_pool(net: Torch, x: str) -> str:
    """The same by an AveragePool as wide as the map."""
    w = net.shape(x)[3]
    rows = net.AveragePool(x, kernel_shape=[1, w], strides=[1, w])
    return str(net.Mul(x, net.Sigmoid(net.conv2d(rows, net.shape(x)[1], 1))))


def tokens(net: Torch, x: str) -> str:
    """[N, C, H, W] as [N, H W, C]."""
    c, h, w = net.shape(x)[1:]
    return str(net.Transpose(net.view(x, c, h * w), perm=[0, 2, 1]))


def non_local(net: Torch, x: str) -> str:
    """Every position looks at every other one, and the map is added."""
    c, h, w = net.shape(x)[1:]
    theta, phi, g = tokens(net, net.conv2d(x, 2, 1)), net.view(net.conv2d(x, 2, 1), 2, h * w), net.conv2d(x, c, 1)
    mixed = net.MatMul(net.Softmax(net.MatMul(theta, phi), axis=-1), tokens(net, g))
    return str(net.Add(x, net.view(net.Transpose(mixed, perm=[0, 2, 1]), c, h, w)))


def self_attention(net: Torch, t: str) -> str:
    """One head over tokens [N, T, C], and the sum with what came in."""
    c = net.shape(t)[-1]
    q, k, v = (net.Add(net.MatMul(t, net.real(c, c)), net.real(c)) for _ in range(3))
    scores = net.Mul(net.MatMul(q, net.Transpose(k, perm=[0, 2, 1])), net.const(np.float32(c**-0.5)))
    return str(net.Add(t, net.MatMul(net.Softmax(scores, axis=-1), v)))


def vit(net: Torch, x: str) -> str:
    """A class token in front of the others, positions added, one layer, and the class token's logits."""
    t = tokens(net, x)
    c = net.shape(t)[-1]
    token = net.real(1, 1, c)
    if net.open_batch:
        token = net.Expand(token, net.Concat(net.batch("x"), net.const([1]), net.const([1]), axis=0))
    t = net.Concat(token, t, axis=1)
    t = self_attention(net, net.Add(t, net.real(1, net.shape(t)[1], c)))
    return net.linear(net.Gather(t, net.const(np.asarray(0), dtype=np.int64), axis=1), 5)


def vit_of_means(net: Torch, x: str) -> str:
    """No class token and no positions: the mean of all tokens after one layer."""
    return net.linear(net.mean(self_attention(net, tokens(net, x)), [1], 0), 5)


def clip_pool(net: Torch, x: str) -> str:
    """The head of CLIP's ResNets: the mean of all positions is a token of its own, and asks all others."""
    t = tokens(net, x)
    t = net.Concat(net.mean(t, [1]), t, axis=1)
    c = net.shape(t)[-1]
    first = net.Slice(t, net.const([0]), net.const([1]), net.const([1]))
    q, k, v = (net.MatMul(y, net.real(c, c)) for y in (first, t, t))
    scores = net.Softmax(net.MatMul(q, net.Transpose(k, perm=[0, 2, 1])), axis=-1)
    return net.linear(net.axes("Squeeze", net.MatMul(scores, v), [1]), 5)


REFUSED_BLOCKS: dict[str, tuple[Block, str]] = {
    "coordinate-attention": (coordinate_attention, "fcn/pools-one-axis"),
    "strip-pooling": (strip_pooling, "fcn/pools-one-axis"),
    "strip-pooling-by-pool": (strip_pooling_by_pool, "fcn/pools-one-axis"),
    "non-local": (non_local, "fcn/self-attention"),
}


def largest_of_weighted(net: Torch, x: str) -> str:
    """The largest of the products, in place of their sum."""
    h, w = net.shape(x)[2:]
    weights = net.view(net.Softmax(net.view(net.conv2d(x, 1, 1), 1, h * w), axis=-1), 1, h, w)
    return net.linear(net.axes("ReduceMax", net.Mul(x, weights), [2, 3], keepdims=0), 5)


REFUSED_HEADS: dict[str, tuple[Block, str]] = {
    "vit": (vit, "fcn/class-token"),
    "vit-of-means": (vit_of_means, "fcn/self-attention"),
    "largest-of-weighted": (largest_of_weighted, "fcn/attention-pooling"),
    "clip-pool": (clip_pool, "fcn/class-token"),
}


# Networks -----------------------------------------------------------------------------------------------------------


def trunk(net: Torch, block: Block | None) -> str:
    """Two convolutions and the block between them: [N, 3, H, W] to [N, 6, H / 2 - 3, W / 2 - 3]."""
    x = net.Relu(net.conv2d("x", 8, 3, stride=2))
    x = x if block is None else block(net, x)
    return str(net.Relu(net.conv2d(x, 6, 3)))


def pooled_head(net: Torch, x: str) -> str:
    """The mean of the map, and a fully connected layer."""
    pooled = net.adaptive_mean(x)
    return net.linear(net.Flatten(pooled) if net.script else net.view(pooled, net.shape(x)[1]), 5)


def network(
    exporter: str, size: Sequence[int], block: Block | None, head: Block | None = pooled_head, batch: int | str = 1
) -> onnx.ModelProto:
    """A classifier; without a head, its trunk. The weights are the same at every size."""
    net = Torch(exporter, batch, 3, *size)
    x = trunk(net, block)
    return net.model(x if head is None else head(net, x))


def head_alone(
    exporter: str, features: Array, block: Block | None, head: Block, size: Sequence[int]
) -> onnx.ModelProto:
    """The head of `network`, on a feature map of that shape; its weights are drawn after the trunk's."""
    drawn = Torch(exporter, 1, 3, *size)
    trunk(drawn, block)
    net = Torch(exporter)
    net.input("x", *features.shape)
    net.rng = drawn.rng
    return net.model(head(net, "x"))
