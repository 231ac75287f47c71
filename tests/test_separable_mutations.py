"""The mutation check of `separable`: faults planted one by one must each be caught before anything is written.

Every fault is tried on a rewrite that is exact, which is verified against the original, and on one with an accepted
error, which is verified against the original with the kernel that the pass claims. Each test first runs the command
without the fault, so that it is the fault that is caught.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from cli_models import call, save, snapshot

from convrewrite.engine.rewrite import Plan
from convrewrite.passes.separable import Separable, site
from convrewrite.passes.separable.branches import Decoupled
from convrewrite.passes.separable.chains import Pair
from convrewrite.passes.separable.factors import Factor, Factorization
from helpers import Array, Net

Patch = Callable[[pytest.MonkeyPatch], None]
Damage = Callable[[list[gs.Node]], None]

NOISE = 0.02
TOL = 0.1


# Models -------------------------------------------------------------------------------------------------------------


def net_of(weight: Array, noise: float, *, norm: bool = False, **attrs: Any) -> onnx.ModelProto:
    """A Conv with a bias, a BatchNormalization if wanted, and a Relu, on a map that is not square."""
    net = Net(1, weight.shape[1] * attrs.get("group", 1), 14, 17, seed=3)
    out = weight.shape[0]
    error = net.rng.standard_normal(weight.shape)
    weight = weight + noise * np.linalg.norm(weight) / np.linalg.norm(error) * error
    y = net.Conv("x", net.const(weight), net.const(net.rng.standard_normal(out)), **attrs)
    if norm:
        values = net.rng.uniform(0.5, 2, out), net.rng.standard_normal(out), net.rng.standard_normal(out)
        y = net.BatchNormalization(y, *map(net.const, (*values, net.rng.uniform(0.5, 2, out))))
    return net.model(net.Relu(y))


def spatial(noise: float, group: int = 1, *, norm: bool = False) -> onnx.ModelProto:
    """3 x 5 of rank 2; both axes have strides, dilated or not, and pads that are not symmetric."""
    rng = np.random.default_rng(0)
    parts = [
        np.einsum("rih,orw->oihw", rng.standard_normal((2, 16, 3)), rng.standard_normal((16, 2, 5)))
        for _ in range(group)
    ]
    more = {"group": group} if group > 1 else {}
    return net_of(np.concatenate(parts) / 16, noise, norm=norm, strides=[2, 3], pads=[1, 2, 0, 1], **more)


def decoupled(noise: float, rank: int = 2) -> onnx.ModelProto:
    """The sum of depthwise and pointwise convolutions."""
    rng = np.random.default_rng(0)
    weight = np.einsum("roi,rihw->oihw", rng.standard_normal((rank, 16, 16)), rng.standard_normal((rank, 16, 5, 5)))
    return net_of(weight / 40, noise, pads=[2, 2, 2, 2])


# Faults in what is written ------------------------------------------------------------------------------------------


def applied(damage: Damage) -> Patch:
    """The pass does what it should, then `damage` gets the nodes that it made."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        original = Separable.apply

        def apply(self: Separable, graph: gs.Graph, plan: Plan) -> None:
            before = {id(node) for node in graph.nodes}
            original(self, graph, plan)
            damage([node for node in graph.nodes if id(node) not in before])

        patch.setattr(Separable, "apply", apply)

    return plant


def dropped_bias(made: list[gs.Node]) -> None:
    (node,) = [node for node in made if len(node.inputs) == 3]
    node.inputs.pop()


def swapped(name: str) -> Damage:
    def damage(made: list[gs.Node]) -> None:
        one, two = made[0].attrs, made[1].attrs
        assert one[name] != two[name]
        one[name], two[name] = two[name], one[name]

    return damage


def lost_group(made: list[gs.Node]) -> None:
    for node in made:
        node.attrs.pop("group")


