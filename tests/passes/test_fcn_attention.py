"""Attention blocks, as both exporters of PyTorch write them: what stays global, what has windows, what is refused.

The oracle is the network built again at the other size with the same weights, its trunk on the whole image, and its
head on every window of the map: nothing of it is read from the conversion.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from attention_nets import (
    BLOCKS,
    HEADS,
    REFUSED_BLOCKS,
    REFUSED_HEADS,
    Block,
    head_alone,
    network,
    pooled_head,
    trunk,
)
from torch_nets import EXPORTERS, Torch

from convrewrite import pipeline
from convrewrite.options import FcnOptions
from helpers import Array, Net, check_lifted, run, session
from oracles import Lift, check_windows, lift

NATIVE = (15, 19)
SIZES = (NATIVE, (19, 26), (24, 19))


def at_that_size(exporter: str, block: Block | None, head: Block, image: Array) -> Array:
    """What the network gives on every native window of the map, all of it built for an image of that size."""
    features = run(network(exporter, image.shape[2:], block, None, 1 if len(image) == 1 else "N"), {"x": image})
    (map_,) = features.values()
    h, w = ((extent - 3) // 2 + 1 - 2 for extent in NATIVE)
    rows, columns = map_.shape[2] - h + 1, map_.shape[3] - w + 1
    model = session(head_alone(exporter, map_[:1, :, :h, :w], block, head, NATIVE))

    def cell(i: int, j: int) -> Array:
        crop = map_[:, :, i : i + h, j : j + w]
        return np.concatenate([next(iter(run(model, {"x": one[None]}).values())) for one in crop])

    cells = [[cell(i, j) for j in range(columns)] for i in range(rows)]
    return np.stack([np.stack(line, -1) for line in cells], -2)


def check_at_sizes(made: Lift, exporter: str, block: Block | None, head: Block, batches: Sequence[int]) -> None:
    for batch in batches:
        for size in SIZES:
            image = np.random.default_rng(1).standard_normal((batch, 3, *size)).astype(np.float32)
            (got,) = run(made.after, {"x": image}).values()
            want = at_that_size(exporter, block, head, image)
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * float(np.abs(want).max()))


def lifted(exporter: str, block: Block | None, head: Block = pooled_head, batch: int | str = 1) -> Lift:
    made = lift(network(exporter, NATIVE, block, head, batch))
    assert isinstance(made, Lift), made
    return made


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_stays_global(block: str, exporter: str, batch: int | str) -> None:
    """At any size it is what the block gives on the whole image; windows are not claimed for it."""
    made = lifted(exporter, BLOCKS[block], batch=batch)
    assert made.window.equivalence == "native-size"
    check_at_sizes(made, exporter, BLOCKS[block], pooled_head, [1] if batch == 1 else [1, 3])


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("net", REFUSED_BLOCKS)
def test_a_block_is_refused_by_its_name(net: str, exporter: str) -> None:
    block, reason = REFUSED_BLOCKS[net]
    site = lift(network(exporter, NATIVE, block))
    assert not isinstance(site, Lift)
    assert site.reason == reason, site


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("net", REFUSED_HEADS)
def test_a_head_is_refused_by_its_name(net: str, exporter: str, batch: int | str) -> None:
    head, reason = REFUSED_HEADS[net]
    site = lift(network(exporter, NATIVE, None, head, batch))
    assert not isinstance(site, Lift)
    assert site.reason == reason, site


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("head", HEADS)
def test_an_attention_pooling_has_windows(head: str, exporter: str, batch: int | str) -> None:
    """The softmax is over the positions of each window, and the crops give the same."""
    made = lifted(exporter, None, HEADS[head], batch)
    assert made.window.equivalence == "windows", made.window.why
    check_at_sizes(made, exporter, None, HEADS[head], [1] if batch == 1 else [1, 3])
    image = np.random.default_rng(2).standard_normal((1, 3, 21, 25)).astype(np.float32)
    check_windows(made, {"x": image}, (4, 4), 3e-6, np.random.default_rng(3).standard_normal)


@pytest.mark.parametrize("opset", [8, 11, 13, 18])
def test_attention_of_older_operator_sets(opset: int) -> None:
    """Softmax that flattens, axes as attributes; the pool as a head and the same one in a block."""
    for in_block in (False, True):
        net = Net(1, 2, 9, 12, opset=opset)
        x = net.conv("x", 3, 3, 3, bound=1)
        line = net.Reshape(net.conv(x, 1, 1, 1, bias=False, bound=1), net.const([1, 1, 70]))
        weights = net.Reshape(net.Softmax(net.Mul(line, net.const(np.float32(0.02))), axis=2), net.const([1, 1, 7, 10]))
        summed = net.reduce("ReduceSum", net.Mul(x, weights), [2, 3])
        y = net.conv(net.Add(x, summed), 3, 3, 3) if in_block else summed
        made = check_lifted(
            net.model(net.fc(net.Flatten(net.GlobalAveragePool(y)), 4)),
            equivalence="native-size" if in_block else "windows",
            exact=False,
            oracle=False,
        )
        assert made.operators.count("AveragePool") == (1 if in_block else 2)


def test_a_gate_repeated_over_channels_alone_is_copied() -> None:
    """One number per image, spread over the channels, then a convolution along them: no Expand over the map."""

    def one_gate(net: Torch, x: str) -> str:
        c = net.shape(x)[1]
        one = net.Sigmoid(net.linear(net.view(net.adaptive_mean(x), c), 1))
        wide = net.Expand(net.view(one, 1, 1, 1), net.const([1, c, 1, 1]))
        return str(net.Mul(x, net.view(net.Conv(net.view(wide, 1, c), net.real(1, 1, 3), pads=[1, 1]), c, 1, 1)))

    check_at_sizes(lifted("dynamo", one_gate), "dynamo", one_gate, pooled_head, [1])


def test_the_command_proves_a_pool_whose_kernel_is_the_native_map(tmp_path: Path) -> None:
    """On a larger map such a pool takes its first cells alone, so the original's trunk is none; a global pool is."""
    onnx.save(network("torchscript", NATIVE, BLOCKS["cbam"]), tmp_path / "m.onnx")
    made = pipeline.fcn(str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), FcnOptions()).check()
    assert made.verification is not None
    cases = {case.name: case.status for case in made.verification.cases}
    assert "passed" in {status for name, status in cases.items() if name.startswith("original's trunk and head")}
    assert set(cases.values()) == {"passed"}


