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
from convrewrite.cli.words import FLAGS
from convrewrite.errors import UsageError
from convrewrite.options import ApplyOptions
from convrewrite.options.kinds import TELL, FilePath, Value, option_class
from convrewrite.text import told as in_words

if TYPE_CHECKING:
    from convrewrite.tiling.engine import Tell


@option_class
class ApplyTellOptions(TellOptions):
    """What `apply` tells: a report of another kind."""

    report: Value[str | None] = FilePath(
        None, "Write what was done as JSON, on failure too.", metavar="F.json", panel=TELL
    )


def register(
    app: typer.Typer, say: Callable[[str], None], progress: Callable[[bool], AbstractContextManager[Any]]
) -> None:
    """Add the command. `say` prints a line for people, `progress` is a bar for them."""

    @declared(app, ApplyOptions, ApplyTellOptions, but=("html", "verbose"))
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
        from convrewrite.text import json_text
        from convrewrite.tiling import apply as applied
        from convrewrite.tiling.applying import files

        options, told = line.options(ApplyOptions), line.options(TellOptions)
        if options.original is not None and not options.check:
            raise UsageError("--original is what --check compares with", remedy="give --check N, too")
        if options.resume and options.overwrite:
            raise UsageError("--resume goes on with what --overwrite would delete", remedy="leave one of them out")
        files(model, image, target, options.original).writing(report=told.report).check_targets()
        with progress(told.quiet) as tell:
            made = applied(model, image, target, options, tell=None if tell is None else _telling(tell))
        made = in_words(made, FLAGS)
        if told.report is not None:
            atomic.write_whole(told.report, [json_text(made.to_dict()).encode()], ".json")
        if not told.quiet and not made.finished.failed:
            for text in str(made).splitlines():
                say(text)
        made.check()


def _telling(tell: Callable[[str, int, int], None]) -> Tell:
    """Words for the bar: tiles, and how fast pixels are read."""
    import time

    begin = time.perf_counter()

    def told(done: int, total: int, pixels: float) -> None:
        rate = pixels / max(time.perf_counter() - begin, 1e-9) / 1e6
        tell(f"tiles, {rate:.1f} million pixels per second", done, total)

    return told
