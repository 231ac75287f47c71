"""``convrewrite inspect MODEL``: what a model is made of, and what could be done with it.

convrewrite inspect model.onnx --sort macs --tol 0.05
convrewrite inspect model.onnx --json layers.json
convrewrite inspect model.onnx --toeplitz c1 --size 8x8 --save t.npz
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from convrewrite.cli_options import (
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
from convrewrite.errors import UsageError

if TYPE_CHECKING:
    from convrewrite.inspection import Inspection, Layer
    from convrewrite.inspection.fields import Reach
    from convrewrite.model_io import Model
    from convrewrite.rewrite import Site

NAMES = 40
"""Characters of a name."""

GEOMETRY = ("kernel", "stride", "dilation", "pads", "groups")
HEADER = ("layer", "op", *GEOMETRY, "in", "out", "parameters", "MACs", "share", "receptive field")


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
        from convrewrite import atomic
        from convrewrite.inspection import inspect as look
        from convrewrite.pipeline.files import load

        if save is not None and toeplitz is None:
            raise UsageError("--save keeps the matrix of --toeplitz", remedy="name a layer with --toeplitz")
        for option, target in (("--json", json_), ("--save", save), ("--html", html)):
            if target not in (None, "-"):
                atomic.check_target(str(target), option, [] if source == "-" else [source])
        model = load(source)
        if toeplitz is not None:
            answer(_matrix(model, toeplitz, size, save))
            return
        found = look(model, source, size=size, tol=tol, passes=passes)
        if json_ is not None:
            _write_json(found, json_, answer)
        if html is not None:
            from convrewrite import page

            page.write(page.inspection_view(found, model.graph), html)
        if json_ != "-" and not quiet:
            answer(_lines(found, sort, verbose=verbose))


def _write_json(found: Inspection, target: str, answer: Callable[[list[str]], None]) -> None:
    from convrewrite import atomic

    text = json.dumps(found.to_dict(), indent=2, allow_nan=False)
    if target == "-":
        answer([text])
    else:
        atomic.write_whole(target, [text.encode() + b"\n"], ".json")


def _matrix(model: Model, name: str, size: Size | None, save: str | None) -> list[str]:
    """Build, check and keep the matrix; its size is known, and refused, before that."""
    import io

    import scipy.sparse

    from convrewrite import atomic
    from convrewrite.inspection.matrices import layer_matrix

    layer = layer_matrix(model, name, size)
    matrix = layer.build()
    lines = [str(layer), f"conv(x) = T x to {layer.error(matrix):.1e} of the largest, in ONNX Runtime"]
    density = matrix.nnz / (matrix.shape[0] * matrix.shape[1])
    lines.append(f"{matrix.nnz:,} entries are stored, {density:.2%} of the matrix")
    if matrix.shape[1] <= 16 and matrix.shape[0] <= 40:
        lines += ["  ".join(f"{value:8.4g}" for value in row) for row in matrix.toarray()]
    if save is not None:
        buffer = io.BytesIO()
        scipy.sparse.save_npz(buffer, matrix)
        atomic.write_whole(save, [buffer.getvalue()], ".npz")
        lines.append(f"kept in {save}; read it with scipy.sparse.load_npz")
    return lines


def _lines(found: Inspection, sort: Sort, *, verbose: bool) -> list[str]:
    """The table of the layers, the receptive fields of the outputs, and what the passes would do."""
    from convrewrite.report import columns

    total = found.macs
    layers = [layer for layer in found.layers if verbose or layer.counts]
    keys: dict[Sort, Callable[[Layer], float]] = {
        Sort.order: lambda layer: 0,
        Sort.macs: lambda layer: -(layer.cost.macs or 0),
        Sort.parameters: lambda layer: -layer.cost.parameters,
        Sort.bytes: lambda layer: -(layer.cost.bytes_moved or 0),
        Sort.field: lambda layer: -max(layer.reach.size if layer.reach and layer.reach.axes else (0,)),
    }
    layers.sort(key=keys[sort])
    rows = [HEADER, *(_row(layer, total) for layer in layers)]
    facts = found.file
    at = "" if found.size is None else f" at {_by(found.size)}{', a size that was tried' if found.assumed else ''}"
    lines = [f"{facts.path}: {len(found.layers)} nodes, {facts.parameters:,} parameters, {total:,} MACs{at}", ""]
    lines += columns(rows, right=(9, 10, 11))
    hidden = len(found.layers) - len(layers)
    lines += [f"... and {hidden} without MACs or parameters, shown with --verbose"] if hidden else []
    if found.outputs:
        lines += ["", *columns([("output", "depends on"), *((name, _told(r)) for name, r in found.outputs.items())])]
    if found.sites:
        rows = [("pass", "site", "outcome", ""), *(_site(site) for site in found.sites)]
        lines += ["", *columns(rows)]
    return lines


def _row(layer: Layer, total: int) -> tuple[str, ...]:
    cost, slide = layer.cost, layer.sliding
    shape = ["-" if s is None else _by(s) for s in (layer.input, cost.output)]
    geometry = ["-"] * 4
    if slide is not None:
        even = slide.begin == slide.end
        pads = _by(slide.begin) if even else f"{_by(slide.begin)}, {_by(slide.end)}"
        geometry = [_by(slide.kernel), _by(slide.strides), _by(slide.dilations), pads]
    macs = "?" if cost.macs is None else f"{cost.macs:,}"
    share = "" if not cost.macs or not total else f"{cost.macs / total:.1%}"
    group = "-" if layer.group is None else str(layer.group)
    field = "-" if layer.reach is None else _told(layer.reach)
    return _short(cost.name), cost.op, *geometry, group, *shape, f"{cost.parameters:,}", macs, share, field


def _told(reach: Reach) -> str:
    """A field: its size, how far the next cell's is, and where the first begins."""
    if not reach.axes:
        return f"? ({reach.why})"
    if all(along.dim is None for along in reach.axes):
        return f"{_by(reach.size)} from {_by(reach.offset, ',')}"
    return f"{_by(reach.size)} every {_by(reach.stride)} from {_by(reach.offset, ',')}"


def _site(site: Site) -> tuple[str, str, str, str]:
    """What a pass would do at a place; where it would not, the tolerance that it would take or the reason."""
    saved = ""
    if site.outcome == "rewritten":
        fewer = 1 - site.macs_after / site.macs_before if site.macs_before else 0.0
        saved = f", {fewer:.0%} fewer MACs" if fewer > 0 else ""
        error = f", kernel off by {site.error:.1e}" if site.equivalence == "approximate" else ""
        return site.pass_name, _short(site.anchor), "would rewrite", f"{site.detail}{saved}{error} ({site.equivalence})"
    needs = "" if site.tol_pays is None else f"; pays from --tol {site.tol_pays:.2g}"
    needs += "" if site.tol_halves is None else f", half the MACs from {site.tol_halves:.2g}"
    return site.pass_name, _short(site.anchor), site.outcome, f"{site.detail}{needs} [{site.reason}]"


def _by(extents: Sequence[int], sign: str = "x") -> str:
    return sign.join(map(str, extents))


def _short(name: str) -> str:
    """A name that leaves room beside it."""
    return name if len(name) <= NAMES else f"{name[: NAMES // 2]}...{name[-NAMES // 2 + 3 :]}"
