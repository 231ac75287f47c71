"""What is said of rewrites that are worth nothing, or less."""

from __future__ import annotations

from dataclasses import replace

from convrewrite.engine.rewrite import Pass, PassResult, Site, option_defaults
from convrewrite.text import counted, parameter

RAISE = f"raise {parameter('tol')}, if the model can bear it"
"""How the remedies begin that are for passes with a tolerance."""

NAMED = 4
"""Layers that a warning names."""


def helpful(site: Site, pass_: Pass) -> Site:
    """The site, whose remedy names no tolerance where the pass takes none."""
    if "tol" in option_defaults(pass_) or not site.remedy.startswith(RAISE):
        return site
    return replace(site, remedy=site.remedy.removeprefix(RAISE).removeprefix("; "))


def dearer(result: PassResult) -> tuple[str, ...]:
    """A line on the layers that have more multiply-accumulates than they had."""
    more = {
        site.anchor: site.macs_after - site.macs_before
        for site in result.outcome("rewritten")
        if site.macs_before is not None and site.macs_after is not None and site.macs_after > site.macs_before
    }
    if not more:
        return ()
    some = ", ".join(f"'{name}' by {count:,}" for name, count in list(more.items())[:NAMED])
    rest = f" and {len(more) - NAMED} more" if len(more) > NAMED else ""
    became = f"{counted(len(more), 'layer')} became dearer, in multiply-accumulates"
    return (f"{became}: {some}{rest}",)
