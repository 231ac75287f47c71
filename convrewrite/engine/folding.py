"""Values of tensors that do not depend on a graph's inputs, computed by onnx's reference evaluator, with limits.

    Shape -> Gather -> Concat -> Reshape        the shape folds where the shape of the tensor is known
    ConstantOfShape(3000000000) -> ReduceSum    does not: a file of 16 kB may not take 12 GB

Each node is computed once, for itself, after its size and its work were estimated. What is beyond a limit counts as not
constant, so that a pass declines or refuses as it does at any tensor that depends on the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_dequantize_linear import DequantizeLinear_19

from convrewrite.engine.estimates import Operand, estimate
from convrewrite.engine.operators import chosen
from convrewrite.engine.skeletons import SMALL, elem_type, held_tensor, node_proto, values_of
from convrewrite.engine.tensors import Shape, producer, subgraphs

Array = np.ndarray[Any, Any]

LARGEST = 64 * 2**20
"""Bytes of the results of one node. A tensor that is made of stored weights may be as large as `GROWTH` times these."""

GROWTH = 4
"""Eight-bit weights become float32."""

WORK = 1e8
"""Units of work of one node, about a second in all; see `estimates`."""

WORK_IN_ALL = 20 * WORK
"""Of all the nodes that one `Constants` computes."""

HELD = 8 * LARGEST
"""Bytes of values that are kept or at work at once, beside what the largest node may take."""

VARIES = "varies"
"""Mark of a tensor that depends on an input: no rewrite changes that, so that the next `Constants` need not look."""

RANDOM = chosen("random")


class DequantizeLinear(DequantizeLinear_19):
    """The reference evaluator has this operator from opset 19 only; it means the same from 10 on."""

    op_domain = ""

    def _run(self, *inputs: Any, axis: int = 1, **_: Any) -> Any:
        """`_` holds the attributes that later opsets added."""
        return super()._run(*inputs, axis=axis)  # type: ignore[misc]


@dataclass(frozen=True)
class _Kept:
    """Results of a node, kept at the node: good as long as it reads the same values with the same attributes."""

    read: list[Any]
    attrs: dict[str, Any]
    results: list[Any]

    def fits(self, read: Sequence[Any], attrs: Mapping[str, Any]) -> bool:
        """Whether the node would compute the same again."""
        return (
            len(read) == len(self.read)
            and all(a is b for a, b in zip(read, self.read, strict=True))
            and attrs.keys() == self.attrs.keys()
            and all(value is attrs[name] for name, value in self.attrs.items())
        )


class Constants:
    """Values of the tensors of one graph that do not depend on its inputs, folded only when asked for.

    A tensor that depends on the shape of another but not on its values (Shape, Size) counts as constant where
    `shapes` knows that shape. A tensor beyond the limits of this module counts as not constant.
    """

    def __init__(self, graph: gs.Graph, shapes: Mapping[str, Shape] | None = None) -> None:
        self._opset = graph.opset
        self._shapes = dict(shapes or {})
        self._constant: dict[str, bool] = {}
        self._of_shape: set[str] = set()
        self._values: dict[str, Any] = {}
        self._stored: dict[str, int] = {}
        self._work = WORK_IN_ALL
        self._held = 0

    def value(self, tensor: gs.Tensor | None) -> Array | None:
        """The value of a tensor, or None where it depends on the values of a graph input (or is absent)."""
        if tensor is None or not tensor.name:
            return None
        if isinstance(tensor, gs.Constant):
            return values_of(tensor)
        if tensor.name not in self._values and self._is_constant(tensor):
            self._compute(tensor)
        value = self._values.get(tensor.name)
        return None if value is None else np.asarray(value)

    def learn(self, name: str, shape: Shape) -> None:
        """Take the shape of a tensor that was not known before, and was not asked for."""
        self._shapes[name] = shape

    def depends_on_shape(self, tensor: gs.Tensor) -> bool:
        """Whether a constant tensor was computed from the shape of a tensor that is not constant."""
        return self._is_constant(tensor) and tensor.name in self._of_shape

    def _is_constant(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor is computed from constants and known shapes alone."""
        known, todo, entered = self._constant, [tensor], set[str]()
        while todo:
            current = todo[-1]
            name = current.name
            if isinstance(current, gs.Constant) or not name or name in known:
                todo.pop()
                continue
            node = producer(current)
            anew = node is not None and (bool(subgraphs(node)) or node.op in RANDOM)
            if node is None or anew or (not self._shapes and VARIES in current.__dict__):
                known[name] = False
            elif node.op in ("Shape", "Size"):
                known[name] = node.inputs[0].name in self._shapes
                self._of_shape |= {name} if known[name] else set()
            else:
                read = [t for t in node.inputs if t.name and not isinstance(t, gs.Constant)]
                ahead = [t for t in read if t.name not in known]
                if any(not known.get(t.name, True) for t in read) or (ahead and name in entered):
                    known[name] = False  # a tensor that waits for itself is computed from nothing
                elif ahead:
                    entered.add(name)
                    todo.extend(ahead)
                else:
                    known[name] = True
                    self._of_shape |= {name} if any(t.name in self._of_shape for t in read) else set()
            if not self._shapes and known.get(name) is False:
                current.__dict__[VARIES] = True
        return isinstance(tensor, gs.Constant) or known.get(tensor.name, False)

    def _compute(self, tensor: gs.Tensor) -> None:
        """Compute what a tensor needs, each node once; large values on the way are let go after their last reader."""
        if self._held > HELD // 2:
            self._release([name for name, value in self._values.items() if _bytes(value) > 8 * SMALL])
        nodes = self._needed(tensor)
        readers: dict[str, int] = {}
        for node in nodes:
            for name in {t.name for t in node.inputs}:
                readers[name] = readers.get(name, 0) + 1
        for node in nodes:
            results = self._results(node)
            if results is None:
                self._constant.update((t.name, False) for t in node.outputs)
                self._constant[tensor.name] = False
                return
            for output, value in zip(node.outputs, results, strict=False):
                if output.name:
                    self._values[output.name] = value
                    self._held += _bytes(value)
            for name in {t.name for t in node.inputs}:
                readers[name] -= 1
            done = [t.name for t in node.inputs if not readers[t.name] and t.name in self._values]
            self._release([name for name in dict.fromkeys(done) if _bytes(self._values[name]) > 8 * SMALL])

    def _needed(self, tensor: gs.Tensor) -> list[gs.Node]:
        """The nodes to compute for a constant tensor, each behind those that it reads from."""
        order: list[gs.Node] = []
        done: set[int] = set()
        todo = [(tensor, False)]
        while todo:
            current, leaving = todo.pop()
            node = producer(current)
            if node is None or isinstance(current, gs.Constant) or not current.name or id(node) in done:
                continue
            if leaving:
                done.add(id(node))
                order.append(node)
            elif current.name not in self._values:
                todo.append((current, True))
                if node.op not in ("Shape", "Size"):
                    todo.extend((t, False) for t in node.inputs)
        return order

    def _release(self, names: Sequence[str]) -> None:
        for name in names:
            self._held -= _bytes(self._values.pop(name))

    def _results(self, node: gs.Node) -> list[Any] | None:
        """What a node gives; None where it is beyond a limit, or the reference evaluator cannot tell."""
        if any(not self._constant.get(t.name, True) for t in node.inputs):
            return None
        if node.op in ("Shape", "Size"):
            return [_of_shape(node, self._shapes[node.inputs[0].name])]
        if (held := held_tensor(node)) is not None:
            return [values_of(held)]
        read = [t._values if isinstance(t, gs.Constant) else self._values.get(t.name) for t in node.inputs]
        kept: _Kept | None = node.__dict__.get("folded")
        if kept is not None and kept.fits(read, node.attrs):
            return kept.results
        try:
            results = self._evaluated(node)
        except Exception:  # whatever numpy, the evaluator or shape inference raise: not foldable
            return None
        few = results is not None and all(_bytes(value) <= 8 * SMALL for value in results)
        if few and all(
            isinstance(t, gs.Constant) or _bytes(v) <= 8 * SMALL for t, v in zip(node.inputs, read, strict=True)
        ):
            node.__dict__["folded"] = _Kept(read, dict(node.attrs), list(results or ()))
        return results

    def _evaluated(self, node: gs.Node) -> list[Any] | None:
        """The node alone in the reference evaluator, after a look at what it would take."""
        proto = node_proto(node)
        operands = [self._operand(t) for t in node.inputs]
        stored = max((self._stored_bytes(t) for t in node.inputs), default=0)
        takes = estimate(proto, operands, self._opset)
        limit, share = max(LARGEST, GROWTH * stored), max(1.0, stored / LARGEST)
        if takes is None or takes.bytes > limit or takes.work > WORK * share * GROWTH ** (share > 1):
            return None
        if self._held + takes.bytes > HELD + limit or takes.work > self._work * share:
            return None
        self._work -= takes.work / share
        for output in node.outputs:
            self._stored[output.name] = stored
        feeds = {
            t.name: values_of(t) if isinstance(t, gs.Constant) else self._values[t.name] for t in node.inputs if t.name
        }
        inputs = [onnx.ValueInfoProto(name=name) for name in feeds]
        outputs = [onnx.ValueInfoProto(name=t.name) for t in node.outputs if t.name]
        graph = onnx.helper.make_graph([proto], "constant", inputs, outputs)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self._opset)])
        older: list[type[OpRun]] = [DequantizeLinear] if self._opset < 19 else []
        with np.errstate(all="ignore"):
            found = iter(ReferenceEvaluator(model, new_ops=older).run(None, feeds))
        return [_settled(next(found)) if t.name else None for t in node.outputs]

    def _operand(self, tensor: gs.Tensor) -> Operand | None:
        if not tensor.name:
            return None
        if isinstance(tensor, gs.Constant):
            few = math.prod(tensor.shape) <= SMALL
            return Operand(tuple(tensor.shape), elem_type(tensor.dtype), values_of(tensor) if few else None)
        value = self._values[tensor.name]
        if isinstance(value, list):
            kind = elem_type(value[0].dtype) if value else onnx.TensorProto.FLOAT
            return Operand((sum(part.size for part in value),), kind, sequence=True)
        return Operand(value.shape, elem_type(value.dtype), value if value.size <= SMALL else None)

    def _stored_bytes(self, tensor: gs.Tensor) -> int:
        """Bytes of the largest weights of the file that a tensor is made of."""
        if isinstance(tensor, gs.Constant):
            return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize if not isinstance(tensor.dtype, int) else 0
        return self._stored.get(tensor.name, 0)


def _of_shape(node: gs.Node, shape: Shape) -> Array:
    """What Shape and Size give, without a tensor of that shape."""
    if node.op == "Size":
        return np.asarray(math.prod(shape), np.int64)
    return np.asarray(shape[node.attrs.get("start", 0) : node.attrs.get("end")], np.int64)


def _settled(value: Any) -> Any:
    return [np.asarray(part) for part in value] if isinstance(value, list) else np.asarray(value)


def _bytes(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_bytes, value))
    return int(getattr(value, "nbytes", 0))
