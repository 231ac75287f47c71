"""fc-to-conv and conv-to-fc: against ONNX Runtime on the original, bit for bit on whole numbers; there and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest

from convrewrite import model_io
from convrewrite.engine.rewrite import Pass, PassResult, run_pass
from convrewrite.passes.conv_to_fc import ConvToFc
from convrewrite.passes.fc_to_conv import FcToConv
from nets import Net, run


def changed(model: onnx.ModelProto, pass_: Pass) -> tuple[PassResult, onnx.ModelProto]:
    loaded = model_io.load(model.SerializeToString())
    result = run_pass(pass_, loaded.graph)
    return result, onnx.load_from_string(model_io.to_bytes(replace(loaded, graph=result.graph)))


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def assert_same(one: onnx.ModelProto, other: onnx.ModelProto, *shape: int, exact: bool = True) -> None:
    for seed in range(2):
        x = np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)
        for want, got in zip(run(one, {"x": x}).values(), run(other, {"x": x}).values(), strict=True):
            assert want.shape == got.shape
            assert np.abs(want).max() > 0
            if exact:
                np.testing.assert_array_equal(got, want)
            else:
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * float(np.abs(want).max()))


# Gemm and MatMul as convolutions


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 21])
@pytest.mark.parametrize(
    "attrs", [{}, {"transB": 1}, {"alpha": 2.0, "beta": 0.5}, {"transA": 1}, {"transA": 1, "transB": 1}], ids=str
)
def test_a_gemm(attrs: dict[str, float], opset: int) -> None:
    shape = (5, 3) if attrs.get("transA") else (3, 5)
    net = Net(*shape, opset=opset)
    weight = net.ints(4, 5) if attrs.get("transB") else net.ints(5, 4)
    model = net.model(net.Gemm("x", weight, net.const(2 * net.numbers_of(4)), **attrs))
    result, made = changed(model, FcToConv())
    assert [site.outcome for site in result.sites] == ["rewritten"]
    assert "Gemm" not in ops(made)
    assert_same(model, made, *shape)


@pytest.mark.parametrize("added", [(), (1,), (4,), (1, 4), None], ids=str)
def test_what_a_gemm_adds(added: tuple[int, ...] | None) -> None:
    net = Net(3, 5, opset=13)
    more = [] if added is None else [net.const(np.asarray(net.numbers_of(*added)))]
    model = net.model(net.Gemm("x", net.ints(5, 4), *more))
    assert_same(model, changed(model, FcToConv())[1], 3, 5)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (2, 2, 3, 5), (2, 1, 2, 3, 5), (5,)], ids=str)
def test_a_matmul_on_any_number_of_axes(shape: tuple[int, ...]) -> None:
    net = Net(*shape, opset=13)
    model = net.model(net.Add(net.MatMul("x", net.ints(5, 4)), net.ints(4)))
    result, made = changed(model, FcToConv())
    assert result.changed
    assert "Add" not in ops(made)  # it is the bias
    assert_same(model, made, *shape)


def test_open_extents() -> None:
    for opened, shape in ((("batch", 7, 5), (2, 7, 5)), (("batch", "tokens", 5), (2, 3, 5)), (("batch", 5), (4, 5))):
        net = Net(*opened, opset=13)
        model = net.model(net.MatMul(net.Relu(net.MatMul("x", net.ints(5, 6))), net.ints(6, 4)))
        assert_same(model, changed(model, FcToConv())[1], *shape)


def test_reshapes_between_layers_cancel() -> None:
    net = Net("batch", 5, opset=13)
    x = net.Relu(net.Gemm("x", net.ints(5, 6), net.ints(6)))
    x = net.LeakyRelu(net.Tanh(net.Gemm(x, net.ints(6, 4))))
    model = net.model(net.Gemm(x, net.ints(4, 3)))
    _, made = changed(model, FcToConv())
    assert ops(made) == ["Reshape", "Conv", "Relu", "Conv", "Tanh", "LeakyRelu", "Conv", "Reshape"]
    assert_same(model, made, 3, 5, exact=False)


def test_what_others_read_keeps_its_shape() -> None:
    """A result that is an output, or that a Concat reads too, is still a matrix."""
    net = Net(3, 5, opset=13)
    first = net.Gemm("x", net.ints(5, 6))
    second = net.Gemm(first, net.ints(6, 4))
    third = net.Concat(first, second, axis=1)
    model = net.model(first, third)
    assert_same(model, changed(model, FcToConv())[1], 3, 5)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda n: n.MatMul("x", n.Transpose("x", perm=[1, 0])), "not-constant"),
        (lambda n: n.MatMul(n.ints(4, 3), n.ints(3, 5)), "not-constant"),
        (lambda n: n.MatMul("x", n.ints(5)), "not-a-matrix"),
        (lambda n: n.MatMul("x", n.ints(2, 5, 4)), "not-a-matrix"),
        (lambda n: n.Gemm("x", n.ints(5, 4), n.ints(3, 4)), "added-matrix"),
        (lambda n: n.Gemm("x", n.ints(5, 4), n.ints(3, 1)), "added-matrix"),
    ],
)
def test_what_is_left_as_it_is(build: Callable[[Net], str], reason: str) -> None:
    net = Net(3, 5, opset=13)
    result, _ = changed(net.model(build(net)), FcToConv())
    assert [site.reason for site in result.sites] == [f"fc-to-conv/{reason}"]


@pytest.mark.parametrize("ones", [1, 2, 3])
@pytest.mark.parametrize(
    "shape", [(3, 5), (2, 3, 5), (2, 2, 3, 5), (5,), ("n", 3, 5), ("n", "m", 5), ("n", 5)], ids=str
)
def test_a_matrix_with_ones_before_it(shape: tuple[int | str, ...], ones: int) -> None:
    net = Net(*shape, opset=13)
    weight = net.const(net.numbers_of(5, 4).reshape(*[1] * ones, 5, 4))
    model = net.model(net.Add(net.ints(4), net.MatMul("x", weight)))
    result, made = changed(model, FcToConv())
    assert [site.outcome for site in result.sites] == ["rewritten"]
    assert "MatMul" not in ops(made)
    fed = [3 if isinstance(size, str) else size for size in shape]
    assert_same(model, made, *fed)


@pytest.mark.parametrize("ones", [0, 1, 2])
@pytest.mark.parametrize(
    "shape", [(5,), (5, 3), (2, 5, 3), (2, 2, 5, 3), (5, "n"), ("n", 5, "m"), ("n", 2, 5, 3), ("n", 5, 3)], ids=str
)
def test_a_constant_on_the_left(shape: tuple[int | str, ...], ones: int) -> None:
    net = Net(*shape, opset=13)
    weight = net.const(net.numbers_of(4, 5).reshape(*[1] * ones, 4, 5))
    model = net.model(net.MatMul(weight, "x"))
    result, made = changed(model, FcToConv())
    if shape == ("n", 5, "m") and ones == 2:
        assert [site.reason for site in result.sites] == ["fc-to-conv/open-shape"]
        return
    assert [site.outcome for site in result.sites] == ["rewritten"]
    assert "MatMul" not in ops(made)
    assert_same(model, made, *(3 if isinstance(size, str) else size for size in shape))


@pytest.mark.parametrize("flags", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
def test_a_gemm_with_its_constant_on_the_left(flags: tuple[int, int]) -> None:
    shape = (3, 5) if flags[1] else (5, 3)
    net = Net(*shape, opset=13)
    weight = net.ints(5, 4) if flags[0] else net.ints(4, 5)
    attrs = {"transA": flags[0], "transB": flags[1], "alpha": 2.0, "beta": 3.0}
    model = net.model(net.Gemm(weight, "x", net.ints(4, 1), **attrs))
    result, made = changed(model, FcToConv())
    assert result.changed
    assert_same(model, made, *shape)
    net = Net(*shape, opset=13)
    weight = net.ints(5, 4) if flags[0] else net.ints(4, 5)
    model = net.model(net.Gemm(weight, "x", net.ints(4, 3), **attrs))
    assert [site.reason for site in changed(model, FcToConv())[0].sites] == ["fc-to-conv/added-matrix"]


def test_columns_and_rows_do_not_mix() -> None:
    """What one layer gives as columns, another reads as rows: as many channels, in another order."""
    net = Net(4, 4, opset=13)
    model = net.model(net.MatMul(net.MatMul(net.ints(4, 4), "x"), net.ints(4, 4)))
    assert_same(model, changed(model, FcToConv())[1], 4, 4)
    net = Net(4, 4, opset=13)
    model = net.model(net.MatMul(net.ints(4, 4), net.MatMul("x", net.ints(4, 4))))
    assert_same(model, changed(model, FcToConv())[1], 4, 4)


def in_a_row(model: onnx.ModelProto) -> int:
    """Reshapes that read what a Reshape gives."""
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    return sum(node.op_type == "Reshape" == made.get(node.input[0]) for node in model.graph.node)


def test_changes_of_shape_between_layers_cancel() -> None:
    """The model's own, with operators on single numbers before, between and behind them."""
    net = Net(2, 6, 5, opset=13)
    x = net.Relu(net.MatMul("x", net.ints(5, 4)))
    x = net.Reshape(net.Neg(net.Reshape(x, net.const([12, 4]))), net.const([3, 4, 4]))
    x = net.Abs(net.MatMul(x, net.ints(4, 3)))
    model = net.model(net.MatMul(net.Squeeze(net.Unsqueeze(x, net.const([0])), net.const([0])), net.ints(3, 4)))
    _, made = changed(model, FcToConv())
    assert ops(made) == ["Reshape", "Conv", "Relu", "Neg", "Conv", "Abs", "Conv", "Reshape"]
    assert_same(model, made, 2, 6, 5)


