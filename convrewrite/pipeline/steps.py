"""Steps that all commands share: checks before any work is done, and the words for what was refused."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from convrewrite import acceptance
from convrewrite.engine.rewrite import BY_PATTERN, Pass, Reason, Site
from convrewrite.errors import ConvrewriteError, Refused, UsageError
from convrewrite.options import RewriteOptions
from convrewrite.running import runtime
from convrewrite.text import parameter
from convrewrite.verification.room import UNVERIFIED

PROBE = '<ir_version: 7, opset_import: ["": 13]> probe (float[1] x) => (float[1] y) { y = Neg(x) }'
"""The smallest model, to see whether a provider runs."""

OTHERWISE = UNVERIFIED
"""What a rewriting command offers where the verification says nothing."""

GENERAL = (
    BY_PATTERN,
    Reason(
        "verify/failed",
        "the rewritten model is not equivalent to the original, so it was not written",
        "repeat it with the command in the message; please report it as a fault, with the model",
    ),
    Reason(
        "verify/vacuous",
        "the outputs did not move between inputs, so that their agreement says nothing",
        f"give real inputs with {parameter('data', 'F.npz')}{UNVERIFIED}",
    ),
    *acceptance.REASONS,
)
"""Reasons that belong to no pass."""


def check_provider(provider: str) -> None:
    """Raise UsageError where a provider that was asked for by name is not usable here, even if nothing will run."""
    if provider in ("cuda", "tensorrt"):
        obtained(provider)


def obtained(provider: str) -> str:
    """What a provider comes to on this machine: "cpu" or "cuda" where it is "auto". Raises UsageError."""
    return runtime.open_session(onnx.parser.parse_model(PROBE).SerializeToString(), provider).provider


def check_patterns(graph: gs.Graph, options: RewriteOptions) -> None:
    """Raise UsageError where `only` matches no name of the graph: a slip of the pen must not look like success."""
    names = [name for node in graph.nodes for name in (node.name, *(tensor.name for tensor in node.outputs)) if name]
    if options.only and not any(fnmatch.filter(names, pattern) for pattern in options.only):
        patterns = " ".join(options.only)
        raise UsageError(f"{parameter('only')} '{patterns}' matches no node and no tensor of the model")


def again(options: RewriteOptions, **between: Any) -> dict[str, Any]:
    """What repeats a rewrite, of the options that every such command takes; `between` comes behind the data."""
    given = {"data": options.data_path if options.data is not None else None, **between}
    given |= {"seed": options.seed, "samples": options.samples, "max_output_error": options.max_output_error}
    given |= {"provider": options.provider if options.provider != "auto" else None}
    return given | {"only": list(options.only) or None, "skip": list(options.skip) or None}


def without_writing(error: ConvrewriteError) -> None:
    """Leave out the offer to write a model unverified, where no model is written."""
    error.remedy = error.remedy and error.remedy.removesuffix(UNVERIFIED)
    error.message = error.message.replace(UNVERIFIED, "")
    error.args = (error.message,)


def refusal(pass_: Pass, site: Site) -> Refused:
    """The error that reports a site's refusal of the model."""
    return Refused(why(pass_, replace(site, remedy="")), reason=site.reason, remedy=site.remedy)


def why(pass_: Pass, site: Site) -> str:
    """Where, what it means, what helps, and the code that `explain` takes."""
    remedy = f"; {site.remedy}" if site.remedy else ""
    return f"{site.detail}: {meaning(pass_, site)} [{site.reason}]{remedy}"


def meaning(pass_: Pass, site: Site) -> str:
    """What the reason of a site means, in one sentence."""
    known = {reason.code: reason for reason in (*pass_.reasons.values(), *GENERAL)}
    return known[site.reason].meaning if site.reason in known else "the pass gives no meaning for its reason"


def reasons(passes: Sequence[type[Pass]] = ()) -> Iterator[tuple[str, str, str]]:
    """Every reason, those of every pass first: code, meaning, remedy. `passes`: those of other packages."""
    from convrewrite.passes import ALL

    for reason in (*(reason for pass_ in (*ALL, *passes) for reason in pass_.reasons.values()), *GENERAL):
        yield reason.code, reason.meaning, reason.remedy
