"""Which nodes a rewritten site was, and which it became.

before   pool ── Flatten ── Gemm ── relu          after   pool ── Conv 120 x 16 x 5 x 5 ── relu
                 ^^^^^^^^^^^^^^^                                  ^^^^^^^^^^^^^^^^^^^^^
         gone: no node like it is in the other graph             new

Each node that is gone belongs to the site that it leads to, or else follows; what is new belongs to the site whose
outputs it leads to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from convrewrite.engine.operators import chosen

COLUMN, ROW, BOX, HIGH = 176, 52, 140, 40
"""Pixels: from box to box, and their extents."""

ROWS = 6
"""Boxes above each other; more are only counted."""

COLUMNS = 8
"""Boxes beside each other; more are only counted."""

POOLS = chosen("pool")
WEIGHTED = chosen("convolution transposed-convolution matrix pool")
"""Operators of which more is told than their name."""

SHOWN = 60
"""Sites that are drawn."""


@dataclass(frozen=True)
class Surgery:
    """The nodes of one site, in the order of computation."""

    before: tuple[gs.Node, ...]
    after: tuple[gs.Node, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of both drawings."""
        return {"before": drawing(self.before), "after": drawing(self.after)}


def surgeries(before: gs.Graph, after: gs.Graph, anchors: Sequence[str]) -> dict[str, Surgery]:
    """The nodes of each site, by its anchor; sites whose anchor no node gives are left out."""
    kept = {_key(node) for node in before.nodes} & {_key(node) for node in after.nodes}
    gone = _Part([node for node in before.nodes if _key(node) not in kept])
    new = _Part([node for node in after.nodes if _key(node) not in kept])
    found: dict[str, Surgery] = {}
    for anchor in anchors:
        made = gone.producer.get(anchor)
        if made is None or not gone.is_free(made):
            continue
        old = gone.claim(made, gone.above, stop=anchors) + gone.claim_after(made, anchors)
        ends = [t.name for node in old for t in node.outputs if t.name]
        heads = [node for name in ends for node in new.called(name) if new.is_free(node)]
        stop = {t.name for name in set(anchors) - set(ends) for node in new.called(name) for t in node.outputs}
        fresh = [node for head in heads for node in new.claim(head, new.above, stop)]
        found[anchor] = _trimmed(gone.sorted(old), new.sorted(fresh))
    return found


def _key(node: gs.Node) -> tuple[Any, ...]:
    attrs = tuple(sorted((key, str(value)) for key, value in node.attrs.items() if not isinstance(value, gs.Tensor)))
    return node.op, tuple(t.name for t in node.inputs), tuple(t.name for t in node.outputs), attrs


def _trimmed(before: tuple[gs.Node, ...], after: tuple[gs.Node, ...]) -> Surgery:
    """Without the nodes at the end that are the same but for the names of their tensors."""
    while len(before) > 1 and len(after) > 1 and (before[-1].op, before[-1].name) == (after[-1].op, after[-1].name):
        before, after = before[:-1], after[:-1]
    return Surgery(before, after)


class _Part:
    """Some nodes of a graph, of which each belongs to one site at most."""

    def __init__(self, nodes: Sequence[gs.Node]) -> None:
        self.order = {id(node): place for place, node in enumerate(nodes)}
        self.producer = {t.name: node for node in nodes for t in node.outputs if t.name}
        self.readers: dict[str, list[gs.Node]] = {}
        for node in nodes:
            for tensor in node.inputs:
                self.readers.setdefault(tensor.name, []).append(node)
        self._taken: set[int] = set()
        self._derived: dict[str, list[gs.Node]] = {}
        for name, node in self.producer.items():
            self._derived.setdefault(name.rpartition("/")[0], []).append(node)

    def called(self, name: str) -> list[gs.Node]:
        """What gives the tensor of that name, or one whose name is made from it (`c5/conv`)."""
        return [self.producer[name]] if name in self.producer else self._derived.get(name, [])

    def is_free(self, node: gs.Node) -> bool:
        """Whether no site claims the node."""
        return id(node) not in self._taken

    def above(self, node: gs.Node) -> list[gs.Node]:
        """The nodes whose outputs it reads."""
        return [self.producer[t.name] for t in node.inputs if t.name in self.producer]

    def below(self, node: gs.Node) -> list[gs.Node]:
        """The nodes that read its outputs."""
        return [reader for t in node.outputs for reader in self.readers.get(t.name, [])]

    def claim(self, start: gs.Node, step: Any, stop: Iterable[str]) -> list[gs.Node]:
        """The free nodes that `step` leads to from `start`, itself included, but not through the anchors `stop`."""
        ends, found, todo = set(stop), [], [start]
        while todo:
            node = todo.pop()
            if not self.is_free(node) or (node is not start and any(t.name in ends for t in node.outputs)):
                continue
            self._taken.add(id(node))
            found.append(node)
            todo += step(node)
        return found

    def claim_after(self, start: gs.Node, stop: Iterable[str]) -> list[gs.Node]:
        """The free nodes that follow a node, as far as no anchor does."""
        return [found for node in self.below(start) if not self._anchors(node, stop) for found in self._on(node, stop)]

    def _on(self, node: gs.Node, stop: Iterable[str]) -> list[gs.Node]:
        return self.claim(node, self.below, stop)

    def _anchors(self, node: gs.Node, stop: Iterable[str]) -> bool:
        return any(t.name in set(stop) for t in node.outputs)

    def sorted(self, nodes: Iterable[gs.Node]) -> tuple[gs.Node, ...]:
        """The nodes in the order of computation."""
        return tuple(sorted(nodes, key=lambda node: self.order[id(node)]))


