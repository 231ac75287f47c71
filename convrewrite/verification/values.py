"""Outputs that are no tensors, as tensors: what a comparison of numbers can take.

    seq(map(string, float))    [{"cat": 0.9, "dog": 0.1}, {"cat": 0.3, "dog": 0.7}]
      scores                     [0.9, 0.1, 0.3, 0.7]                          every number, in order
      scores (structure)         ["list 2", "map cat dog", "map cat dog"]      all else: lengths, keys, types, shapes

Sequences, maps and optional values keep their place among the outputs under their own name; their structure is an
output beside it. Two values are equal where the numbers are close and the structures are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convrewrite.running.runtime import Session, TensorInfo

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Flattened:
    """A session whose outputs are all tensors."""

    session: Session

    @property
    def provider(self) -> str:
        """The execution provider of the session."""
        return self.session.provider

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs of the model."""
        return self.session.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """Numbers and structure of each output that is no tensor, and the others as they are."""
        return tuple(part for info in self.session.outputs for part in _parts(info))

    @property
    def nodes(self) -> dict[str, int]:
        """The number of nodes that each provider runs."""
        return self.session.nodes

    @property
    def warning(self) -> str:
        """The warning that the session gave, if any."""
        return self.session.warning

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the model once; `outputs` selects outputs by name."""
        wanted = [info.name for info in self.outputs] if outputs is None else list(outputs)
        owners = {part.name: info.name for info in self.session.outputs for part in _parts(info)}
        values: dict[str, Any] = self.session.run(feeds, list(dict.fromkeys(owners[name] for name in wanted)))
        flat: dict[str, Array] = {}
        for info in self.session.outputs:
            if info.name in values:
                parts = _parts(info)
                flat[info.name] = values[info.name]
                if len(parts) == 2:
                    flat |= zip((part.name for part in parts), flattened(values[info.name]), strict=True)
        return {name: flat[name] for name in wanted}


def all_tensors(session: Session) -> Session | Flattened:
    """The session, with its sequences and maps as tensors where it has some."""
    return session if all(is_tensor(info) for info in session.outputs) else Flattened(session)


def is_tensor(info: TensorInfo) -> bool:
    """Whether an output is a tensor, and not a sequence or map."""
    return info.kind.startswith("tensor(")


def flattened(value: Any) -> tuple[Array, Array]:
    """The numbers of a nested value in the order of its structure [count], and the structure as strings [parts]."""
    leaves = list(_leaves(value))
    numbers = [array.reshape(-1) for _, array in leaves if array is not None]
    structure = np.empty(len(leaves), object)
    structure[:] = [text for text, _ in leaves]
    return (np.concatenate(numbers) if numbers else np.zeros(0, np.float32)), structure


def _leaves(value: Any) -> Iterator[tuple[str, Array | None]]:
    if value is None:
        yield "nothing", None
    elif isinstance(value, Mapping):
        keys = sorted(value)
        yield f"map {' '.join(map(repr, keys))}", None
        for key in keys:
            yield from _leaves(value[key])
    elif isinstance(value, list | tuple):
        yield f"list {len(value)}", None
        for part in value:
            yield from _leaves(part)
    else:
        array = np.asarray(value)
        if array.dtype.kind in "fiub":
            yield f"{array.dtype} {list(array.shape)}", array
        else:
            yield f"{list(array.shape)} {array.tolist()!r}", None


def _parts(info: TensorInfo) -> tuple[TensorInfo, ...]:
    if is_tensor(info):
        return (info,)
    numbers = TensorInfo(info.name, np.dtype(np.float32), (None,), "tensor(float)")
    return numbers, TensorInfo(f"{info.name} (structure)", np.dtype("object"), (None,), "tensor(string)")
