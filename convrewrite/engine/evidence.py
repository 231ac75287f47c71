"""Facts about a rewrite that verification needs beside the graph: one dataclass for each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from convrewrite.engine.windows import CutTensor, Window

Array = np.ndarray[Any, Any]
Kernel = Callable[[], tuple[Array, Array | None]]
"""Gives the weight of a layer, in the layout of its node, and what is added to its bias, or None."""


@dataclass(frozen=True)
class Evidence:
    """One fact; a plan may carry one of each kind."""

    def joined(self, later: Self) -> Self:
        """What holds of the model after a later plan with evidence of the same kind."""
        return later


@dataclass(frozen=True)
class FixedSize(Evidence):
    """The rewrite holds at the size that the user gave alone, so that the inputs have to be fixed at it."""


@dataclass(frozen=True)
class Kernels(Evidence):
    """What the weights of layers amount to in the rewritten model, so that it can be verified to rounding.

    Attributes:
        made: by the name of the layer's output. Of a Conv or ConvTranspose: its kernel, and what is added to its bias
            [O] or None. Of a Gemm or MatMul: its constant factor, and what is added to its result, shaped for that.
    """

    made: Mapping[str, Kernel]

    def joined(self, later: Self) -> Self:
        """Both; the later one where they name the same layer."""
        return type(self)({**self.made, **later.made})


@dataclass(frozen=True)
class Lifting(Evidence):
    """The model takes images of any size.

    Attributes:
        window: what each cell of its outputs stands for. cut: the tensors between trunk and head.
    """

    window: Window
    cut: tuple[CutTensor, ...]


@dataclass(frozen=True)
class Density(Evidence):
    """The cells of the outputs lie closer together.

    Attributes:
        strides: pixels between them now, by output and spatial axis.
        factors: how many lie where one lay before, by output and dimension; every so many-th is an old one.
    """

    strides: Mapping[str, tuple[int, ...]]
    factors: Mapping[str, Mapping[int, int]]