def test_two_blocks_one_behind_the_other() -> None:
    """The second is found with the first kept global."""

    def both(net: Torch, x: str) -> str:
        return BLOCKS["eca"](net, BLOCKS["sk"](net, x))

    check_at_sizes(lifted("dynamo", both), "dynamo", both, pooled_head, [1])


# Behind a global pool any operator may stand, but only where what comes of it weighs the map -----------------------


def convolution_along_channels(net: Torch, x: str) -> str:
    """A head that is no block: the same convolution as that of ECA, and no map behind it."""
    c = net.shape(x)[1]
    line = net.Conv(net.view(net.adaptive_mean(x), 1, c), net.real(1, 1, 3), kernel_shape=[3], pads=[1, 1])
    return net.linear(net.view(line, c), 5)


def test_a_head_does_not_become_global() -> None:
    """One class for the whole image is not what was asked for; the refusal names the node that has no windows."""
    site = lift(network("dynamo", NATIVE, None, convolution_along_channels))
    assert not isinstance(site, Lift)
    assert site.reason == "fcn/mixed-axes"
    assert "Conv" in site.detail


def test_nor_one_of_two_outputs() -> None:
    net = Torch("dynamo", 1, 3, *NATIVE)
    x = trunk(net, None)
    site = lift(net.model(pooled_head(net, x), convolution_along_channels(net, x)))
    assert not isinstance(site, Lift)
    assert site.reason == "fcn/mixed-axes"


@pytest.mark.parametrize("op", ["Add", "Concat"])
def test_nor_half_of_a_head(op: str) -> None:
    """The sum of a value of the window and one of the whole image would be neither."""

    def head(net: Torch, x: str) -> str:
        c = net.shape(x)[1]
        line = net.Conv(net.view(net.adaptive_mean(x), 1, c), net.real(1, 1, 3), kernel_shape=[3], pads=[1, 1])
        parts = [net.view(line, c), net.view(net.adaptive_mean(x), c)]
        return net.linear(net.Add(*parts) if op == "Add" else net.Concat(*parts, axis=1), 5)

    site = lift(network("dynamo", NATIVE, None, head))
    assert not isinstance(site, Lift), site.window
    assert site.reason == "fcn/mixed-axes"


def test_nor_beside_a_flattened_map() -> None:
    def head(net: Torch, x: str) -> str:
        c = net.shape(x)[1]
        line = net.Conv(net.view(net.adaptive_mean(x), 1, c), net.real(1, 1, 3), kernel_shape=[3], pads=[1, 1])
        flat = net.linear(net.Flatten(x), 5)
        return str(net.Add(flat, net.linear(net.view(line, c), 5)))

    site = lift(network("dynamo", NATIVE, None, head))
    assert not isinstance(site, Lift), site.window


def test_a_gate_written_out_over_the_map_is_no_output() -> None:
    net = Torch("dynamo", 1, 3, *NATIVE)
    x = net.Relu(net.conv2d("x", 8, 3, stride=2))
    line = net.Conv(net.view(net.adaptive_mean(x), 1, 8), net.real(1, 1, 3), kernel_shape=[3], pads=[1, 1])
    gate = net.expand_as(net.Sigmoid(net.view(line, 8, 1, 1)), x)
    site = lift(net.model(pooled_head(net, net.Mul(x, gate)), gate))
    assert not isinstance(site, Lift), site.window
