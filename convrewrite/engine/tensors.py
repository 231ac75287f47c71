"""What is read of a single tensor or node: its values, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from convrewrite.engine.skeletons import values_of

Shape = tuple[int, ...]


def all_finite(constant: gs.Constant) -> bool:
    """Whether a constant of floating-point numbers holds neither NaN nor infinity; a large one is read in parts."""
    stored = constant._values
    parts = stored.pieces() if hasattr(stored, "pieces") else iter([np.asarray(values_of(constant))])
    return all(bool(np.isfinite(part.sum(dtype=np.float64))) for part in parts if part.dtype.kind == "f")


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes a tensor, or None for graph inputs and initializers."""
    return tensor.inputs[0] if tensor.inputs else None


def subgraphs(node: gs.Node) -> list[gs.Graph]:
    """The subgraphs that a node holds in its attributes (If, Loop, Scan)."""
    values = [v for value in node.attrs.values() for v in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, gs.Graph)]


def subgraph_tensors(node: gs.Node) -> Iterator[gs.Tensor]:
    """Tensors that the subgraphs of a node read from outside of them."""
    for subgraph in subgraphs(node):
        own = {t.name for t in subgraph.inputs} | {t.name for inner in subgraph.nodes for t in inner.outputs}
        read = [t for inner in subgraph.nodes for t in (*inner.inputs, *subgraph_tensors(inner))]
        yield from (t for t in (*read, *subgraph.outputs) if t.name not in own)
