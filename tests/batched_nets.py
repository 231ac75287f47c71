"""Random networks in which each image is by itself, written for one batch in all the ways that exporters have.

`draw(seed)` builds one: a trunk on maps, then perhaps a sequence (attention with its heads told apart in either order,
a recurrent layer, a class token), then a head. Numbers of the file's own batch stand in Reshapes, Expands, Resizes,
constants and first states.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto

from nets import Net

Step = Callable[[Net, str, int], str]


def dims(net: Net, x: str) -> list[int]:
    return [int(d) for d in net.shape(x)]


# On maps [B, C, H, W] ---------------------------------------------------------------------------------------------


def conv(net: Net, x: str, batch: int) -> str:
    return net.Relu(net.conv(x, 4, 3, 3, pads=[1, 1, 1, 1], bound=1))


def grouped(net: Net, x: str, batch: int) -> str:
    return net.conv(x, dims(net, x)[1], 3, 3, pads=[1, 1, 1, 1], group=dims(net, x)[1], bound=1)


def pooled(net: Net, x: str, batch: int) -> str:
    return net.node(net.rng.choice(["MaxPool", "AveragePool"]), x, kernel_shape=[2, 2], strides=[1, 1])


def normalised(net: Net, x: str, batch: int) -> str:
    count = dims(net, x)[1]
    parts = [net.const(net.rng.uniform(0.5, 1.5, count)) for _ in range(4)]
    return net.BatchNormalization(x, *parts)


def per_instance(net: Net, x: str, batch: int) -> str:
    count = dims(net, x)[1]
    return net.InstanceNormalization(x, net.const(np.ones(count)), net.const(np.zeros(count)))


def scaled(net: Net, x: str, batch: int) -> str:
    _, c, h, w = dims(net, x)
    shape = [(1, c, 1, 1), (c, 1, 1), (1, 1, h, w), (1,), (1, c, h, w)][net.rng.integers(5)]
    return net.Add(x, net.const(net.rng.standard_normal(shape)))


def squeezed(net: Net, x: str, batch: int) -> str:
    c = dims(net, x)[1]
    mean = net.Reshape(net.GlobalAveragePool(x), net.const([batch, c]))
    gate = net.Sigmoid(net.node("Gemm", mean, net.ints(c, c, bound=1)))
    return net.Mul(x, net.Reshape(gate, net.const([batch, c, 1, 1])))


def shuffled(net: Net, x: str, batch: int) -> str:
    _, c, h, w = dims(net, x)
    if c % 2:
        return x
    lead = batch if net.rng.integers(2) else -1
    five = net.Transpose(net.Reshape(x, net.const([lead, 2, c // 2, h, w])), perm=[0, 2, 1, 3, 4])
    return net.Reshape(five, net.const([batch, c, h, w]))


def expanded(net: Net, x: str, batch: int) -> str:
    return net.Sub(x, net.Expand(net.reduce("ReduceMean", x, [2, 3]), net.const(dims(net, x))))


def expanded_by_shape(net: Net, x: str, batch: int) -> str:
    """As PyTorch writes an expand: where the shape says -1, the extent stays."""
    shape = net.Concat(net.Slice(net.Shape(x), net.const([0]), net.const([3])), net.const([-1]), axis=0)
    filled = net.Where(net.Equal(shape, net.const([-1])), net.Shape(x), shape)
    return net.Add(x, net.Expand(net.const([[[0.5]]]), filled))


def resized(net: Net, x: str, batch: int) -> str:
    _, c, h, w = dims(net, x)
    if net.rng.integers(2):
        return net.Resize(x, "", net.const([1.0, 1.0, 2.0, 1.0]), mode="nearest")
    return net.Resize(x, "", "", net.const([batch, c, h + 1, w]), mode="linear")


def padded(net: Net, x: str, batch: int) -> str:
    return net.Pad(x, net.const([0, 0, 1, 0, 0, 0, 0, 1]))


def halves(net: Net, x: str, batch: int) -> str:
    c = dims(net, x)[1]
    if c < 2:
        return x
    parts = net.node("Split", x, net.const([1, c - 1]), outputs=2, axis=1)
    return net.Concat(parts[1], net.Neg(parts[0]), axis=1)


def cut(net: Net, x: str, batch: int) -> str:
    if dims(net, x)[2] < 3:
        return x
    return net.Slice(x, net.const([0, 1]), net.const([2**62, -1]), net.const([0, 2]))


def over_channels(net: Net, x: str, batch: int) -> str:
    return net.node(net.rng.choice(["Softmax", "LpNormalization", "Hardmax"]), x, axis=1)


def channels_last(net: Net, x: str, batch: int) -> str:
    last = net.Transpose(x, perm=[0, 2, 3, 1])
    c = dims(net, last)[-1]
    y = net.MatMul(last, net.ints(c, c, bound=1))
    return net.Transpose(y, perm=[0, 3, 1, 2])


def batch_last(net: Net, x: str, batch: int) -> str:
    """The images go to the last axis and come back; what happens there is number by number."""
    return net.Transpose(net.Tanh(net.Transpose(x, perm=[1, 2, 3, 0])), perm=[3, 0, 1, 2])


def folded_into_rows(net: Net, x: str, batch: int) -> str:
    """Channels as further images: a convolution of one channel on each."""
    _, c, h, w = dims(net, x)
    y = net.conv(net.Reshape(x, net.const([batch * c, 1, h, w])), 1, 3, 3, pads=[1, 1, 1, 1])
    return net.Reshape(y, net.const([batch, c, h, w]))


def sums(net: Net, x: str, batch: int) -> str:
    return net.CumSum(x, net.const(int(net.rng.integers(1, 4))))


MAPS: tuple[Step, ...] = (
    conv,
    grouped,
    pooled,
    normalised,
    per_instance,
    scaled,
    squeezed,
    shuffled,
    expanded,
    expanded_by_shape,
    resized,
    padded,
    halves,
    cut,
    over_channels,
    channels_last,
    batch_last,
    folded_into_rows,
    sums,
)

# On sequences [B, T, D] -------------------------------------------------------------------------------------------


def sequence(net: Net, x: str, batch: int) -> str:
    """Positions of the map as a sequence of D = 4."""
    y = net.conv(x, 4, 1, 1, bound=1)
    _, c, h, w = dims(net, y)
    flat = net.Reshape(y, net.const([batch, c, h * w]))
    return net.Transpose(flat, perm=[0, 2, 1])


def _scores(net: Net, q: str, k: str, v: str, order: list[int]) -> str:
    found = net.Mul(net.MatMul(q, net.Transpose(k, perm=order)), net.const(0.1))
    return net.MatMul(net.node("Softmax", found, axis=-1), v)


def attention(net: Net, x: str, batch: int) -> str:
    """Batch first: [B, T, D] -> [B, T, 2, D / 2] -> [B, 2, T, D / 2]."""
    _, t, d = dims(net, x)

    def heads() -> str:
        y = net.Reshape(net.MatMul(x, net.ints(d, d, bound=1)), net.const([batch, t, 2, d // 2]))
        return net.Transpose(y, perm=[0, 2, 1, 3])

    y = net.Transpose(_scores(net, heads(), heads(), heads(), [0, 1, 3, 2]), perm=[0, 2, 1, 3])
    return net.Add(x, net.Reshape(y, net.const([batch, t, d])))


def encoder(net: Net, x: str, batch: int) -> str:
    """As PyTorch's TransformerEncoder: time first, and batch times heads merged in the middle of a Reshape."""
    _, t, d = dims(net, x)
    time = net.Transpose(x, perm=[1, 0, 2])

    def heads() -> str:
        y = net.Reshape(net.MatMul(time, net.ints(d, d, bound=1)), net.const([t, batch * 2, d // 2]))
        return net.Transpose(y, perm=[1, 0, 2])

    y = net.Transpose(_scores(net, heads(), heads(), heads(), [0, 2, 1]), perm=[1, 0, 2])
    rows = net.Reshape(y, net.const([t * batch, d]))
    y = net.Reshape(net.node("Gemm", rows, net.ints(d, d, bound=1)), net.const([t, batch, d]))
    return net.Transpose(net.Add(time, y), perm=[1, 0, 2])


def recurrent(net: Net, x: str, batch: int) -> str:
    """Time first; its first states are constants, one for the batch of the file, or are made from its shape."""
    d = dims(net, x)[2]
    time = net.Transpose(x, perm=[1, 0, 2])
    if batch == 1 and net.rng.integers(2):
        state = net.const(net.rng.standard_normal((1, 1, d)))
    else:
        count = net.Gather(net.Shape(time), net.const([1]), axis=0)
        state = net.ConstantOfShape(net.Concat(net.const([1]), count, net.const([d]), axis=0))
    op, gates = [("LSTM", 4), ("GRU", 3), ("RNN", 1)][net.rng.integers(3)]
    weights = net.ints(1, gates * d, d, bound=1), net.ints(1, gates * d, d, bound=1)
    states = [state, state] if op == "LSTM" else [state]
    y = net.node(op, time, *weights, "", "", *states, outputs=2, hidden_size=d)[0]
    return net.Transpose(net.Squeeze(y, net.const([1])), perm=[1, 0, 2])


def token(net: Net, x: str, batch: int) -> str:
    if batch > 1:
        return x
    return net.Concat(net.const(net.rng.standard_normal((1, 1, dims(net, x)[2]))), x, axis=1)


def positions(net: Net, x: str, batch: int) -> str:
    return net.Add(x, net.const(net.rng.standard_normal((1, *dims(net, x)[1:]))))


def layer_norm(net: Net, x: str, batch: int) -> str:
    d = dims(net, x)[2]
    return net.LayerNormalization(x, net.const(np.ones(d)), net.const(np.zeros(d)), axis=-1)


def by_einsum(net: Net, x: str, batch: int) -> str:
    d = dims(net, x)[2]
    return net.node("Einsum", x, net.ints(d, d, bound=1), equation="btd,de->bte")


def chosen(net: Net, x: str, batch: int) -> str:
    return net.Gather(x, net.const([0, 1, 0]), axis=1)


def best(net: Net, x: str, batch: int) -> str:
    return net.node("TopK", x, net.const([2]), outputs=2, axis=1)[0]


SEQUENCES: tuple[Step, ...] = (
    attention,
    encoder,
    recurrent,
    token,
    positions,
    layer_norm,
    by_einsum,
    chosen,
    best,
)

# Heads ------------------------------------------------------------------------------------------------------------


def flat(net: Net, x: str, batch: int) -> str:
    size = int(np.prod(dims(net, x)[1:]))
    told: list[list[int]] = [[batch, size], [batch, -1], [-1, size], [0, -1]]
    y = net.Reshape(x, net.const(told[net.rng.integers(len(told))]))
    return net.MatMul(y, net.ints(size, 3, bound=1))


def flatten(net: Net, x: str, batch: int) -> str:
    y = net.Flatten(x, axis=int(net.rng.integers(2)) if batch == 1 else 1)
    return net.MatMul(y, net.ints(dims(net, y)[1], 3, bound=1))


def rows(net: Net, x: str, batch: int) -> str:
    """A list of positions, image after image."""
    *_, last = dims(net, x)
    return net.MatMul(net.Reshape(x, net.const([-1, last])), net.ints(last, 3, bound=1))


def classes(net: Net, x: str, batch: int) -> str:
    return net.ArgMax(flat(net, x, batch), axis=1, keepdims=0)


def by_shape(net: Net, x: str, batch: int) -> str:
    count = net.Gather(net.Shape(x), net.const(0), axis=0)
    shape = net.Concat(net.Unsqueeze(count, net.const([0])), net.const([-1]), axis=0)
    return net.MatMul(net.Reshape(x, shape), net.ints(int(np.prod(dims(net, x)[1:])), 3, bound=1))


def embedded(net: Net, x: str, batch: int) -> str:
    ids = net.Cast(net.Clip(net.Relu(x), "", net.const(2.0)), to=TensorProto.INT64)
    return net.reduce("ReduceMean", net.Gather(net.ints(3, 2), ids, axis=0), [-1], keepdims=0)


HEADS: tuple[Step, ...] = (flat, flatten, rows, classes, by_shape, embedded)


def draw(seed: int, head: Step | None = None) -> tuple[onnx.ModelProto, int]:
    """A network and the number of images that its file is for; its head is drawn, too, unless one is given."""
    rng = np.random.default_rng(seed)
    batch = int(rng.choice([1, 1, 1, 2, 3]))
    net = Net(batch, 2, 5, 4, opset=17, seed=seed)
    y = conv(net, "x", batch)
    for step in rng.choice(len(MAPS), size=rng.integers(1, 5)):
        y = MAPS[step](net, y, batch)
    if rng.integers(2):
        y = sequence(net, y, batch)
        for step in rng.choice(len(SEQUENCES), size=rng.integers(1, 4)):
            y = SEQUENCES[step](net, y, batch)
    outputs = [(head or HEADS[rng.integers(len(HEADS))])(net, y, batch)]
    if rng.integers(3) == 0:
        outputs.append(HEADS[rng.integers(len(HEADS))](net, y, batch))
    return net.model(*outputs), batch
