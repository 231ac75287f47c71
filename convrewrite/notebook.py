"""Results in notebooks: what prints itself as a table is shown as that table."""

from __future__ import annotations

import html


class Printed:
    """Of a class whose `str` is a table."""

    def _repr_html_(self) -> str:
        """What Jupyter shows: the same text, in a fixed font."""
        return f"<pre>{html.escape(str(self))}</pre>"