def drawing(nodes: Sequence[gs.Node]) -> dict[str, Any]:
    """Boxes in columns, each right of all that it reads, and the lines between them."""
    column = _columns(nodes)
    rows: dict[int, int] = {}
    boxes: list[dict[str, Any]] = []
    place: dict[str, tuple[int, int]] = {}
    for node in nodes:
        at = column[id(node)]
        row = rows[at] = rows.get(at, -1) + 1
        if row >= ROWS or at >= COLUMNS:
            continue
        x, y = at * COLUMN, row * ROW
        boxes.append({"x": x, "y": y, "op": node.op, "name": node.name or _first(node), "text": described(node)})
        place |= {t.name: (x + BOX, y + HIGH // 2) for t in node.outputs if t.name}
    lines = []
    drawn = {(box["x"], box["y"]): box for box in boxes}
    rows.clear()
    for node in nodes:
        at = column[id(node)]
        row = rows[at] = rows.get(at, -1) + 1
        if (at * COLUMN, row * ROW) in drawn:
            ends = [place[t.name] for t in node.inputs if t.name in place]
            lines += [{"x1": x, "y1": y, "x2": at * COLUMN, "y2": row * ROW + HIGH // 2} for x, y in ends]
    width = max((box["x"] for box in boxes), default=-BOX) + BOX
    height = max((box["y"] for box in boxes), default=-HIGH) + HIGH
    words = ", then ".join(f"{box['op']} {box['text']}".strip() for box in boxes) or "nothing"
    hidden = len(nodes) - len(boxes)
    return {"boxes": boxes, "lines": lines, "width": width, "height": height, "hidden": hidden, "words": words}


def _columns(nodes: Sequence[gs.Node]) -> Mapping[int, int]:
    """For each node the length of the longest path that leads to it."""
    made: dict[str, int] = {}
    found: dict[int, int] = {}
    for node in nodes:
        found[id(node)] = max((made[t.name] + 1 for t in node.inputs if t.name in made), default=0)
        made |= {t.name: found[id(node)] for t in node.outputs if t.name}
    return found


def _first(node: gs.Node) -> str:
    return str(next((t.name for t in node.outputs if t.name), ""))


def described(node: gs.Node) -> str:
    """What a convolution or matrix is made of: its weight, and what is not as usual."""
    shapes = [t.shape for t in node.inputs[1:2] if t.shape is not None]
    if node.op in POOLS:
        shapes = [node.attrs.get("kernel_shape", ())]
    if node.op not in WEIGHTED or not shapes:
        return ""
    parts = [" x ".join(map(str, shapes[0]))]
    group = int(node.attrs.get("group", 1))
    parts += [f"{group} groups"] if group > 1 else []
    strides = node.attrs.get("strides") or []
    parts += [f"/{'x'.join(map(str, strides))}"] if any(step != 1 for step in strides) else []
    dilations = node.attrs.get("dilations") or []
    parts += [f"dil. {'x'.join(map(str, dilations))}"] if any(step != 1 for step in dilations) else []
    return ", ".join(parts)
