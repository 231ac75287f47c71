"""`groups` on random graphs of integers: whatever it does, every output stays the same, bit for bit.

A net is drawn as a list of tensors, each new node reading some of them: planted, dense, dead, grouped and depthwise
convolutions, element-wise operators with vectors and with each other, joins, pools, what stops an order of channels,
and heads. Values are clipped behind every convolution, so that all sums are exact.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from campaigns import campaign
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from convrewrite import model_io
from convrewrite.acceptance import with_kernels
from convrewrite.acceptance.regions import region
from convrewrite.engine import timemodel
from convrewrite.engine.graph import infer_shapes
from convrewrite.engine.rewrite import Declined, Kernels, Plan
from convrewrite.passes.groups import Groups
from groups_nets import assert_equal, conv, ops, planted, rewrite
from helpers import Net

CHANNELS = (4, 6, 8)
SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Drawn:
    """A net under construction: tensors by their channels."""

    def __init__(self, seed: int) -> None:
        self.net = Net(1, 3, 6, 8, seed=seed)
        self.rng = np.random.default_rng(seed)
        self.orders: dict[str, Any] = {}
        first = self.clip(conv(self.net, "x", self.net.numbers_of(8, 3, 1, 1)))
        self.tensors: list[tuple[str, int]] = [(first, 8)]

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def clip(self, x: str) -> str:
        return str(self.net.Clip(x, self.net.const(np.float32(-2)), self.net.const(np.float32(2))))

    def order(self, x: str, count: int) -> Any:
        """An order of channels that belongs to a tensor, so that what reads it may agree with what made it."""
        return self.orders.setdefault(x, self.rng.permutation(count))

    def grow(self) -> None:
        x, count = self.tensors[-1] if self.rng.random() < 0.7 else self.pick(*self.tensors)
        kind = self.pick(
            *"planted planted planted dense dead vector unary residual residual join depthwise stop".split()
        )
        net = self.net
        if kind == "planted":
            made = self.planted(x, count)
        elif kind in ("dense", "dead"):
            out = self.pick(*CHANNELS)
            weight = net.numbers_of(out, count, *self.pick((1, 1), (3, 3)), bound=1)
            if kind == "dead":
                weight[self.rng.random(out) < 0.4] = 0
                weight[:, self.rng.random(count) < 0.4] = 0
            made = self.clip(conv(net, x, weight, bias=self.pick(True, False))), out
        elif kind == "vector":
            form = self.pick("add", "mul", "prelu", "norm")
            if form == "norm":
                vectors = [net.ints(count), net.ints(count), net.ints(count), net.const(np.ones(count))]
                made = self.clip(net.BatchNormalization(x, *vectors, epsilon=0.0)), count
            else:
                op = {"add": net.Add, "mul": net.Mul, "prelu": net.PRelu}[form]
                made = self.clip(op(x, net.ints(count, 1, 1))), count
            self.orders[made[0]] = self.order(x, count)
        elif kind == "unary":
            made = str(self.pick(net.Relu, net.Neg, net.Abs)(x)), count
            self.orders[made[0]] = self.order(x, count)
        elif kind == "residual":
            others = [t for t in self.tensors if t[1] == count]
            made = self.clip(self.pick(net.Add, net.Mul, net.Max)(x, self.pick(*others)[0])), count
            self.orders[made[0]] = self.order(x, count)
        elif kind == "join":
            other, more = self.pick(*self.tensors)
            made = str(net.Concat(x, other, axis=1)), count + more
            self.orders[made[0]] = np.concatenate([self.order(x, count), count + self.order(other, more)])
        elif kind == "depthwise":
            made = self.clip(conv(net, x, net.numbers_of(count, 1, 3, 3, bound=1), group=count)), count
            self.orders[made[0]] = self.order(x, count)
        else:
            begins = [net.const([n]) for n in (0, 1)]
            made = (
                str(
                    net.Concat(
                        net.Slice(x, begins[1], net.const([count]), net.const([1])),
                        net.Slice(x, begins[0], begins[1], net.const([1])),
                        axis=1,
                    )
                ),
                count,
            )
        if made[1] <= 24:
            self.tensors.append(made)

    def planted(self, x: str, count: int) -> tuple[str, int]:
        groups = self.pick(*[g for g in (2, 3, 4) if count % g == 0] or [1])
        out = groups * self.pick(1, 2, 4)
        rows = self.order(x, count) if out == count and self.rng.random() < 0.6 else self.rng.permutation(out)
        shapes = [(out // groups, count // groups)] * groups
        if self.rng.random() < 0.2 and count > 3:
            shapes = [(2, 1), (out, count - 1)]
            out, rows = out + 2, self.rng.permutation(out + 2)
        weight = planted(self.rng, shapes, self.pick((1, 1), (3, 3)), rows, self.order(x, count))
        made = self.clip(conv(self.net, x, weight, bias=self.pick(True, False)))
        self.orders[made] = rows
        return made, out

    def finish(self) -> onnx.ModelProto:
        net = self.net
        x, count = self.tensors[-1]
        head = self.pick("conv", "gemm", "pool", "public", "two")
        ends = [conv(net, x, net.numbers_of(2, count, 1, 1))]
        if head == "gemm":
            ends = [net.fc(net.Flatten(x), 3)]
        elif head == "pool":
            ends = [net.fc(net.Flatten(net.GlobalMaxPool(x)), 3)]
        elif head == "public":
            ends = [x]
        elif head == "two":
            ends.append(self.pick(*self.tensors)[0])
        return net.model(*self.live(dict.fromkeys(ends)))

    def live(self, ends: dict[str, None]) -> list[str]:
        """Leave out what no output needs: there, what stands between two changes may be anything."""
        read, kept = set(ends), []
        for node in reversed(self.net.nodes):
            if read & set(node.output):
                read.update(node.input)
                kept.append(node)
        self.net.nodes = kept[::-1]
        return list(ends)


def drawn(seed: int, length: int) -> onnx.ModelProto:
    net = Drawn(seed)
    for _ in range(length):
        net.grow()
    return net.finish()


def check_region(graph: gs.Graph, plan: Plan) -> Declined | None:
    """The judge that times a plan cuts it out of the graph: both cuts must give the same."""
    given = {t.name: list(t.shape) for t in graph.inputs}
    cut = region(graph, Groups(), plan, infer_shapes(graph, given), 8)
    before, after = (onnx.load_model_from_string(model_io.to_bytes(model)) for model in (cut.before, cut.after))
    for model in (before, after):
        assert ops(model), "something differs"
    assert {o.name for o in before.graph.output} == {o.name for o in after.graph.output}
    assert_equal(before, after)
    return None


@campaign(50, 150)
def test_random_graphs_stay_the_same(examples: int) -> None:
    @settings(SETTINGS, max_examples=examples)
    @given(seed=st.integers(0, 2**32), length=st.integers(2, 9))
    def run_all(seed: int, length: int) -> None:
        model = drawn(seed, length)
        result, made = rewrite(model, judge=check_region)
        event(f"{len(result.outcome('rewritten'))} rewritten")
        for site in result.sites:
            event(site.reason or "rewritten")
        assert_equal(model, made)
        _, again = rewrite(made)
        assert_equal(model, again)

    run_all()


@campaign(20, 60)
def test_random_graphs_with_gathers_stay_the_same(examples: int) -> None:
    """Where nothing but multiplications counts, gathers and convolutions side by side pay for small nets too."""

    @settings(SETTINGS, max_examples=examples)
    @example(seed=8, length=7, into=None)  # one tensor lies in two spaces that both change
    @given(seed=st.integers(0, 2**32), length=st.integers(2, 9), into=st.sampled_from([None, 2]))
    def run_all(seed: int, length: int, into: int | None) -> None:
        model = drawn(seed, length)
        with patch.multiple(timemodel, TRAFFIC=0, BLOCK=1):
            _, made = rewrite(model, Groups(into=into), judge=check_region)
        for op in ("Gather", "Split"):
            event(f"{op}: {op in ops(made)}")
        assert_equal(model, made)

    run_all()


@campaign(33, 100)
def test_random_graphs_within_a_tolerance_are_what_they_say(examples: int) -> None:
    """The original with the kernels that the pass tells is the rewritten net, bit for bit."""

    @settings(SETTINGS, max_examples=examples)
    @example(seed=31, length=7, tol=0.7, dear=False)  # a constant channel went into a bias before
    @given(
        seed=st.integers(0, 2**32), length=st.integers(2, 9), tol=st.sampled_from([0.2, 0.4, 0.7]), dear=st.booleans()
    )
    def run_all(seed: int, length: int, tol: float, dear: bool) -> None:
        model = drawn(seed, length)
        traffic, block = (timemodel.TRAFFIC, timemodel.BLOCK) if dear else (0, 1)
        with patch.multiple(timemodel, TRAFFIC=traffic, BLOCK=block):
            result, made = rewrite(model, Groups(tol=tol))
        kernels = result.evidence_of(Kernels) or Kernels({})
        event(f"{len(kernels.made)} kernels")
        assert set(kernels.made) == {
            site.anchor for site in result.outcome("rewritten") if site.equivalence == "approximate"
        }
        assert all(site.error <= tol for site in result.sites)
        stated = with_kernels(model_io.load(model.SerializeToString()).graph, kernels)
        assert_equal(onnx.load_model_from_string(model_io.to_bytes(model_io.Model(stated, model.ir_version))), made)

    run_all()


@campaign(10, 30)
def test_random_graphs_expand_to_the_same(examples: int) -> None:
    @settings(SETTINGS, max_examples=examples)
    @given(seed=st.integers(0, 2**32), length=st.integers(2, 9), kind=st.sampled_from(["branches", "dense"]))
    def run_all(seed: int, length: int, kind: str) -> None:
        model = drawn(seed, length)
        result, made = rewrite(model, Groups(expand=kind))
        assert {site.outcome for site in result.sites} <= {"rewritten", "declined"}
        assert_equal(model, made)
        assert_equal(model, rewrite(made)[1])

    run_all()
