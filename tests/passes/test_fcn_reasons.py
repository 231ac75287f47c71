"""Every reason that `fcn` can give, provoked by a model, with the node or tensor that its detail must name."""

from __future__ import annotations

from typing import Any

import pytest
import refused_inputs
import refused_operators
from onnx import numpy_helper
from refused_nets import Case, classes, start

from convrewrite.errors import UsageError
from convrewrite.passes.fcn import Fcn
from convrewrite.passes.fcn.reasons import REASONS
from helpers import convert

CASES = refused_inputs.CASES + refused_operators.CASES


@pytest.mark.parametrize(("code", "named", "build"), CASES, ids=[f"{c[4:]}-{b.__name__}" for c, _, b in CASES])
def test_reason(code: str, named: str, build: Case) -> None:
    result, _ = convert(build())
    assert not result.changed
    (site,) = result.sites
    assert (site.reason, site.outcome) == (code, "declined" if "already" in code else "refused"), site.detail
    assert named in site.detail
    assert site.remedy == REASONS[code].remedy
    assert "\n" not in site.detail


def test_every_reason_is_provoked() -> None:
    assert {code for code, _, _ in CASES} == set(REASONS)


def test_reasons_read_well() -> None:
    for code, reason in REASONS.items():
        assert reason.code == code
        assert reason.meaning
        assert reason.remedy
        assert not reason.remedy.endswith(".")


def test_fixed_map_of_a_matrix_from_a_constant_node() -> None:
    """A constant that varies over the positions is found wherever it comes from."""
    net, map_ = start()
    scale = net.Constant(value=numpy_helper.from_array(net.numbers_of(7, 10)), outputs=["scale"])
    result, _ = convert(classes(net, net.Mul(map_, scale)))
    assert [(s.reason, "scale" in s.detail) for s in result.sites] == [("fcn/position-dependent-constant", True)]


@pytest.mark.parametrize("options", [{"size": (5, 5)}, {"size": (9,)}, {"size": (9, 12, 3)}])
def test_size_that_does_not_fit(options: dict[str, Any]) -> None:
    net, map_ = start()
    with pytest.raises(UsageError, match="size="):
        convert(classes(net, map_), Fcn(**options))


def test_window_of_another_rank() -> None:
    net, map_ = start(1, 2, "h", "w")
    with pytest.raises(UsageError, match="window="):
        convert(net.model(net.fc(net.Flatten(net.GlobalAveragePool(map_)), 4)), Fcn(window=(9,)))
