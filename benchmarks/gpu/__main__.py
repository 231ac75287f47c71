"""Every pass on an NVIDIA GPU: verified on the CUDA provider, then timed against the original.

    python -m benchmarks.gpu                              one command; writes benchmarks/results/DEVICE.json
    python -m benchmarks.gpu --passes separable           one pass alone
    python -m benchmarks.gpu --render benchmarks/results/DEVICE.json
    python -m benchmarks.gpu --provider cpu --quick       a rehearsal without a GPU; its file is no result

It needs `convrewrite[cuda]` and a checkout on PYTHONPATH, runs unattended within `--minutes`, and saves what it has
after every measurement; every model of every pass has its share of the time, and what does not fit is left out, and
said to be. Inputs and outputs stay on the device while it times. TF32 is off unless `--tf32` says otherwise;
verification never uses it. Exit code 1 where a model fails its verification or cannot be measured at all, 2 where the
provider is not usable here, 130 after Ctrl-C or where a run that hung was cut off; the file holds what was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import common
from benchmarks.gpu import fcn, groups, separable
from benchmarks.gpu.budget import Budget, at_most
from benchmarks.gpu.device import describe, nvidia_packages, slug
from benchmarks.gpu.table import markdown
from benchmarks.gpu.work import Plan, Work, run
from convrewrite.errors import ConvrewriteError, UsageError
from convrewrite.models import lenet5_path
from convrewrite.running import runtime

SCHEMA = "convrewrite.gpu/1"
RESULTS = Path(__file__).resolve().parent.parent / "results"
PASSES: dict[str, Callable[[bool], Sequence[Work]]] = {
    fcn.NAME: fcn.works,
    separable.NAME: separable.works,
    groups.NAME: groups.works,
}
"""The work of each pass, in the order in which it is done; the argument is whether it is a rehearsal."""
GRACE = 20.0
"""Seconds beyond the time after which even a measurement that hangs is cut off."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    chosen = _parser().parse_args(arguments)
    if chosen.render is not None:
        print(markdown(json.loads(chosen.render.read_text(encoding="utf-8"))))
        return 0
    try:
        works = selected(chosen.passes, chosen.models, chosen.quick)
        provider = runtime.open_session(lenet5_path(), chosen.provider).provider
    except ConvrewriteError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    device = describe(provider)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="convrewrite-gpu-"))
        results = chosen.out or (Path(tempfile.mkdtemp(prefix="convrewrite-rehearsal-")) if chosen.quick else RESULTS)
        results.mkdir(parents=True, exist_ok=True)
        plan = Plan(
            provider=provider,
            tf32=chosen.tf32,
            seconds=0.1 if chosen.quick else chosen.seconds,
            sets=2 if chosen.quick else 5,
            works=works,
            folder=Path(folder),
            target=results / f"{slug(device['name'])}.json",
            budget=Budget(time.monotonic() + 60 * chosen.minutes),
        )
        plan.report = {
            "schema": SCHEMA,
            "rehearsal": chosen.quick,
            "date": chosen.date,
            "provider": provider,
            "tf32": chosen.tf32 and provider != "cpu",
            "device": device,
            "machine": common.machine(),
            "versions": {**common.versions(), **nvidia_packages()},
            "complete": False,
            "models": [],
        }
        with at_most(60 * chosen.minutes + GRACE):
            code = run(plan)
    print(f"written to {plan.target}" + (" (a rehearsal, and no result)" if chosen.quick else ""), file=sys.stderr)
    print(markdown(plan.report))
    return code


def selected(passes: Sequence[str], names: Sequence[str] | None, quick: bool) -> list[Work]:
    """The work on these models, of these passes. Raises UsageError where there is none by such a name."""
    works = [work for name, make in PASSES.items() if name in passes for work in make(quick)]
    known = list(dict.fromkeys(work.model for work in works))
    for name in names or ():
        if name not in known:
            raise UsageError(f"{', '.join(passes)} has no model '{name}'", remedy=f"there are {', '.join(known)}")
    return [work for work in works if not names or work.model in names]


def _passes(text: str) -> list[str]:
    """`fcn,separable`."""
    found = text.split(",")
    for name in found:
        if name not in PASSES:
            raise argparse.ArgumentTypeError(f"there is no pass '{name}'; there are {', '.join(PASSES)}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--provider", choices=("cuda", "tensorrt", "cpu"), default="cuda")
    parser.add_argument("--passes", type=_passes, default=list(PASSES), metavar="P,P", help=f"of {','.join(PASSES)}")
    parser.add_argument("--tf32", action="store_true", help="let CUDA round float32 factors while timing")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: narrow models, few measurements")
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", help="alexnet, resnet18, mobilenet_v1, vgg16, layers, blocks"
    )
    parser.add_argument("--minutes", type=float, default=7.5, help="for everything (default: 7.5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of rounds per measurement (default: 2)")
    parser.add_argument("--date", default="", help="the date to state")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the result (default: benchmarks/results)")
    parser.add_argument("--render", type=Path, metavar="FILE", help="print the tables of a result; measure nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
