"""fcn: a classifier for images of one size becomes a fully convolutional network for images of any size.

Before                                            After
    image [N, 3, 224, 224]                            image [N, 3, height, width]
      |  trunk: Conv, Relu, MaxPool ...                 |  the same trunk
    map [N, C, h, w]                                  map [N, C, H, W]
      |  Flatten                                        |
    [N, C h w]                                          |
      |  Gemm W [K, C h w]                              |  Conv W [K, C, h, w]
    [N, K]                                            [N, K, H', W']
      |  Relu, Gemm, Softmax                            |  Relu, Conv 1x1, Softmax over axis 1
    classes [N, K]                                    classes [N, K, H', W'], one vector per window

Algebra. On one window the fully connected layer is  y[k] = sum_cij W[k, c, i, j] x[c, i, j]  for a map of h x w cells.
That is a convolution with an h x w kernel evaluated at one position. Slid over the map of a larger image, position p
sees exactly the cells p .. p + (h, w). Where the trunk commutes with shifts and sees no padding, these are the cells
that the trunk would have computed from the crop alone, so each output *equals* the classifier on its window
(`windows`). Elsewhere equality holds at the native size only (`native-size`), and the difference is measured.

    Flatten, Reshape, Squeeze, Transpose      disappear: axes are tracked as products of batch, channels, rows, columns
    a pool over the whole map                 a pool with the native map as its kernel, stride 1
    Gemm, MatMul                              Conv with the map as its kernel first, 1x1 afterwards
    Softmax, ArgMax, Concat, ... over classes the same over axis 1

Requires an image input of known size (or `window`), constant weights, opset 7 or later.
Refuses flat inputs, position-dependent constants, operators that mix positions with channels, outputs that list
positions, operators without a rule. A block that weighs the map (squeeze-and-excite, ECA, GC) keeps its global pool.
Source: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import onnx
import onnx_graphsurgeon as gs

from convrewrite.engine.axes import SAMPLE
from convrewrite.engine.branches import settled
from convrewrite.engine.graph import (
    Constants,
    infer_shapes,
    subgraph_tensors,
)
from convrewrite.engine.rewrite import Context, Declined, Lifting, Pass, Plan, Reason, Refusal, Site, option
from convrewrite.engine.windows import METADATA_KEY
from convrewrite.errors import UsageError
from convrewrite.passes.fcn.entry import (
    LAYOUTS,
    beside,
    check_window,
    choice_by_value,
    convolutional_already,
    image_input,
    likely,
    not_a_tensor,
    only_channels_open,
    other_images,
    spatial_axes,
    whole,
)
from convrewrite.passes.fcn.lifter import Lifter
from convrewrite.passes.fcn.outputs import Lifted
from convrewrite.passes.fcn.reasons import REASONS
from convrewrite.passes.fcn.views import Fixed, MeetsLargerMap, Refuse
from convrewrite.passes.fcn.walk import lift
from convrewrite.text import as_line, by, counted, parameter


@dataclass(frozen=True)
class Fcn(Pass):
    """The pass.

    Attributes:
        window: the classifier's own input size per spatial axis, where the input is symbolic.
        size: fix the new input to this size instead of making it symbolic.
    """

    name: ClassVar[str] = "fcn"
    reasons: ClassVar[Mapping[str, Reason]] = REASONS
    command: ClassVar[str] = "fcn"
    window: tuple[int, ...] | None = option(None)
    size: tuple[int, ...] | None = option(None)

    def spread(self, graph: gs.Graph) -> Fcn:
        """The pass with one number as the extent of every open spatial axis, where the image says which those are.

        Raises:
            UsageError: the window contradicts an axis that is fixed beside open ones.
        """
        image = image_input(graph)
        if image is None:
            return self
        given = (("window", self.window), ("size", self.size))
        made = replace(self, **{name: whole(image, extents) for name, extents in given if extents is not None})
        if made.window is not None:
            check_window(image, made.window)
        return made

    def candidates(self, graph: gs.Graph) -> Iterator[gs.Node]:
        """The node where the image enters; the whole head is lifted at once."""
        image = image_input(graph)
        names = [image.name] if image is not None else [t.name for t in graph.inputs]
        for node in graph.nodes:
            if any(tensor.name in names for tensor in (*node.inputs, *subgraph_tensors(node))):
                yield node
                return

    def plan(self, context: Context, node: gs.Node) -> Sequence[Plan] | Declined | Refusal:
        """Lift the graph; pure, since the new nodes are built beside the old ones."""
        graph = context.graph
        if graph.opset < 7:
            return Refusal(REASONS["fcn/opset-too-old"], f"the model uses opset {graph.opset}")
        if no_tensor := not_a_tensor(graph):
            return Refusal(REASONS["fcn/not-a-tensor"], no_tensor)
        image = image_input(graph)
        if image is None:
            return Refusal(REASONS["fcn/no-image-input"], "no input has an image's axes")
        if convolutional_already(graph, image):
            return Declined(REASONS["fcn/already-convolutional"], f"input '{image.name}' {list(image.shape)}")
        try:
            lifted = self._lift(graph, image)
            if self.size is not None:
                _fix_output_sizes(graph, lifted)
        except Refuse as refusal:
            return Refusal(refusal.reason, refusal.detail)
        if not lifted.sites:
            return Declined(REASONS["fcn/already-convolutional"], f"every output keeps the axes of '{image.name}'")
        metadata = {METADATA_KEY: lifted.window.to_json()}
        return [Plan(lifted.sites, lifted, metadata, [Lifting(lifted.window, lifted.cut)], last=True)]

    def apply(self, graph: gs.Graph, plan: Plan) -> None:
        """Put the new nodes, inputs and outputs in the place of the old ones."""
        lifted: Lifted = plan.payload
        graph.nodes.clear()
        graph.nodes.extend(lifted.nodes)
        graph.inputs = list(lifted.inputs)
        graph.outputs = list(lifted.outputs)

    def _lift(self, graph: gs.Graph, image: gs.Variable) -> Lifted:
        """Try each meaning of the input's axes; the refusal of the one that came farthest is the one reported."""
        best: tuple[int, Refuse] | None = None
        for axes, shape in self._readings(image):
            for images in self._companions(graph, image, axes, shape):
                try:
                    return self._read(graph, image, axes, shape, images=images)
                except _Stopped as stopped:
                    if best is None or stopped.progress > best[0] or (images and stopped.progress == best[0]):
                        best = stopped.progress, stopped.refusal
        if best is None and self._misfit(image):
            raise UsageError(self._misfit(image))
        inside = choice_by_value(graph, image) if best is None else None
        if inside is not None:  # no size would change that
            label = f"{inside.op} '{inside.name or inside.outputs[0].name}'"
            raise Refuse("fcn/no-rule", f"{label} reads the image inside a subgraph")
        if best is None and only_channels_open(image):
            raise Refuse(
                "fcn/dynamic-shape", f"the number of channels of input '{image.name}' {list(image.shape)} is open"
            )
        if best is None:
            raise Refuse("fcn/window-needed", f"input '{image.name}' is {list(image.shape)}")
        if len(image.shape) == 2:
            raise Refuse("fcn/flat-input", f"input '{image.name}' is {list(image.shape)}")
        raise best[1]

    def _companions(
        self, graph: gs.Graph, image: gs.Variable, axes: str, shape: Sequence[int]
    ) -> Iterator[dict[str, str]]:
        """What else may lie on the image's grid; nothing first, where the other inputs need not be images."""
        found = beside(graph, image, axes, shape)
        rivals = other_images(graph, image)
        if not rivals:
            yield {}
        if found or rivals:
            yield found

    def _read(
        self, graph: gs.Graph, image: gs.Variable, axes: str, shape: list[int], images: Mapping[str, str]
    ) -> Lifted:
        """Lift with these axes, and with these inputs on the image's grid. Raises _Stopped."""
        if strange := [tensor for tensor in other_images(graph, image) if tensor.name not in images]:
            names = " and ".join(f"'{tensor.name}' {list(tensor.shape)}" for tensor in (image, *strange))
            refusal = Refuse("fcn/several-images", f"inputs {names} are images, and not of one size and batch")
            raise _Stopped(len(graph.nodes) if axes == likely(image)[0] else -1, refusal)
        try:
            variants = self._variants(graph, image, axes, shape, images=images)
            flat, taken = settled(graph, variants, self._declared(graph, image, axes, shape, images=images))
            native = infer_shapes(flat, variants[0])
        except onnx.shape_inference.InferenceError as error:
            text = as_line(error)[:160]
            raise _Stopped(0, Refuse("fcn/dynamic-shape", f"shapes do not follow from the input's: {text}")) from None
        lifted = self._walk(flat, image_input(flat) or image, axes, native, images=images)
        return replace(lifted, sites=(*lifted.sites, *map(_branch_site, taken))) if lifted.sites else lifted

    def _misfit(self, image: gs.Variable) -> str:
        """What is wrong with `window` or `size` for an input of that rank; empty where they fit it."""
        counts = spatial_axes(image)
        for name, value in (("size", self.size), ("window", self.window)):
            if value is not None and counts and len(value) not in counts:
                wanted = " or ".join(map(str, sorted(counts)))
                numbers = counted(len(value), "number")
                axes = "axis" if counts == {1} else "axes"
                return f"{parameter(name, value)} has {numbers}, input '{image.name}' has {wanted} spatial {axes}"
        return ""

    def _readings(self, image: gs.Variable) -> Iterator[tuple[str, list[int]]]:
        """Axes letters with a native shape: the window for symbolic extents, a sample count for a symbolic batch."""
        for axes in LAYOUTS.get(len(image.shape), ()):
            spatial = [letter for letter in axes if letter not in "NC"]
            if self.size is not None and len(self.size) != len(spatial):
                continue
            window = self.window if self.window and len(self.window) == len(spatial) else None
            for batch in (SAMPLE, 1):
                shape: list[int] = []
                for letter, dim in zip(axes, image.shape, strict=True):
                    if isinstance(dim, int):
                        shape.append(dim)
                    elif letter == "N":
                        shape.append(batch)
                    elif letter != "C" and window is not None:
                        shape.append(window[spatial.index(letter)])
                if len(shape) == len(axes):
                    yield axes, shape
                if isinstance(image.shape[axes.find("N")], int) or "N" not in axes:
                    break

    def _variants(
        self, graph: gs.Graph, image: gs.Variable, axes: str, shape: list[int], images: Mapping[str, str]
    ) -> list[dict[str, Sequence[int]]]:
        """Shapes of all inputs, and those of other batches where the batch is open."""
        place = axes.find("N")
        batches = {shape[0]: shape}
        if place == 0 and not isinstance(image.shape[place], int):
            batches |= {batch: [batch, *shape[1:]] for batch in (1, SAMPLE) if batch != shape[0]}
        return [
            {t.name: [d if isinstance(d, int) else batch for d in t.shape or ()] for t in graph.inputs}
            | {
                name: _like(letters, graph, name, dict(zip(axes, given, strict=True)))
                for name, letters in images.items()
            }
            | {image.name: given}
            for batch, given in batches.items()
        ]

    def _declared(
        self, graph: gs.Graph, image: gs.Variable, axes: str, shape: list[int], images: Mapping[str, str]
    ) -> dict[str, Sequence[int | str | None]]:
        """Shapes of all inputs, where an open batch stays open."""
        given: list[int | str | None] = list(shape)
        place = axes.find("N")
        if place == 0 and not isinstance(image.shape[place], int):
            given[0] = image.shape[place]
        known = dict(zip(axes, given, strict=True))
        return (
            {t.name: list(t.shape or ()) for t in graph.inputs}
            | {name: _like(letters, graph, name, known) for name, letters in images.items()}
            | {image.name: given}
        )

    def _walk(
        self,
        graph: gs.Graph,
        image: gs.Variable,
        axes: str,
        native: dict[str, tuple[int, ...]],
        images: Mapping[str, str],
    ) -> Lifted:
        """Lift with trailing pads that no window sees left out; with them, where the net is padded all the same."""
        constants = Constants(graph, native)
        for trim in (True, False):
            lifter, lifted = self._settled(graph, image, axes, constants, native=native, trim=trim, images=images)
            if lifted.window.equivalence == "windows":
                break
        if len(axes) == 2 and not lifter.slides:
            raise _Stopped(0, Refuse("fcn/flat-input", f"input '{image.name}' is {list(image.shape)}"))
        if not lifter.slides and not lifter.spans and axes != LAYOUTS[len(axes)][0]:
            nothing = f"nothing runs over the rows and columns of '{image.name}' as {axes}"
            raise _Stopped(0, Refuse("fcn/no-image-input", nothing))
        return lifted

    def _settled(
        self,
        graph: gs.Graph,
        image: gs.Variable,
        axes: str,
        constants: Constants,
        native: dict[str, tuple[int, ...]],
        trim: bool,
        images: Mapping[str, str],
    ) -> tuple[Lifter, Lifted]:
        """Start again with each pool that meets a larger map kept global, until none does.

        So it is with a pool in front of a node that no window can pass: behind a global one any node may stand. Where
        the map then does not come of it, what the node was refused for is the reason.
        """
        pools = forced = frozenset[str]()
        last: _Stopped | None = None
        while True:
            lifter = Lifter(
                graph=graph,
                image=image,
                axes=axes,
                native=native,
                constants=constants,
                global_pools=pools,
                forced=forced,
                trim=trim,
                new_size=self.size,
                beside=images,
            )
            try:
                lifted = lift(lifter)
                if last is not None and _gives_away(lifter):
                    raise last
                return lifter, lifted
            except MeetsLargerMap as meeting:
                if meeting.pools <= pools:
                    refusal = Refuse("fcn/spatial-broadcast", "a pooled value meets a larger map")
                    raise _Stopped(lifter.progress, refusal) from None
                pools |= meeting.pools
            except Refuse as refused:
                if last is not None and (lifter.progress < last.progress or _gives_away(lifter)):
                    raise last from None
                last = _Stopped(lifter.progress, refused)
                if refused.pools <= pools:
                    raise last from None
                pools, forced = pools | refused.pools, forced | refused.pools


