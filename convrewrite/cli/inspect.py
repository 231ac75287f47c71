"""``convrewrite inspect MODEL``: what a model is made of, and what could be done with it.

convrewrite inspect model.onnx --sort macs --tol 0.05
convrewrite inspect model.onnx --json layers.json
convrewrite inspect model.onnx --toeplitz c1 --size 8x8 --save t.npz
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from convrewrite.cli.options import Line, TellOptions, declared
from convrewrite.cli.telling import results
from convrewrite.cli.words import FLAGS
from convrewrite.errors import UsageError
from convrewrite.options import InspectOptions
from convrewrite.text import told as in_words

if TYPE_CHECKING:
    from convrewrite.inspection import Inspection
    from convrewrite.model_io import Model


def register(app: typer.Typer, answer: Callable[[list[str]], None]) -> None:
    """Add the command; `answer` prints what was asked for."""

    @declared(app, InspectOptions, TellOptions, but=("report",))
    def inspect(
        source: Annotated[str, typer.Argument(metavar="MODEL", help="The ONNX model; - is standard input.")],
        line: Line,
    ) -> None:
        """List the layers of a model with their cost and receptive fields, and what each pass would do."""
        from convrewrite.inspection import inspect as look
        from convrewrite.inspection import table
        from convrewrite.model_io.guards import Files
        from convrewrite.pipeline.files import load
        from convrewrite.running import faults
        from convrewrite.system.streams import refuse_closed_output
        from convrewrite.text import layout

        options, told = line.options(InspectOptions), line.options(TellOptions)
        if options.save is not None and options.toeplitz is None:
            raise UsageError("--save keeps the matrix of --toeplitz", remedy="name a layer with --toeplitz")
        files = Files({"MODEL": source}).writing(json=options.json, save=options.save, html=told.html)
        files.check_targets()
        model = load(source)
        with faults.blaming([model]):
            if options.toeplitz is not None:
                answer(_matrix(model, options.toeplitz, options.size, options.save))
                return
            found = in_words(look(model, source, options), FLAGS)
            if options.json is not None:
                _write_json(found, options.json, answer)
            if told.html is not None:
                from convrewrite import page

                page.write(page.inspection_view(found, model.graph), told.html)
            if options.json != "-" and not told.quiet:
                refuse_closed_output()
                width = layout.width_of(results)
                layout.show(results, table.lines(found, options.sort, FLAGS, verbose=told.verbose, width=width))


def _write_json(found: Inspection, target: str, answer: Callable[[list[str]], None]) -> None:
    from convrewrite.system import atomic
    from convrewrite.text import json_text

    content = json_text(found.to_dict())
    if target == "-":
        answer([content.rstrip()])
    else:
        atomic.write_whole(target, [content.encode()], ".json")


def _matrix(model: Model, name: str, size: tuple[int, ...] | None, save: str | None) -> list[str]:
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
