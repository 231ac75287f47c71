"""``convrewrite apply MODEL IMAGE OUT``: the cells of a fully convolutional model over an image of any size.

convrewrite apply any-size.onnx slide.ome.tif map.zarr --memory 8GB --scale 255
convrewrite apply any-size.onnx s3://bucket/scene.zarr map.tif --top1 --scheduler tcp://10.0.0.1:8786
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convrewrite.cli.options import Line, TellOptions, declared
from convrewrite.cli.telling import errors
from convrewrite.cli.words import FLAGS
from convrewrite.errors import UsageError
from convrewrite.options import ApplyOptions
from convrewrite.options.kinds import TELL, FilePath, Value, option_class
from convrewrite.text import told as in_words

if TYPE_CHECKING:
    from convrewrite.tiling.engine import Tell


LABEL = 11
"""Columns of the labels."""


@option_class
class ApplyTellOptions(TellOptions):
    """What `apply` tells: a report of another kind."""

    report: Value[str | None] = FilePath(
        None, "Write what was done as JSON, on failure too.", metavar="F.json", panel=TELL
    )
    html: Value[str | None] = FilePath(None, "Write a page with the map and its classes.", metavar="F.html", panel=TELL)


def register(
    app: typer.Typer, say: Callable[[str], None], progress: Callable[[bool], AbstractContextManager[Any]]
) -> None:
    """Add the command. `say` prints a line for people, `progress` is a bar for them."""

    @declared(app, ApplyOptions, ApplyTellOptions, but=("verbose",))
    def apply(
        model: Annotated[str, typer.Argument(metavar="MODEL", help="A fully convolutional ONNX model.")],
        image: Annotated[str, typer.Argument(metavar="IMAGE", help="A Zarr path or address, TIFF, .npy, PNG, JPEG.")],
        target: Annotated[
            str, typer.Argument(metavar="OUT", help="A Zarr path or address, or .npy, .tif (a pyramid), .png.")
        ],
        line: Line,
    ) -> None:
        """Compute the class map of an image of any size, tile by tile: what one pass would give, in little memory."""
        from convrewrite.system import atomic
        from convrewrite.text import json_text, layout
        from convrewrite.tiling import apply as applied
        from convrewrite.tiling.applying import files

        options, told = line.options(ApplyOptions), line.options(TellOptions)
        if options.original is not None and not options.check:
            raise UsageError("--original is what --check compares with", remedy="give --check N, too")
        if options.resume and options.overwrite:
            raise UsageError("--resume goes on with what --overwrite would delete", remedy="leave one of them out")
        named = files(model, image, target, original=options.original, labels=options.labels)
        named.writing(report=told.report, html=told.html).check_targets()
        with progress(told.quiet) as tell:
            tiles = None if tell is None else _telling(tell)
            made = applied(model, image, target, options, tell=tiles, small=told.html is not None)
        made = in_words(made, FLAGS)
        if told.report is not None:
            atomic.write_whole(told.report, [json_text(made.to_dict()).encode()], ".json")
        if told.html is not None:
            from convrewrite import page

            page.write(page.applied_view(made.to_dict(), dict(made.maps), model=model, image=image), told.html)
        if not told.quiet and not made.finished.failed:
            width = layout.width_of(errors)
            for text in str(made).splitlines():
                layout.show(errors, layout.folded(text, width, " " * LABEL))
        made.check()


def _telling(tell: Callable[[str, int, int], None]) -> Tell:
    """Words for the bar: tiles, and how fast pixels are read."""
    import time

    begin = time.perf_counter()

    def told(done: int, total: int, pixels: float) -> None:
        rate = pixels / max(time.perf_counter() - begin, 1e-9) / 1e6
        tell(f"tiles, {rate:.1f} million pixels per second", done, total)

    return told
