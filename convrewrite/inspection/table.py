"""An inspection, and its text: the layers, the receptive fields of the outputs, and what the passes would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from convrewrite.engine import costs
from convrewrite.engine.costs import LayerCost
from convrewrite.engine.fields import ReceptiveField
from convrewrite.engine.layers import Sliding
from convrewrite.engine.rewrite import Site
from convrewrite.inspection import heads
from convrewrite.pipeline.outcome import FileFacts
from convrewrite.text import PYTHON, Printed, Words, by, counted, enough, parameter, short, terminal
from convrewrite.text import told as in_words
from convrewrite.text.layout import Table, folded

SCHEMA = "convrewrite.inspection/1"

Shape = tuple[int, ...]

NAMES = 40
"""Characters of a name."""

GEOMETRY = ("kernel", "stride", "dilation", "pads", "groups")
SPARE = (5, 7, 4, 6, 1, 3, 2, 8)
"""Columns of the table of layers that a narrow terminal does without, the first one first."""

HEADER = ("layer", "op", *GEOMETRY, "in", "out", "parameters", "MACs", "share", "receptive field")


@dataclass(frozen=True)
class Layer:
    """One node.

    Attributes:
        cost: its MACs, parameters, bytes moved and output shape. input: shape of what it reads first.
        sliding: kernel, stride, dilation and pads, one entry per spatial axis, of a convolution or pool.
        group: of a convolution. reach: receptive field of its first output, where it depends on the image.
    """

    cost: LayerCost
    input: Shape | None = None
    sliding: Sliding | None = None
    group: int | None = None
    reach: ReceptiveField | None = None

    @property
    def counts(self) -> bool:
        """Whether the layer has multiply-accumulates, parameters or a sliding window."""
        return self.cost.macs != 0 or self.cost.parameters > 0 or self.sliding is not None

    def to_dict(self, total: int) -> dict[str, Any]:
        """The layer as JSON has it; `share` of `total` MACs."""
        cost, slide, reach = self.cost, self.sliding, self.reach
        return {
            "name": cost.name,
            "op": cost.op,
            "kernel": None if slide is None else list(slide.kernel),
            "stride": None if slide is None else list(slide.strides),
            "dilation": None if slide is None else list(slide.dilations),
            "pads": None if slide is None else [*slide.begin, *slide.end],
            "group": self.group,
            "input": None if self.input is None else list(self.input),
            "output": None if cost.output is None else list(cost.output),
            "parameters": cost.parameters,
            "macs": cost.macs,
            "share": None if cost.macs is None or not total else cost.macs / total,
            "bytes_moved": cost.bytes_moved,
            "receptive_field": None if reach is None else reach.to_dict(),
        }


@dataclass(frozen=True)
class Inspection(Printed):
    """What is known of a model; it prints itself as the table of the command.

    Attributes:
        file: path, hash, bytes, parameters and MACs. size: at which it was looked at, where the file leaves it open.
        assumed: nobody gave that size. image: name of the image input, if there is one.
        layers: every node, in the file's order. outputs: receptive field by output that depends on the image.
        uncounted: how many subgraphs have layers whose MACs are not counted.
        needs_size: the file leaves the size open, and none was given or found at which it runs.
        sites: what each pass would do, or why it would not. head: the maps that a classifier's head reads, and its
            operators; None where there is none.
    """

    file: FileFacts
    size: Shape | None
    assumed: bool
    image: str | None
    layers: tuple[Layer, ...]
    outputs: dict[str, ReceptiveField]
    sites: tuple[Site, ...]
    head: dict[str, Any] | None = None
    uncounted: int = 0
    needs_size: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers whose shapes are known."""
        return sum(layer.cost.macs or 0 for layer in self.layers)

    def __str__(self) -> str:
        return "\n".join(line.plain for line in lines(self))

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "schema": SCHEMA,
            "file": self.file.to_dict(),
            "size": None if self.size is None else list(self.size),
            "size_assumed": self.assumed,
            "image": self.image,
            "layers": [layer.to_dict(self.macs) for layer in self.layers],
            "head": self.head,
            "outputs": {name: reach.to_dict() for name, reach in self.outputs.items()},
            "sites": [site.to_dict() for site in self.sites],
        }


def lines(
    found: Inspection, sort: str = "order", words: Words = PYTHON, *, verbose: bool = False, width: int = 0
) -> list[Text]:
    """The table of the layers, the receptive fields of the outputs, and what the passes would do, in these words.

    In at most `width` columns, where that is not 0.
    """
    found = in_words(found, words)
    layers = [layer for layer in found.layers if verbose or layer.counts]
    keys: dict[str, Callable[[Layer], float]] = {
        "order": lambda layer: 0,
        "macs": lambda layer: -(layer.cost.macs or 0),
        "parameters": lambda layer: -layer.cost.parameters,
        "bytes": lambda layer: -(layer.cost.bytes_moved or 0),
        "field": lambda layer: -max(layer.reach.size if layer.reach and layer.reach.axes else (0,)),
    }
    layers.sort(key=keys[sort])
    facts = found.file
    at = "" if found.size is None else f" at {by(found.size)}{', a size that was tried' if found.assumed else ''}"
    counts = [counted(len(found.layers), "node"), counted(facts.parameters, "parameter"), _macs(found)]
    told: list[str | Table] = [f"{facts.path}: {', '.join(counts)}{at}"]
    left = costs.told_uncounted(found.uncounted)
    told += [f"{left}: it is not known how often they run", ""] if left else [""]
    told += _layers(layers, found.macs, width)
    hidden = len(found.layers) - len(layers)
    told += [f"... and {hidden} without MACs or parameters, shown with {parameter('verbose')}"] if hidden else []
    told += ["", f"head  {heads.told(found.head)}"] if found.head else []
    if found.outputs:
        rows = [("output", "depends on"), *((name, _told(r)) for name, r in found.outputs.items())]
        told += ["", Table(rows, folds={0: 16, 1: 24})]
    if found.sites:
        sites = [("pass", "site", "outcome", ""), *(_site(site) for site in found.sites)]
        told += ["", Table(in_words(sites, words), folds={0: 9, 1: 12, 3: 30}, verdict=2)]
    made: list[Text] = []
    for part in told:
        if isinstance(part, Table):
            made += part.lines(width)
        else:
            made += map(Text, folded(terminal(in_words(part, words)), width))
    return made


