"""Sessions that live for one run each, where the memory is too short to keep several of a large model."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from convrewrite.running.runtime import Array, Session, TensorInfo
from convrewrite.verification.values import Flattened

_wanted = contextvars.ContextVar("sessions_on_demand", default=False)


@dataclass(frozen=True)
class OnDemand:
    """A model that is opened for each run, and closed behind it; a `Runner`."""

    provider: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    nodes: dict[str, int]
    warning: str
    _open: Callable[[], Session | Flattened]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; `outputs` picks some by name. Raises RunFailed."""
        return self._open().run(feeds, outputs)


@contextlib.contextmanager
def on_demand(wanted: bool = True) -> Iterator[None]:
    """Keep no session of a specimen that is opened inside."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def opened(make: Callable[[], Session | Flattened]) -> Session | Flattened | OnDemand:
    """A session; where they are wanted on demand, what opens it for each run."""
    session = make()
    if not _wanted.get():
        return session
    return OnDemand(
        session.provider, session.inputs, session.outputs, nodes=session.nodes, warning=session.warning, _open=make
    )