def test_changes_of_shape_become_one_where_rows_differ() -> None:
    """Rows of 4 become rows of 8: one Reshape."""
    net = Net(2, 6, 5, opset=13)
    x = net.Reshape(net.MatMul("x", net.ints(5, 4)), net.const([0, 3, -1]))
    model = net.model(net.MatMul(x, net.ints(8, 3)))
    _, made = changed(model, FcToConv())
    assert ops(made) == ["Reshape", "Conv", "Reshape", "Conv", "Reshape"]
    assert_same(model, made, 2, 6, 5)


@pytest.mark.parametrize("target", [[0, 0, 2, 2], [0, -1], [2, 6, 4], [-1, 2], [0, 24]], ids=str)
def test_the_reshape_behind_a_layer_takes_its_place(target: list[int]) -> None:
    for first in (2, "n"):
        net = Net(first, 6, 5, opset=13)
        y = net.Reshape(net.MatMul("x", net.ints(5, 4)), net.const(target))
        model = net.model(net.Transpose(y, perm=[1, 0, *range(2, max(2, len(target)))]))
        _, made = changed(model, FcToConv())
        assert in_a_row(made) == int(first == "n" and {0, -1} <= set(target)), "what a 0 keeps is not known"
        assert_same(model, made, 2, 6, 5)


