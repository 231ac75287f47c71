"""What the models share that `fcn` leaves alone: how one is listed with its reason, and a net to begin with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx

from helpers import Net

Case = Callable[[], onnx.ModelProto]
Cases = list[tuple[str, str, Case]]


def registers(cases: Cases, code: str, named: str) -> Callable[[Case], Case]:
    """Register a model that must be left alone: the reason's code, and what its detail must name."""

    def register(build: Case) -> Case:
        cases.append((f"fcn/{code}", named, build))
        return build

    return register


def start(*shape: int | str, **options: Any) -> tuple[Net, str]:
    net = Net(*(shape or (1, 2, 9, 12)), **options)
    return net, str(net.conv("x", 3, 3, 3, name="first"))


def classes(net: Net, map_: str, features: int = 210) -> onnx.ModelProto:
    return net.model(net.Gemm(net.Flatten(map_), net.ints(features, 4), net.ints(4), name="fc"))
