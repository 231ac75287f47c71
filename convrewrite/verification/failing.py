"""The case that failed, kept for the next person: one .npz file with its inputs, and what both models made of them.

x, ...                      the inputs, under the names that `data` is read
original/prob, ...          the outputs that differ, as A gave them
rewritten/prob, ...         as B gave them
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convrewrite.system.atomic import discard, publish, refuse_target, temporary_beside, write_durably, write_errors

Array = np.ndarray[Any, Any]


@dataclass
class Failing:
    """The inputs on which the worst failure was seen.

    Attributes:
        inputs: by name. badness: of that failure, in tolerances.
        outputs: (rewritten, original) by output; empty where the rewritten model did not run.
    """

    inputs: Mapping[str, Array]
    badness: float
    outputs: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises UsageError where it cannot be written."""
        path = refuse_target(path)
        arrays = dict(self.inputs)
        for name, (got, want) in self.outputs.items():
            arrays[f"original/{name}"], arrays[f"rewritten/{name}"] = want, got
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:  # numpy.savez reserves some names
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        temporary = temporary_beside(path, ".npz")
        try:
            with write_errors(path):
                write_durably(temporary, [buffer.getvalue()])
                publish(temporary, path)
        finally:
            discard(temporary)
