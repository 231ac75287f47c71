"""Linear layers of low rank, for the tests of `separable`."""

from __future__ import annotations

import numpy as np
import onnx

from nets import Array

F, K, R = 24, 20, 3


def low(rows: int = F, columns: int = K, rank: int = R, seed: int = 0) -> Array:
    """A matrix of that rank, by hand."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# Rank, error and cost, by numpy


def noisy(tol: float) -> Array:
    exact, noise = low(), np.random.default_rng(9).standard_normal((F, K))
    return exact + 0.5 * tol * np.linalg.norm(exact) / np.linalg.norm(noise) * noise