def test_what_others_read_of_a_chain_keeps_its_shape() -> None:
    """An output of the graph, or a second reader, at each place between two layers."""
    for place in range(4):
        for way in ("output", "reader"):
            net = Net(2, 6, 5, opset=13)
            steps = [net.MatMul("x", net.ints(5, 4))]
            steps.append(net.Relu(steps[-1]))
            steps.append(net.Reshape(steps[-1], net.const([3, 4, 4])))
            steps.append(net.Neg(steps[-1]))
            last = net.MatMul(steps[-1], net.ints(4, 3))
            seen = steps[place] if way == "output" else net.ReduceSum(steps[place], net.const([1]))
            model = net.model(seen, last)
            assert_same(model, changed(model, FcToConv())[1], 2, 6, 5)


# Convolutions as matrix products


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 1, 1), (2, 3, 6), (2, 3, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_over_its_whole_map(shape: tuple[int, ...], bias: bool) -> None:
    net = Net(*shape, opset=13)
    model = net.model(net.Relu(net.conv("x", 4, *shape[2:], bias=bias)))
    result, made = changed(model, ConvToFc())
    assert result.changed
    assert "Conv" not in ops(made)
    assert_same(model, made, *shape)


@pytest.mark.parametrize(
    ("attrs", "kernel", "reason"),
    [
        ({}, (3, 4), "slides"),
        ({"pads": [1, 1, 1, 1]}, (4, 5), "slides"),
        ({"strides": [2, 2]}, (3, 4), "slides"),
        ({"dilations": [3, 4]}, (2, 2), "slides"),
    ],
)
def test_a_convolution_that_is_more_than_a_product(attrs: dict, kernel: tuple[int, int], reason: str) -> None:
    net = Net(1, 3, 4, 5, opset=13)
    result, _ = changed(net.model(net.conv("x", 4, *kernel, **attrs)), ConvToFc())
    assert [site.reason for site in result.sites] == [f"conv-to-fc/{reason}"]


def test_groups_and_open_maps() -> None:
    net = Net(1, 4, 3, 3, opset=13)
    result, _ = changed(net.model(net.conv("x", 4, 3, 3, group=2)), ConvToFc())
    assert [site.reason for site in result.sites] == ["conv-to-fc/grouped"]
    net = Net(1, 4, "h", "w", opset=13)
    result, _ = changed(net.model(net.conv("x", 4, 3, 3)), ConvToFc())
    assert [site.reason for site in result.sites] == ["conv-to-fc/open-map"]
    net = Net(1, 4, 3, 3, opset=6)
    result, _ = changed(net.model(net.conv("x", 4, 3, 3)), ConvToFc())
    assert [site.reason for site in result.sites] == ["conv-to-fc/opset"]


# There and back


def attention_block(net: Net, x: str, width: int, tokens: int, heads: int = 2) -> str:
    """Self-attention and a multilayer perceptron, each added to what it reads and normalised."""

    def linear(y: str, inputs: int, outputs: int) -> str:
        weight = net.const(net.rng.standard_normal((inputs, outputs)) / np.sqrt(inputs))
        return str(net.Add(net.MatMul(y, weight), net.const(net.rng.standard_normal(outputs))))

    def split(y: str, *perm: int) -> str:
        return str(net.Transpose(net.Reshape(y, net.const([1, tokens, heads, width // heads])), perm=list(perm)))

    def normal(y: str) -> str:
        return str(net.LayerNormalization(y, net.const(np.ones(width)), net.const(np.zeros(width))))

    q, k, v = (linear(x, width, width) for _ in range(3))
    scores = net.MatMul(split(q, 0, 2, 1, 3), split(k, 0, 2, 3, 1))
    mixed = net.MatMul(net.Softmax(scores, axis=-1), split(v, 0, 2, 1, 3))
    joined = net.Reshape(net.Transpose(mixed, perm=[0, 2, 1, 3]), net.const([1, tokens, width]))
    x = normal(net.Add(x, linear(joined, width, width)))
    return normal(net.Add(x, linear(net.Relu(linear(x, width, 4 * width)), 4 * width, width)))


def test_two_transformer_blocks_there_and_back() -> None:
    net = Net(1, 10, 16, opset=17)
    model = net.model(attention_block(net, attention_block(net, "x", 16, 10), 16, 10))
    there, convolutions = changed(model, FcToConv())
    assert len(there.outcome("rewritten")) == 12  # four projections and two layers, in each
    assert ops(convolutions).count("Conv") == 12
    assert ops(convolutions).count("MatMul") == 4  # of two activations
    assert in_a_row(convolutions) == 0
    assert_same(model, convolutions, 1, 10, 16, exact=False)
    back, products = changed(convolutions, ConvToFc())
    assert len(back.outcome("rewritten")) == 12
    assert "Conv" not in ops(products)
    assert_same(model, products, 1, 10, 16, exact=False)


def test_the_head_of_a_classifier_there_and_back() -> None:
    net = Net(1, 3, 6, 6, opset=13)
    x = net.Flatten(net.Relu(net.conv("x", 4, 3, 3)))
    model = net.model(net.fc(net.Relu(net.fc(x, 8)), 5))
    _, convolutions = changed(model, FcToConv())
    assert ops(convolutions).count("Conv") == 3
    _, products = changed(convolutions, ConvToFc())
    assert ops(products).count("Conv") == 1
    for made in (convolutions, products):
        assert_same(model, made, 1, 3, 6, 6)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_of_the_models_own_is_known_by_its_structure_not_by_its_name(kernel: int) -> None:
    """What another tool called as this pass calls its own has more pixels than one."""
    net = Net(1, 3, 5, 5)
    map_ = net.node("Conv", "x", net.ints(4, 3, kernel, kernel), name="a/fc-to-conv/conv", kernel_shape=[kernel] * 2)
    model = net.model(net.MatMul(net.Reshape(map_, net.const([-1, 4])), net.ints(4, 6)))
    _, made = changed(model, FcToConv())
    assert_same(model, made, 1, 3, 5, 5)
