"""The map that `apply` has made, as a picture with its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convrewrite.page.class_map import LARGEST, OTHER, legend_of, painted, png

OPAQUE = 255


def drawn(name: str, found: Any, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """One output.

    Args:
        found: its `Overview`, None where there is no map of two axes. attributes: what its cells mean.
    """
    if found is None:
        return {"output": name, "why": "there is a picture for maps of two axes only"}
    rows, columns = found.small.shape
    scale = max(1, LARGEST // (2 * max(rows, columns))) if max(rows, columns) < LARGEST else 1
    made = {
        "output": name,
        "cells": list(found.cells),
        "step": found.step,
        "stride": attributes.get("stride"),
        "window": attributes.get("window"),
        "width": columns * scale,
        "height": rows * scale,
        "other": OTHER,
    }
    if not found.counts:  # one value in each cell, and no classes
        finite = found.small[np.isfinite(found.small)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        grey = 255 * (np.nan_to_num(found.small, nan=low) - low) / (high - low or 1.0)
        return {**made, "map": png(grey.astype(np.uint8)), "legend": [], "rest": None, "range": [low, high]}
    counts = {number: count for number, count in found.counts.items() if number >= 0}
    total = sum(found.counts.values())
    legend = legend_of(counts, attributes.get("classes", ()))
    for entry in legend:
        entry |= {"cells": counts[entry["name"]], "share": counts[entry["name"]] / total}
    picture = painted(found.small, legend, OPAQUE)
    picture[found.small < 0] = 0
    without = found.counts.get(-1, 0)
    rest = total - without - sum(entry["cells"] for entry in legend)
    more = {"without": without / total if without else None, "range": None}
    return {**made, **more, "map": png(picture), "legend": legend, "rest": rest / total if rest else None}