def first_group_everywhere(made: list[gs.Node]) -> None:
    weight = made[0].inputs[1]
    values = weight.values.copy()
    values[len(values) // 2 :] = values[: len(values) // 2]
    weight.values = values


def same_branch_twice(made: list[gs.Node]) -> None:
    (add,) = [node for node in made if node.op == "Add"]
    add.inputs[1] = add.inputs[0]


def subtracted(made: list[gs.Node]) -> None:
    (add,) = [node for node in made if node.op == "Add"]
    add.op = "Sub"


# Faults in what is computed -----------------------------------------------------------------------------------------


def folded(change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Patch:
    """The BatchNormalization is read wrongly: (output, factor, offset, mean)."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        original = site._normalization

        def normalization(*given: Any) -> Any:
            found = original(*given)
            return None if found is None else change(found)

        patch.setattr(site, "_normalization", normalization)

    return plant


def built(kind: type[Any], damage: Callable[[Factorization], Factorization]) -> Patch:
    """Wrong factors: the kernel that the pass claims is as wrong as what it writes."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        original = kind.build
        patch.setattr(kind, "build", lambda self, rank: damage(original(self, rank)))

    return plant


def reversed_factors(found: Factorization) -> Factorization:
    return replace(found, branches=tuple(tuple(reversed(chain)) for chain in found.branches))


def first_branch_twice(found: Factorization) -> Factorization:
    return replace(found, branches=(found.branches[0],) * len(found.branches))


def scaled(found: Factorization) -> Factorization:
    """By 5 %, which is below the tolerance."""
    (chain,) = found.branches
    return replace(found, branches=((Factor(1.05 * chain[0].weight, chain[0].group), *chain[1:]),))


def mirrored(found: Factorization) -> Factorization:
    """A convolution where ONNX correlates."""
    (chain,) = found.branches
    flipped = (Factor(np.ascontiguousarray(factor.weight[:, :, ::-1, ::-1]), factor.group) for factor in chain)
    return replace(found, branches=(tuple(flipped),))


@dataclass(frozen=True)
class Fault:
    """A fault, a model that shows it (by the noise in its kernel), the form, and the exit codes that are right."""

    plant: Patch
    model: Callable[[float], onnx.ModelProto]
    form: str = "spatial"
    exit_codes: Sequence[int] = (1,)


STOPPED = (1, 70)
"""The contract of `run_pass`, or the check of the kernel, may be sooner than the verification."""

FAULTS = {
    "bias dropped": Fault(applied(dropped_bias), spatial),
    "pads swapped": Fault(applied(swapped("pads")), spatial, exit_codes=STOPPED),
    "strides swapped": Fault(applied(swapped("strides")), spatial, exit_codes=STOPPED),
    "group lost": Fault(applied(lost_group), lambda noise: spatial(noise, 2), exit_codes=STOPPED),
    "first group everywhere": Fault(applied(first_group_everywhere), lambda noise: spatial(noise, 2)),
    "wrong sign of the mean": Fault(folded(lambda f: (*f[:3], -f[3])), lambda noise: spatial(noise, norm=True)),
    "one branch twice": Fault(applied(same_branch_twice), decoupled, "depthwise"),
    "branches subtracted": Fault(applied(subtracted), decoupled, "depthwise"),
    "one branch built twice": Fault(built(Decoupled, first_branch_twice), decoupled, "depthwise", STOPPED),
    "factors swapped": Fault(built(Decoupled, reversed_factors), lambda n: decoupled(n, 1), "depthwise", STOPPED),
    "a factor scaled": Fault(built(Pair, scaled), spatial, exit_codes=STOPPED),
    "a factor mirrored": Fault(built(Pair, mirrored), spatial, exit_codes=STOPPED),
}


@pytest.mark.parametrize("noise", [0.0, NOISE], ids=["exact", "approximate"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(
    name: str, noise: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = FAULTS[name]
    source, target = save(fault.model(noise), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    words = ("separable", source, target, "--tol", repr(TOL if noise else 0.0), "--form", fault.form, "--quiet")
    assert call(monkeypatch, *words) == 0, capsys.readouterr().err
    assert target.read_bytes() != source.read_bytes()
    target.unlink()
    before = snapshot(tmp_path)
    fault.plant(monkeypatch)
    code = call(monkeypatch, *words)
    message = capsys.readouterr().err
    assert code in fault.exit_codes, message
    assert snapshot(tmp_path) == before
    assert ("not equivalent at " in message) == (code == 1), message
