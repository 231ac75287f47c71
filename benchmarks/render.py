"""Fill the tables of a Markdown file from measured results, so that no figure in it was typed by hand.

    python -m benchmarks.render            README.md, benchmarks/README.md and the documentation
    python -m benchmarks.render FILE ...

Between `<!-- benchmark: NAME -->` and `<!-- end -->` stands the table of `results/NAME.json`. `--check` changes nothing
and exits with 1 where a file is not up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    apply,
    common,
    convert_vgg16,
    dense,
    fcn_vs_windows,
    group_curve,
    groups,
    headlines,
    model_files,
    separable,
    trade_off,
)

RESULTS = Path(__file__).resolve().parent / "results"


def pixel_map(data: dict[str, Any]) -> str:
    """What docs/figures/make_pixel_map.py counted."""
    return f"{data['right']} of the {data['digits']} digits have their own class at their centre."


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    fcn_vs_windows.NAME: fcn_vs_windows.markdown,
    convert_vgg16.NAME: convert_vgg16.markdown,
    apply.NAME: apply.markdown,
    model_files.NAME: model_files.markdown,
    dense.NAME: dense.markdown,
    separable.NAME: separable.markdown,
    trade_off.NAME: trade_off.markdown,
    groups.NAME: groups.markdown,
    group_curve.NAME: group_curve.markdown,
    "pixel_map": pixel_map,
}
BLOCK = re.compile(r"(<!-- benchmark: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOT_YET = "Not measured yet."


def block(name: str, results: Path = RESULTS) -> str:
    """The text between the markers of one benchmark."""
    if name == headlines.NAME:
        return headlines.markdown(results)
    if name not in TABLES:
        raise SystemExit(f"there is no benchmark '{name}'; the ones there are: {', '.join(TABLES)}")
    path = results / f"{name}.json"
    if not path.exists():
        return NOT_YET
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["rehearsal"]:
        raise SystemExit(f"{path.name} is a rehearsal (--quick), and no result")
    return TABLES[name](data)


def filled(text: str, results: Path = RESULTS) -> str:
    """A Markdown text with every block brought up to date."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{block(found['name'], results)}\n\n{found[3]}", text)


def documents() -> list[Path]:
    """The files of this repository that have such a block."""
    found = [common.ROOT / "README.md", common.ROOT / "benchmarks" / "README.md", *(common.ROOT / "docs").rglob("*.md")]
    return sorted(path for path in found if BLOCK.search(path.read_text(encoding="utf-8")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill, or check, each file."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__.partition("\n")[0])
    options.add_argument("files", nargs="*", type=Path, default=documents())
    options.add_argument("--check", action="store_true", help="change nothing; exit 1 where a file is out of date")
    chosen = options.parse_args(arguments)
    stale = 0
    for path in chosen.files:
        text = path.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            stale += 1
            print(f"{path}: {'out of date' if chosen.check else 'updated'}")
            if not chosen.check:
                path.write_text(new, encoding="utf-8")
    return 1 if chosen.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