def _gives_away(lifter: Lifter) -> bool:
    """Whether an output would be that of the whole image, for a pool that was kept global to come past a node."""
    states = [lifter.state(tensor) for tensor in lifter.graph.outputs]
    return any(isinstance(state, Fixed) and state.pools & lifter.forced for state in states)


def _like(letters: str, graph: gs.Graph, name: str, known: Mapping[str, Any]) -> list[Any]:
    """The shape of an input on the image's grid: its own channels, the image's other extents."""
    own = next(tensor.shape for tensor in graph.inputs if tensor.name == name)
    return [dim if letter == "C" else known.get(letter, dim) for letter, dim in zip(letters, own, strict=True)]


def _fix_output_sizes(graph: gs.Graph, lifted: Lifted) -> None:
    """Give the outputs the shapes that follow from a fixed input size.

    Raises:
        UsageError: the size is below the window, or no shape follows from it.
    """
    window = lifted.window
    image = next(t for t in lifted.inputs if t.name == window.input)
    new = tuple(image.shape[window.axes.index(letter)] for letter in window.letters)
    text, native = by(new), by(window.size)
    if any(wanted < own for wanted, own in zip(new, window.size, strict=True)):
        raise UsageError(f"{parameter('size', text)} is smaller than the classifier's own {native}")
    fixed = gs.Graph(lifted.nodes, lifted.inputs, lifted.outputs, opset=graph.opset)
    fixed.import_domains = graph.import_domains
    shapes = {t.name: [d if isinstance(d, int) else 1 for d in t.shape or ()] for t in lifted.inputs}
    try:
        known = infer_shapes(fixed, shapes)
    except onnx.shape_inference.InferenceError:
        step = by(window.stride)
        raise UsageError(
            f"the model does not run at {parameter('size', text)}", remedy=f"try {native} + k * {step}"
        ) from None
    for output in lifted.outputs:
        if output.name in window.outputs and output.name in known:
            output.shape = [output.shape[0], *known[output.name][1:]]


class _Stopped(Exception):
    """A walk that was refused, with how far it came."""

    def __init__(self, progress: int, refusal: Refuse) -> None:
        super().__init__()
        self.progress = progress
        self.refusal = refusal


def _branch_site(output: str) -> Site:
    """An `If` that was decided by shapes."""
    return Site(
        "fcn", output, "If", "rewritten", detail="the branch that is taken at the native size", equivalence="exact"
    )
