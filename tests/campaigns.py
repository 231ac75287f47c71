"""Random campaigns: few cases whenever the tests run, all of them where CI asks for the marker `campaign`.

@campaign(50, 150)
def test_random_nets(examples): ...     50 cases by default; `pytest -m campaign` runs 150
"""

from __future__ import annotations

import pytest


def campaign(few: int, many: int, name: str = "examples") -> pytest.MarkDecorator:
    """A test with an argument that says how many cases it draws."""
    return pytest.mark.parametrize(name, [few, pytest.param(many, marks=pytest.mark.campaign)])
