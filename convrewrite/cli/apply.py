"""``convrewrite apply MODEL IMAGE OUT``: the cells of a fully convolutional model over an image of any size.

convrewrite apply any-size.onnx slide.ome.tif map.zarr --memory 8GB --scale 255
convrewrite apply any-size.onnx s3://bucket/scene.zarr map.tif --top1 --scheduler tcp://10.0.0.1:8786
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convrewrite.cli.options import (
    CHECK,
    MAKE,
    TELL,
    DebugOption,
    Provider,
    QuietOption,
    Size,
    finite,
    parse_size,
)
from convrewrite.cli.words import FLAGS
from convrewrite.errors import UsageError
from convrewrite.text import told

if TYPE_CHECKING:
    from convrewrite.tiling.engine import Tell

IMAGE, RUN = "What the image is", "How it is run"


def _option(metavar: str, panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, metavar=metavar, rich_help_panel=panel, help=text, show_default=False, **more)


def parse_numbers(text: str) -> list[float]:
    """Read `0.5` or `0.485,0.456,0.406`."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no list of numbers; write 0.485,0.456,0.406") from None


def parse_places(text: str) -> list[int]:
    """Read `2,1,0`."""
    if not all(part.isascii() and part.isdecimal() for part in text.split(",")):
        raise typer.BadParameter(f"'{text}' is no list of channels; write 0,1,2")
    return [int(part) for part in text.split(",")]


def register(
    app: typer.Typer, say: Callable[[str], None], progress: Callable[[bool], AbstractContextManager[Any]]
) -> None:
    """Add the command. `say` prints a line for people, `progress` is a bar for them."""

    @app.command()
    def apply(
        model: Annotated[str, typer.Argument(metavar="MODEL", help="A fully convolutional ONNX model.")],
        image: Annotated[str, typer.Argument(metavar="IMAGE", help="A Zarr path or address, TIFF, .npy, PNG, JPEG.")],
        target: Annotated[
            str, typer.Argument(metavar="OUT", help="A Zarr path or address, or .npy, .tif (a pyramid), .png.")
        ],
        layout: Annotated[
            str, _option("HWC|CHW|HW", IMAGE, "Name the axes of the image, where the file and the model leave it open.")
        ] = "",
        array: Annotated[str, _option("NAME", IMAGE, "Choose an array of a Zarr group, or a series of a TIFF.")] = "",
        channels: Annotated[
            Any, _option("0,1,2", IMAGE, "Take these channels, in this order.", parser=parse_places)
        ] = None,
        scale: Annotated[float | None, _option("S", IMAGE, "Divide pixels by S first, such as 255.")] = None,
        mean: Annotated[
            Any, _option("M,...", IMAGE, "Then take off M, one number or one per channel.", parser=parse_numbers)
        ] = None,
        std: Annotated[
            Any, _option("D,...", IMAGE, "Then divide by D, one number or one per channel.", parser=parse_numbers)
        ] = None,
        output: Annotated[
            list[str] | None, _option("NAME", MAKE, "Compute this output of the model; may be given several times.")
        ] = None,
        top1: Annotated[
            bool, typer.Option("--top1", metavar="", rich_help_panel=MAKE, help="Keep the best class of each cell.")
        ] = False,
        chosen: Annotated[int | None, _option("K", MAKE, "Draw this class in a PNG.", "--class", min=0)] = None,
        resume: Annotated[
            bool,
            typer.Option("--resume", metavar="", rich_help_panel=MAKE, help="Go on with what a stopped run has left."),
        ] = False,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", metavar="", rich_help_panel=MAKE, help="Replace an OUT that is there.")
        ] = False,
        memory: Annotated[
            str, _option("4GB", RUN, "Choose tiles such that all processes fit into this; 4GB if left out.")
        ] = "4GB",
        tile: Annotated[
            Size | None, _option("HxW", RUN, "Choose tiles of so many cells instead.", parser=parse_size)
        ] = None,
        workers: Annotated[
            int | None, _option("N", RUN, "Use N processes; one per core, or per GPU, if left out.", min=1)
        ] = None,
        threads: Annotated[int | None, _option("N", RUN, "Give each N threads.", min=1)] = None,
        scheduler: Annotated[str | None, _option("ADDRESS", RUN, "Use the Dask cluster at this address.")] = None,
        provider: Annotated[
            Provider, _option("NAME", RUN, "Run the model on [bold]auto[/], cpu, cuda or tensorrt.")
        ] = Provider.auto,
        check: Annotated[int, _option("N", CHECK, "Compute N random places once more, and compare.", min=0)] = 0,
        original: Annotated[
            str | None, _option("MODEL", CHECK, "With --check, compare with this classifier on their crops.")
        ] = None,
        seed: Annotated[int, _option("N", CHECK, "Draw the places from this seed.", min=0)] = 0,
        max_output_error: Annotated[
            float | None,
            _option("E", CHECK, "Allow max|a-b| / max|b| up to E; 1e-5 if left out.", callback=finite),
        ] = None,
        report: Annotated[str | None, _option("F.json", TELL, "Write what was done as JSON, on failure too.")] = None,
        quiet: QuietOption = False,
        debug: DebugOption = False,
    ) -> None:
        """Compute the class map of an image of any size, tile by tile: what one pass would give, in little memory."""
        from convrewrite.system import atomic
        from convrewrite.text import json_text
        from convrewrite.tiling import How
        from convrewrite.tiling import apply as applied
        from convrewrite.tiling.applying import files

        if original is not None and not check:
            raise UsageError("--original is what --check compares with", remedy="give --check N, too")
        if resume and overwrite:
            raise UsageError("--resume goes on with what --overwrite would delete", remedy="leave one of them out")
        files(model, image, target, original).writing(report=report).check_targets()
        how = How(
            layout,
            array,
            scale,
            None if mean is None else tuple(mean),
            None if std is None else tuple(std),
            None if channels is None else tuple(channels),
            tuple(output or ()),
            top1,
            chosen,
            memory,
            workers,
            threads,
            scheduler,
            provider.value,
            resume,
            overwrite,
            check,
            original,
            seed,
            max_output_error,
            None if tile is None else tuple(tile),
        )
        with progress(quiet) as tell:
            made = told(applied(model, image, target, how, None if tell is None else _telling(tell)), FLAGS)
        if report is not None:
            atomic.write_whole(report, [json_text(made.to_dict()).encode()], ".json")
        if not quiet and not made.finished.failed:
            for line in str(made).splitlines():
                say(line)
        made.check()


def _telling(tell: Callable[[str, int, int], None]) -> Tell:
    """Words for the bar: tiles, and how fast pixels are read."""
    import time

    begin = time.perf_counter()

    def told(done: int, total: int, pixels: float) -> None:
        rate = pixels / max(time.perf_counter() - begin, 1e-9) / 1e6
        tell(f"tiles, {rate:.1f} million pixels per second", done, total)

    return told
