"""What a shell offers where a pass or a reason is due; nothing heavy is loaded before that."""

from __future__ import annotations


def passes(incomplete: str) -> list[str]:
    """The passes whose names begin so: those that can be run by their name."""
    from convrewrite import plugins

    own = [name for name, pass_ in plugins.OWN.items() if pass_.step_of is None]
    return [name for name in (*own, *plugins.names()) if name.startswith(incomplete)]


def passes_and_reasons(incomplete: str) -> list[str]:
    """What can be explained."""
    from convrewrite import pipeline, plugins, tiling

    loaded, _ = plugins.load_all()
    codes = [code for code, *_ in pipeline.reasons([one for one in loaded if one.name not in plugins.OWN])]
    names = [one.name for one in loaded] + codes + [reason.code for reason in tiling.REASONS.values()]
    return [name for name in names if name.startswith(incomplete)]
