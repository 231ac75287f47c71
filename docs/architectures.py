"""The table of docs/architectures.md: what each architecture becomes, as the tool finds it on small copies of them.

    python docs/architectures.py            print the table
    python docs/architectures.py --write    put it into architectures.md

Each network is built with seeded weights, a fraction of its channels and a smaller image, and goes through `fcn`,
`fcn` at a finer stride, `separable` and `groups`, verified in ONNX Runtime. What depends on the machine is not in it.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx

from convrewrite import models, pipeline
from convrewrite.options import FcnOptions, TradeOptions
from convrewrite.passes.groups import Groups
from convrewrite.passes.separable import Separable
from convrewrite.pipeline.outcome import Outcome

PAGE = Path(__file__).with_name("architectures.md")
BEGIN, END = "<!-- table -->", "<!-- end -->"

SMALL: dict[str, dict[str, Any]] = {
    "lenet5": {},
    "alexnet": {"width": 0.125, "size": 131},
    "zfnet": {"width": 0.125, "size": 96},
    "audio_cnn": {"width": 0.125, "size": 2000},
    "video_cnn": {"width": 0.0625, "size": 32},
    "segnet": {"width": 0.25, "size": 48},
    "shufflenet": {"width": 0.3, "size": 64},
}
"""Options that make a network small; of the others an eighth of the channels at 64x64."""

TOL = 0.3
"""Tolerance at which `separable` and `groups` are asked."""

LIMIT = 1e-5
"""Largest error of a rewrite that is told as rounding."""


def rows(names: Sequence[str] = models.NAMES) -> Iterator[list[str]]:
    """One row for each architecture."""
    with tempfile.TemporaryDirectory(prefix="convrewrite-") as folder:
        for name in names:
            source = Path(folder, f"{name}.onnx")
            onnx.save(models.build(name, **SMALL.get(name, {"width": 0.125, "size": 64})), source)
            traded = [_traded(source, pass_) for pass_ in (Separable(tol=TOL), Groups(tol=TOL))]
            yield [f"`{name}`", *_converted(source), *traded]


def _converted(source: Path) -> list[str]:
    """What fcn makes of it: the class with its reason, the strides at which it is dense, whether it is verified."""
    target = source.with_name("out.onnx")
    outcome = pipeline.fcn(str(source), str(target), FcnOptions(provider="cpu"))
    if outcome.window is None or outcome.error is not None:
        told = (
            "maps already" if outcome.exit_code == 0 else f"refused, `{outcome.error.reason if outcome.error else ''}`"
        )
        return [told, "-", "-", "-"]
    window = outcome.window
    kind = f"{window.equivalence}: {window.why}" if window.why else window.equivalence
    own = math.gcd(*window.stride)
    strides = [step for step in (1, own // 2) if 1 <= step < own]
    dense = []
    for step in dict.fromkeys(strides):
        made = pipeline.fcn(str(source), str(target), FcnOptions(provider="cpu", stride=step))
        dense.append(f"{step} {_verified(made)}" if made.error is None else f"{step} refused")
    return [kind, str(own), ", ".join(dense), _verified(outcome)]


def _verified(outcome: Outcome) -> str:
    """Verified to rounding, or else what it says."""
    found = outcome.verification
    if found is None:
        return outcome.status
    ran = [case.error for case in found.cases if case.status == "passed" and case.error is not None]
    return "to rounding" if found.verdict == "verified" and max(ran, default=1.0) <= 10 * LIMIT else found.verdict


def _traded(source: Path, pass_: Separable | Groups) -> str:
    """How many layers it rewrites at that tolerance."""
    how = TradeOptions(provider="cpu")
    outcome = pipeline.trade(str(source), str(source.with_name("out.onnx")), pass_, how)
    if outcome.error is not None:
        return f"exit code {outcome.exit_code}"
    done = sum(site.outcome == "rewritten" for site in outcome.sites)
    return f"{done} of {len(outcome.sites)}"


def table() -> str:
    """The table as Markdown."""
    header = ["network", "what a cell is", "stride", "denser", "verified", f"separable at {TOL}", f"groups at {TOL}"]
    lines = [header, ["---"] * len(header), *rows()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def filled(text: str, content: str) -> str:
    """The page with the table between its marks."""
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:begin]}\n\n{content}\n\n{text[end:]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or write it."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--write", action="store_true", help="put it into the page")
    if not options.parse_args(arguments).write:
        print(table())
        return 0
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), table()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
