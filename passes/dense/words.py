"""What is said of an operator that changes, and how operators are called."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from convrewrite.engine.layers import Sliding
from convrewrite.text import by


def changes(old: Sliding, new: Sliding) -> str:
    """The kernel, and the attributes that change."""
    kernel = f"kernel {by(old.kernel)}"
    parts = [
        f"{word} {by(getattr(old, name))} -> {by(getattr(new, name))}"
        for word, name in (("stride", "strides"), ("dilation", "dilations"), ("pads", "begin"))
        if getattr(old, name) != getattr(new, name)
    ]
    return ", ".join([kernel, *parts])


def label(node: gs.Node) -> str:
    """The operator and the name of a node."""
    return f"{node.op} '{node.name or node.outputs[0].name}'"