def _layers(layers: Sequence[Layer], total: int, width: int) -> list[str | Table]:
    """The table of the layers; where it is too wide, in short numbers, and without what matters least."""
    table = Table([HEADER, *(_row(layer, total) for layer in layers)], right=(9, 10, 11))
    if not width or max(line.cell_len for line in table.lines()) <= width:
        return [table]
    rows = [(*HEADER[:9], "params", "MACs", "share", "field"), *(_short_row(layer, total) for layer in layers)]
    plain = [i for i in (4, 6, 5) if {row[i] for row in rows[1:]} <= {"-", "1", "1x1", "0x0", "1x1x1", "0x0x0", "0"}]
    table = Table(rows, right=(9, 10, 11), folds={0: 12}, spare=[*plain, *(i for i in SPARE if i not in plain)])
    gone = [name for name in table.dropped(width) if HEADER.index(name) not in plain] if table.spare else []
    whole = f"{parameter('json', 'F.json')} and {parameter('html', 'F.html')} show all"
    return [table, *([f"left out at this width: {', '.join(gone)}; {whole}"] if gone else [])]


def _macs(found: Inspection) -> str:
    """The sum; a layer of unknown MACs is no layer without any."""
    unknown = sum(layer.cost.macs is None and layer.cost.op in costs.WEIGHTED for layer in found.layers)
    if unknown and not found.macs:
        return f"MACs unknown; give {parameter('size')}" if found.needs_size else "MACs unknown"
    without = f" without those of {counted(unknown, 'layer')} of unknown shape" if unknown else ""
    remedy = f"; give {parameter('size')}" if unknown and found.needs_size else ""
    outside = " outside of subgraphs" if found.uncounted else ""
    return f"{counted(found.macs, 'MAC')}{outside}{without}{remedy}"


def _row(layer: Layer, total: int) -> tuple[str, ...]:
    cost, slide = layer.cost, layer.sliding
    shape = ["-" if s is None else by(s) for s in (layer.input, cost.output)]
    geometry = ["-"] * 4
    if slide is not None:
        even = slide.begin == slide.end
        pads = by(slide.begin) if even else f"{by(slide.begin)}, {by(slide.end)}"
        geometry = [by(slide.kernel), by(slide.strides), by(slide.dilations), pads]
    macs = "?" if cost.macs is None else f"{cost.macs:,}"
    share = "" if not cost.macs or not total else f"{cost.macs / total:.1%}"
    group = "-" if layer.group is None else str(layer.group)
    field = "-" if layer.reach is None else _told(layer.reach)
    return _short(cost.name), cost.op, *geometry, group, *shape, f"{cost.parameters:,}", macs, share, field


def _short_row(layer: Layer, total: int) -> tuple[str, ...]:
    cost, reach = layer.cost, layer.reach
    field = "-" if reach is None else by(reach.size) if reach.axes else "?"
    macs = "?" if cost.macs is None else short(cost.macs)
    *told, _, _, share, _ = _row(layer, total)
    return *told, short(cost.parameters), macs, share, field


def _told(reach: ReceptiveField) -> str:
    """A field: its size, how far the next cell's is, and where the first begins."""
    if not reach.axes:
        return f"? ({reach.why})"
    if all(along.dim is None for along in reach.axes):
        return f"{by(reach.size)} from {by(reach.offset, ',')}"
    return f"{by(reach.size)} every {by(reach.stride)} from {by(reach.offset, ',')}"


def _site(site: Site) -> tuple[str, str, str, str]:
    """What a pass would do at a place; where it would not, the tolerance that it would take or the reason."""
    saved = ""
    if site.outcome == "rewritten":
        fewer = 1 - (site.macs_after or 0) / site.macs_before if site.macs_before else 0.0
        saved = f", {fewer:.0%} fewer MACs" if fewer > 0 else ""
        error = f", kernel off by {site.error:.1e}" if site.equivalence == "approximate" else ""
        return site.pass_name, _short(site.anchor), "would rewrite", f"{site.detail}{saved}{error} ({site.equivalence})"
    needs = "" if site.tol_pays is None else f"; pays from {parameter('tol', enough(site.tol_pays))}"
    needs += "" if site.tol_halves is None else f", half the MACs from {enough(site.tol_halves)}"
    return site.pass_name, _short(site.anchor), site.outcome, f"{site.detail}{needs} [{site.reason}]"


def _short(name: str) -> str:
    """A name that leaves room beside it."""
    return name if len(name) <= NAMES else f"{name[: NAMES // 2]}...{name[-NAMES // 2 + 3 :]}"
