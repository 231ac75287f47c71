"""How much memory a graph takes when it runs, and how much there is; both are estimates, made before anything is run.

Tensors are held from the node that makes them to the last one that reads them. What does not depend on an input is
computed by ONNX Runtime when a session is made, and held as long as the session.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import onnx
import onnx.shape_inference
import onnx_graphsurgeon as gs

from convrewrite.engine.costs import item_sizes
from convrewrite.engine.graph import Shape, infer_shapes, live_nodes, subgraph_tensors
from convrewrite.errors import UsageError

Sizes = Callable[[gs.Tensor], float]

CONSTANTS = 1e9
"""Bytes of computed constants that a graph may have in any case."""

GROWTH = 8
"""Constants may also be so many times what the file stores: eight-bit weights become float32."""


def tensor_bytes(graph: gs.Graph, shapes: Mapping[str, Shape], block: int = 1) -> Sizes:
    """Gives the bytes of a tensor, 0 for stored weights and where the shape is not known.

    Args:
        graph, shapes: of what. block: maps have their channels rounded up to so many.
    """
    sizes = item_sizes(graph)

    def size(tensor: gs.Tensor) -> float:
        if isinstance(tensor, gs.Constant) or tensor.name not in shapes:
            return 0.0
        shape = list(shapes[tensor.name])
        if len(shape) > 3:
            shape[1] = -(-shape[1] // block) * block
        return float(math.prod(shape) * sizes.get(tensor.name, 4))

    return size


def peak(graph: gs.Graph, size: Sizes) -> float:
    """Bytes of the tensors that are held at once while a graph runs; weights apart."""
    nodes = live_nodes(graph)
    last = {t.name: place for place, node in enumerate(nodes) for t in (*node.inputs, *subgraph_tensors(node))}
    last |= {tensor.name: len(nodes) for tensor in graph.outputs}
    ends: dict[int, list[str]] = {}
    for name, place in last.items():
        ends.setdefault(place, []).append(name)
    held = {t.name: size(t) for t in graph.inputs}
    now = most = sum(held.values())
    for place, node in enumerate(nodes):
        for tensor in node.outputs:
            now += size(tensor) - held.get(tensor.name, 0.0)
            held[tensor.name] = size(tensor)
        most = max(most, now)
        gone = [*ends.get(place, ()), *(t.name for t in node.outputs if t.name not in last)]
        now -= sum(held.pop(name, 0.0) for name in gone)
    return most


def stored(graph: gs.Graph) -> float:
    """Bytes of the weights that a graph stores, 4 for each number."""
    found = {id(t): t for node in graph.nodes for t in node.inputs if isinstance(t, gs.Constant)}
    return float(sum(4 * math.prod(tensor.shape) for tensor in found.values()))


def computed_constants(graph: gs.Graph, size: Sizes) -> dict[str, float]:
    """Bytes of each tensor that is computed from stored constants alone, the largest first."""
    moving = {tensor.name for tensor in graph.inputs}
    found: dict[str, float] = {}
    for node in graph.nodes:
        names = [t.name for t in node.outputs if t.name]
        if any(t.name in moving for t in (*node.inputs, *subgraph_tensors(node))):
            moving.update(names)
        elif node.op != "Constant":
            found.update((t.name, size(t)) for t in node.outputs if t.name)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def check_constants(graph: gs.Graph, remedy: str = "store their result in the model") -> None:
    """Raise UsageError where what a graph computes from its constants is beyond what it stores, or what there is.

    ONNX Runtime computes such constants when a session is made, whatever their size.
    """
    if not computed_constants(graph, lambda tensor: 0.0):
        return
    try:
        shapes = infer_shapes(graph, {})
    except (onnx.shape_inference.InferenceError, ValueError, TypeError):
        return  # whoever runs it says what is wrong
    found = computed_constants(graph, tensor_bytes(graph, shapes))
    size = sum(found.values())
    if size > max(CONSTANTS, GROWTH * stored(graph)) or size > available():
        name = next(iter(found))
        raise UsageError(
            f"the model cannot be run: its constants expand to {gigabytes(size)}, '{name}' to {gigabytes(found[name])}",
            remedy=remedy,
        )


def available() -> float:
    """Bytes that this process may still take: of the machine, of its control group, of its own limits."""
    return min(_limits(), default=math.inf)


def _limits() -> Iterator[float]:
    with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        yield 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    for most, now in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: there is no limit
            yield float(int(Path(most).read_text(encoding="ascii")) - _without_cache(Path(now)))
    if sys.platform != "win32":
        import resource

        with contextlib.suppress(OSError, ValueError, IndexError):
            used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
            soft = resource.getrlimit(resource.RLIMIT_AS)[0]
            if soft != resource.RLIM_INFINITY:
                yield float(soft - used)


def _without_cache(usage: Path) -> int:
    """What a control group uses, without the pages of files that it would give back."""
    used = int(usage.read_text(encoding="ascii"))
    with contextlib.suppress(OSError, ValueError):
        rows = (line.split() for line in (usage.parent / "memory.stat").read_text(encoding="ascii").splitlines())
        used -= sum(int(row[1]) for row in rows if row[0] == "inactive_file")
    return used


def gigabytes(amount: float) -> str:
    """A number of bytes as text, such as "9.7 GB"."""
    return f"{amount / 1e9:.1f} GB"
