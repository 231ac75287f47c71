"""The chain of convolutions that takes the place of one, with its numbers, and what it amounts to as one kernel.

The factors are stored in the type of the original weight. `reconstruction` is the kernel that the *stored* factors
amount to, as the original Conv would hold it, in front of its BatchNormalization: the rewritten model is verified
against the original with that kernel in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.convsite import rounding, swapped
from convrewrite.engine.graph import maker, names_taken, position, unique_name
from convrewrite.errors import ConvrewriteError
from convrewrite.passes.separable.factors import Array, Factor, Factorization
from convrewrite.passes.separable.matrices import emit_matrices
from convrewrite.passes.separable.placing import placed
from convrewrite.passes.separable.plans import Option
from convrewrite.passes.separable.refine import Moments, Refined, refine
from convrewrite.passes.separable.site import LayerSite

SLACK = 1.02
"""Between the error of a kernel that was foretold and that of the factors that were built."""


@dataclass(frozen=True)
class Replacement:
    """The factors of a site by one option, built when they are first asked for.

    Attributes:
        moments: what the factors are fitted to; None leaves them as the decomposition gives them. tol: bound on the
            error of the kernel.
    """

    site: LayerSite
    option: Option
    moments: Moments | None
    tol: float

    @cached_property
    def _refined(self) -> Refined | None:
        if self.moments is None:
            return None
        start = self.option.decomposition.build(self.option.rank)
        return refine(start, self.site.weight, self.site.group, self.moments, tol=self.tol)

    @cached_property
    def factorization(self) -> Factorization:
        """The factors, rounded to the type they are stored in."""
        exact = (
            self.option.decomposition.build(self.option.rank) if self._refined is None else self._refined.factorization
        )
        return replace(exact, branches=tuple(tuple(map(self._stored, chain)) for chain in exact.branches))

    def _stored(self, factor: Factor) -> Factor:
        return Factor(factor.weight.astype(self.site.dtype).astype(np.float64), factor.group)

    @property
    def errors(self) -> tuple[float, float | None]:
        """Relative errors of the kernel, and of the response where the factors are fitted to it."""
        if self._refined is None:
            return self.option.error, None
        return self._refined.weight_error, self._refined.response_error

    @property
    def shift(self) -> Array | None:
        """What is added to the bias, [O]; None where nothing is."""
        return None if self._refined is None else self._refined.bias_shift

    @property
    def bias(self) -> Array | None:
        """Bias of the chain [O]; None where it has none."""
        if self.shift is None or self.site.bias is None:
            return self.site.bias if self.shift is None else self.shift
        return self.site.bias + self.shift

    def reconstruction(self) -> tuple[Array, Array | None]:
        """(weight, what is added to the bias or None) as the original node would hold them, in its own type.

        Raises:
            ConvrewriteError: it is further from the original's than what is said of it.
        """
        weight, shift, scale = self.factorization.dense(), self.shift, self.site.scale
        self._check(weight)
        if scale is not None:
            inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)
            weight = weight * inverse.reshape(-1, *[1] * (weight.ndim - 1))
            shift = None if shift is None else shift * inverse
        if shift is not None:
            shift = shift if self.site.layer is None else self.site.layer.spread(shift)
            shift = shift.astype(self.site.dtype)
        return self.site.stored(weight), shift

    def _check(self, weight: Array) -> None:
        """Hold the kernel against the original's: what is verified against it could otherwise be any function."""
        true = float(np.linalg.norm(weight - self.site.weight) / np.linalg.norm(self.site.weight))
        stated = self.errors[0]
        if not true <= SLACK * stated + rounding(self.site.dtype):
            what = f"{self.site.op} '{self.site.node}' ({self.option})"
            raise ConvrewriteError(f"the factors of {what} are off by {true:.2e}, not by {stated:.2e}")


def emit(graph: gs.Graph, replacement: Replacement) -> None:
    """Put the chains in the place of the node (and of the BatchNormalization or Add) that they stand for."""
    site, taken = replacement.site, names_taken(graph)
    linear = site.layer is not None
    node = maker(graph, site.anchor)
    # The Add behind a MatMul stays as it is where nothing is added to it.
    end = site.anchor if linear and replacement.shift is None else site.target
    last = maker(graph, end)
    target = last.outputs[0]
    dtype: Any = target.dtype or site.dtype

    def fresh(name: str) -> gs.Variable:
        return gs.Variable(unique_name(name, taken), dtype)

    def constant(name: str, values: Array) -> gs.Constant:
        return gs.Constant(unique_name(name, taken), np.ascontiguousarray(values.astype(site.dtype)))

    if linear:
        weights = [factor.weight for factor in replacement.factorization.branches[0]]
        made = emit_matrices(site, node, weights, replacement.shift, opset=graph.opset, fresh=fresh, constant=constant)
    else:
        made = _branches(replacement, node.inputs[0], graph.opset, fresh, constant=constant)
    where = position(graph, node)
    node.outputs.clear()
    last.outputs.clear()
    made[-1].outputs = [target]
    graph.nodes[where:where] = made
    for old in {id(node): node, id(last): last}.values():
        old.inputs.clear()
        del graph.nodes[position(graph, old)]


def _branches(
    replacement: Replacement,
    data: gs.Tensor,
    opset: int,
    fresh: Callable[[str], gs.Variable],
    constant: Callable[[str, Array], gs.Constant],
) -> list[gs.Node]:
    """The convolutions of all branches, and what adds them; the last node still has no output."""
    site, branches = replacement.site, replacement.factorization.branches
    made: list[gs.Node] = []
    total: gs.Variable | None = None
    for number, chain in enumerate(branches):
        tensor = data
        nodes = placed(site, tuple(factor.stage for factor in chain))
        for place, (factor, node) in enumerate(zip(chain, nodes, strict=True)):
            name = f"{site.node}/separable/{number}.{place}"
            weight = swapped(factor.weight, factor.group) if node.op == "ConvTranspose" else factor.weight
            inputs = [tensor, constant(f"{name}/weight", weight)]
            if place == len(chain) - 1 and number == 0 and replacement.bias is not None:
                inputs.append(constant(f"{name}/bias", replacement.bias))
            tensor = fresh(name)
            made.append(gs.Node(node.op, name, dict(node.attrs), inputs, outputs=[tensor]))
        if total is not None:
            name = f"{site.node}/separable/add.{number}"
            added = fresh(f"{site.node}/separable/sum.{number}")
            made.append(gs.Node("Add" if opset >= 7 else "Sum", name, {}, [total, tensor], outputs=[added]))
            tensor = added
        total = tensor
    made[-1].outputs.clear()
    return made
