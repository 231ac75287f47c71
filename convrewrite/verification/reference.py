"""The original in onnx's own reference evaluator, for the reference "onnx": slow, with no code of ONNX Runtime in it.

Where ONNX Runtime itself has a fault, both models would show it and agree. The evaluator is the standard's text in
numpy: it says what is right, while the noise still is ONNX Runtime's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from convrewrite.errors import UsageError
from convrewrite.running.runtime import TensorInfo, one_line
from convrewrite.text import parameter
from convrewrite.verification import exposure
from convrewrite.verification.specimens import Array, Specimen


@dataclass(frozen=True)
class Evaluator:
    """A model that onnx's ReferenceEvaluator runs; a `Runner`."""

    label: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    _evaluator: Any
    provider: str = "onnx"
    warning: str = ""

    @property
    def nodes(self) -> dict[str, int]:
        """An empty mapping, since no node runs on a provider."""
        return {}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """All outputs. Raises UsageError where an operator is missing."""
        names = list(outputs) if outputs is not None else list(self._evaluator.output_names)
        try:
            with np.errstate(all="ignore"):
                values = self._evaluator.run(names, dict(feeds))
        except Exception as error:  # whatever numpy or an operator raises
            raise _unable(self.label, error) from None
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def open_reference(original: Specimen) -> Specimen:
    """The same model, with the same probes, in the reference evaluator. Raises UsageError where it cannot run it."""
    try:
        model = onnx.load(original.path)
        probes = exposure.add_probes(model) if original.probes else ()
        evaluator = ReferenceEvaluator(model)
    except Exception as error:
        raise _unable(original.path, error) from None
    session = original.session
    runner = Evaluator(original.path, session.inputs, session.outputs, evaluator)
    return Specimen(
        path=original.path,
        outputs=original.outputs,
        probes=probes,
        unprobed=original.unprobed,
        moving=original.moving,
        _plain=None,
        _probed=runner,
    )


def _unable(path: str, error: Exception) -> UsageError:
    text = one_line(error) or type(error).__name__
    return UsageError(
        f"onnx's reference evaluator cannot run {path}: {text}", remedy=f"leave {parameter('reference', 'onnx')} out"
    )
