"""``convrewrite inspect MODEL``: what a model is made of, and what could be done with it.

convrewrite inspect model.onnx --sort macs --tol 0.05
convrewrite inspect model.onnx --json layers.json
convrewrite inspect model.onnx --toeplitz c1 --size 8x8 --save t.npz
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from convrewrite.cli.options import (
    CHECK,
    MAKE,
    TELL,
    DebugOption,
    HtmlOption,
    QuietOption,
    Size,
    VerboseOption,
    finite,
    parse_size,
)
from convrewrite.cli.words import FLAGS
from convrewrite.errors import UsageError
from convrewrite.text import told

if TYPE_CHECKING:
    from convrewrite.inspection import Inspection
    from convrewrite.model_io import Model


class Sort(enum.StrEnum):
    """What the layers are sorted by, the largest first."""

    order = "order"
    macs = "macs"
    parameters = "parameters"
    bytes = "bytes"
    field = "field"


def register(app: typer.Typer, answer: Callable[[list[str]], None]) -> None:
    """Add the command; `answer` prints what was asked for."""

    @app.command()
    def inspect(
        source: Annotated[str, typer.Argument(metavar="MODEL", help="The ONNX model; - is standard input.")],
        size: Annotated[
            Size | None,
            typer.Option(
                parser=parse_size,
                metavar="HxW",
                rich_help_panel=MAKE,
                help="Look at it at this size, where the file leaves it open; with --toeplitz, of the layer's input.",
            ),
        ] = None,
        tol: Annotated[
            float,
            typer.Option(
                metavar="T",
                callback=finite,
                rich_help_panel=MAKE,
                help="Ask separable and groups what they would do within this tolerance.",
            ),
        ] = 0.0,
        passes: Annotated[
            bool, typer.Option(metavar="", rich_help_panel=MAKE, help="Ask the passes what they would do.")
        ] = True,
        sort: Annotated[
            Sort,
            typer.Option(
                metavar="BY",
                rich_help_panel=TELL,
                help="List layers by [bold]order[/], macs, parameters, bytes or (receptive) field.",
                show_default=False,
            ),
        ] = Sort.order,
        toeplitz: Annotated[
            str | None,
            typer.Option(
                metavar="LAYER",
                rich_help_panel=CHECK,
                help="Build the doubly block Toeplitz matrix T of one Conv, and check that conv(x) = T x.",
            ),
        ] = None,
        save: Annotated[
            str | None,
            typer.Option(
                metavar="F.npz", rich_help_panel=TELL, help="Keep the matrix of --toeplitz (scipy.sparse.load_npz)."
            ),
        ] = None,
        json_: Annotated[
            str | None,
            typer.Option("--json", metavar="F.json", rich_help_panel=TELL, help="Write it as JSON; - is stdout."),
        ] = None,
        html: HtmlOption = None,
        quiet: QuietOption = False,
        verbose: VerboseOption = False,
        debug: DebugOption = False,
    ) -> None:
        """List the layers of a model with their cost and receptive fields, and what each pass would do."""
        from convrewrite.inspection import inspect as look
        from convrewrite.inspection import table
        from convrewrite.model_io.guards import Files
        from convrewrite.pipeline.files import load
        from convrewrite.running import faults

        if save is not None and toeplitz is None:
            raise UsageError("--save keeps the matrix of --toeplitz", remedy="name a layer with --toeplitz")
        Files({"MODEL": source}).writing(json=json_, save=save, html=html).check_targets()
        model = load(source)
        with faults.blaming([model]):
            if toeplitz is not None:
                answer(_matrix(model, toeplitz, size, save))
                return
            found = told(look(model, source, size=size, tol=tol, passes=passes), FLAGS)
            if json_ is not None:
                _write_json(found, json_, answer)
            if html is not None:
                from convrewrite import page

                page.write(page.inspection_view(found, model.graph), html)
            if json_ != "-" and not quiet:
                answer(table.lines(found, sort.value, FLAGS, verbose=verbose))


def _write_json(found: Inspection, target: str, answer: Callable[[list[str]], None]) -> None:
    from convrewrite.system import atomic
    from convrewrite.text import json_text

    content = json_text(found.to_dict())
    if target == "-":
        answer([content.rstrip()])
    else:
        atomic.write_whole(target, [content.encode()], ".json")


def _matrix(model: Model, name: str, size: Size | None, save: str | None) -> list[str]:
    """Build, check and keep the matrix; its size is known, and refused, before that."""
    import io

    import scipy.sparse

    from convrewrite.inspection.matrices import layer_matrix
    from convrewrite.system import atomic
    from convrewrite.text import terminal

    layer = layer_matrix(model, name, size)
    matrix = layer.build()
    lines = [terminal(str(layer)), f"conv(x) = T x to {layer.error(matrix):.1e} of the largest, in ONNX Runtime"]
    density = matrix.nnz / (matrix.shape[0] * matrix.shape[1])
    lines.append(f"{matrix.nnz:,} entries are stored, {density:.2%} of the matrix")
    if matrix.shape[1] <= 16 and matrix.shape[0] <= 40:
        lines += ["  ".join(f"{value:8.4g}" for value in row) for row in matrix.toarray()]
    if save is not None:
        buffer = io.BytesIO()
        scipy.sparse.save_npz(buffer, matrix)
        atomic.write_whole(save, [buffer.getvalue()], ".npz")
        lines.append(terminal(f"kept in {save}; read it with scipy.sparse.load_npz"))
    return lines
