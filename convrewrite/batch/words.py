"""How the file of settings calls parameters: by its keys, with values as TOML has them."""

from __future__ import annotations

import json
from typing import Any

from convrewrite.text import Call, extents, is_bare

RUN = frozenset({"baseline", "check", "force", "jobs", "markdown", "reports"})
"""Options of the whole run, which are none of the file's: whoever started it calls them as it likes."""


class _Keys:
    """Words of the file."""

    def parameter(self, name: str, value: Any) -> str | None:
        """`size=[224,224]`."""
        if name in RUN:
            return None
        if value is None or (isinstance(value, str) and value.startswith("F.")):
            return name
        return f"{name}={_value(value)}"

    def call(self, call: Call) -> str:
        """What makes a step give the same again: the models in between are gone."""
        given = dict(call.parameters)
        given |= given.pop("fields", {})
        name = call.files[0] if call.name == "transform" else call.name
        named = [self.parameter(name, value) or name for name, value in given.items()]
        return ", ".join([*([] if name in ("verify", "bench") else [f"pass={json.dumps(name)}"]), *named])


KEYS = _Keys()


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}={_value(entry)}' for name, entry in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    found = extents(value)
    if found is not None:
        return found[0] if len(found) == 1 and not isinstance(value, tuple) else f"[{','.join(found)}]"
    return str(value) if is_bare(value) else json.dumps(value)
