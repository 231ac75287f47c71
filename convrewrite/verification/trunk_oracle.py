"""The oracle for padded models: the original's own trunk on a larger image, its own head on every feature window.

    larger image --> original's trunk --> feature map --> every h x w window --> original's head --> outputs
    larger image --> converted model  ------------------------------------------------------------> cells   equal?

A padded network sees zeros at the border of a crop where the larger image has pixels, so its cells cannot equal the
original on the crop. They must still equal this: it finds a Softmax over the wrong axis or a wrong pool kernel, which
the native size never shows. How far the cells are from the original on the crops is measured beside it, and stated as
a difference in meaning.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from convrewrite.engine.windows import CutTensor
from convrewrite.errors import ConvrewriteError, UsageError, said
from convrewrite.running.runtime import DeviceFailed, RunFailed
from convrewrite.running.sampling import Feeds, random_array
from convrewrite.verification import exposure
from convrewrite.verification.channels import Draws
from convrewrite.verification.comparison import Again, relative_error
from convrewrite.verification.shaking import DRAWS, shaken, shaken_by_hand
from convrewrite.verification.specimens import Runner, session_of
from convrewrite.verification.subjects import LargeImage, Position, Subject, Values
from convrewrite.verification.verdicts import Deviation
from convrewrite.verification.window_checks import compare_cells, run_converted, run_crops, run_each

Array = np.ndarray[Any, Any]

CHECK = "original's trunk and head"

DEVIATION_WINDOWS = 64
"""The deviation from the original on the crops is measured on at most this many windows."""

FARTHER_PIXELS = 1_000_000
"""Pixels of crops that the original is run on for the deviation far beyond the native size."""

SAME = 1e-4
"""Up to this error, a part of a model is taken to be that part: rounding, and not another tensor."""


WHOLE = ("AveragePool", "MaxPool", "LpPool")
"""Pools that have a form over the whole map."""


class NoOracle(Exception):
    """The oracle cannot be built or run for this model; the message is the reason."""


@dataclass(frozen=True)
class TrunkOracle:
    """The original, cut in two.

    Attributes:
        cut: where. open_shaken: makes the trunk whose every number is changed a little (see `shaking`).
        features: native values of the cut tensors, on the first sample.
        held: model inputs that the head needs for their shape alone, with native values.
    """

    subject: Subject
    cut: tuple[CutTensor, ...]
    trunk: Runner
    open_shaken: Callable[[], Runner]
    head: Runner
    features: Mapping[str, Array]
    held: Feeds
    provider: str

    def wants(self, image: LargeImage) -> tuple[list[Values], str, Again]:
        """The head's outputs on every chosen window of an image, where the features came from, and what rounding may
        make of the outputs."""
        source = "features of the original's own trunk"
        own = True
        try:
            features = self.trunk.run(self._image_feeds(image))
            self._refuse_baked(features, image)
            self._fit(features, image)
        except (RunFailed, BakedSize) as error:
            own, features = False, self._converted_features(image, said(error))
            source = "features of the converted model: the original's trunk does not run at that size"
            self._fit(features, image)
        items = [self._head_feeds(features, position, image) for position in image.chosen]
        axes = {tensor.name: tensor.layout.index("N") for tensor in self.cut if "N" in tensor.layout}
        if set(axes) != {info.name for info in self.head.inputs}:
            axes = {}
        found = run_each(self.subject, self.head.run, items, axes, text="head on every feature window")
        return found, source, functools.partial(self._again, items, image if own else None)

    def _image_feeds(self, image: LargeImage) -> Feeds:
        return {info.name: image.feeds[info.name] for info in self.trunk.inputs}

    def _again(self, items: Sequence[Feeds], image: LargeImage | None, output: str, entries: Sequence[int]) -> Draws:
        """The head's output on features that rounding moved: those of a shaken trunk where the trunk runs at that size.

        What the features carry is the rounding of the whole trunk. Beside them the head's inputs are shaken by hand.
        """
        rng = np.random.default_rng(self.subject.seed)
        drawn = self._moved(items, image, entries)
        runs = [[self.head.run(shaken_by_hand(feeds, rng)) for feeds in draw] for draw in drawn]
        return [np.stack([values[output] for values in run]) for run in runs]

    def _moved(
        self, items: Sequence[Feeds], image: LargeImage | None, entries: Sequence[int]
    ) -> Sequence[Sequence[Feeds]]:
        """The head's inputs at these windows, once per draw."""
        with contextlib.suppress(UsageError, RunFailed, ValueError):  # ValueError: over 2 GB
            if image is not None:
                trunk, feeds = self.open_shaken(), self._image_feeds(image)
                draws = (trunk.run(feeds) for _ in range(DRAWS))
                return [[self._head_feeds(features, image.chosen[i], image) for i in entries] for features in draws]
        return [[items[i] for i in entries]] * DRAWS

    def _refuse_baked(self, features: Mapping[str, Array], image: LargeImage) -> None:
        """Raise BakedSize where a feature map has its native extent on a larger image: a Slice with a fixed end."""
        for tensor in self.cut:
            found = tuple(features[tensor.name].shape[axis] for axis in _spatial(self.subject, tensor))
            grown = zip(found, tensor.size, self.subject.window.positions(image.size), strict=True)
            if any(now == native and count > 1 for now, native, count in grown):
                raise BakedSize(f"its '{tensor.name}' keeps {found} cells")

    def _fit(self, features: Mapping[str, Array], image: LargeImage) -> None:
        """Raise NoOracle where a feature map does not have the extents that the cut's stride promises."""
        counts = self.subject.window.positions(image.size)
        for tensor in self.cut:
            found = tuple(features[tensor.name].shape[axis] for axis in _spatial(self.subject, tensor))
            steps = zip(counts, self._ratio(tensor), tensor.size, strict=True)
            expected = tuple((count - 1) * ratio + size for count, ratio, size in steps)
            if any(a < b for a, b in zip(found, expected, strict=True)) or (image.exact and found != expected):
                raise WrongStride(f"'{tensor.name}' has {found} cells, the strides of the metadata promise {expected}")

    def _ratio(self, tensor: CutTensor) -> tuple[int, ...]:
        """Cells of a cut tensor per step of the window."""
        return tuple(step // cell for step, cell in zip(self.subject.window.stride, tensor.stride, strict=True))

    def _head_feeds(self, features: Mapping[str, Array], position: Position, image: LargeImage) -> Feeds:
        """Inputs of the head for one window."""
        feeds: Feeds = {info.name: image.feeds[info.name] for info in self.head.inputs if info.name in image.feeds}
        feeds |= self.held
        for tensor in self.cut:
            index = [slice(None)] * len(tensor.layout)
            axes = _spatial(self.subject, tensor)
            for axis, i, ratio, extent in zip(axes, position, self._ratio(tensor), tensor.size, strict=True):
                index[axis] = slice(i * ratio, i * ratio + extent)
            if any(info.name == tensor.name for info in self.head.inputs):
                feeds[tensor.name] = np.ascontiguousarray(features[tensor.name][tuple(index)])
        return feeds

    def _converted_features(self, image: LargeImage, why: str) -> Values:
        """The converted model's own values of the cut tensors, once they are shown to be the original's at native."""
        names = [tensor.name for tensor in self.cut]
        failed = f"the original's trunk does not run at that size ({why})"
        path = self.subject.converted.path
        sketch = self.subject.converted.read()
        model = sketch.model
        if missing := [name for name in names if name not in exposure.producers(model.graph)]:
            raise NoOracle(f"{failed}, and the converted model has no tensor '{missing[0]}'")
        shown = {value.name for value in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in shown)
        session = session_of(sketch, model, path, self.provider)
        native = session.run(self.subject.evidence.samples[0].feeds, names)
        for name in names:
            if not relative_error(native[name], self.features[name]) <= SAME:
                raise NoOracle(f"{failed}, and the converted model's '{name}' differs at the native size")
        return session.run(image.feeds, names)


class BakedSize(NoOracle):
    """The original's trunk runs on a larger image, but part of its size is written into it."""


class WrongStride(NoOracle):
    """The feature maps contradict the metadata: a failure of the conversion, not of the oracle."""


def _spatial(subject: Subject, tensor: CutTensor) -> tuple[int, ...]:
    """The spatial axes of a cut tensor, in the order of the window's letters."""
    return tuple(tensor.layout.index(letter) for letter in subject.window.letters)


def build(subject: Subject, cut: Sequence[CutTensor], provider: str) -> TrunkOracle:
    """Cut the original in two, and show that trunk and head give the original again at the native size."""
    window, path = subject.window, subject.original.path
    if not cut:
        raise NoOracle("the cut between trunk and head is not known")
    for tensor in cut:
        if not all(letter in tensor.layout for letter in window.letters):
            raise NoOracle(f"the spatial axes of '{tensor.name}' are merged with others")
    sketch = subject.original.read()
    model = sketch.model
    exposure.add_probes(model)
    inputs = exposure.input_names(model.graph)
    outputs = list(subject.grids)
    names = [tensor.name for tensor in cut]
    if window.images.keys() & set(exposure.reached(model.graph, outputs, names, shapes=False)):
        raise NoOracle("the head needs tensors of the image beside the cut")
    for name in window.images:
        exposure.open_dims(model, name, window.places(name))
    sample, reference = subject.evidence.samples[0], subject.evidence.references[0]
    part = _used(exposure.part(model, {}, inputs, names))
    try:
        _open_pools(part, lambda probe: session_of(sketch, probe, path, provider), sample.feeds)
        trunk = session_of(sketch, part, path, provider)
        features = trunk.run({info.name: sample.feeds[info.name] for info in trunk.inputs})
        needed = exposure.reached(model.graph, outputs, names)
        starts = {name: features[name] for name in names if name in needed}
        wanted = [name for name in inputs if name in needed]
        head = session_of(sketch, exposure.part(model, starts, wanted, outputs), path, provider)
        held = {name: sample.feeds[name] for name in window.images if name in wanted}
        oracle = TrunkOracle(
            subject=subject,
            cut=tuple(cut),
            trunk=trunk,
            open_shaken=functools.partial(_open_shaken, sketch, part, path, provider),
            head=head,
            features=features,
            held=held,
            provider=provider,
        )
        values = head.run({**{name: sample.feeds[name] for name in wanted}, **starts})
    except (ConvrewriteError, ValueError) as error:
        raise NoOracle(f"the original cannot be cut in two: {said(error)}") from None
    for name in outputs:
        if values[name].dtype.kind == "f":
            limit = subject.ledger.tolerance(name, values[name].dtype)
            if not relative_error(values[name], reference[name], subject.evidence.peak.get(name)) <= max(1e-4, limit):
                raise NoOracle(f"trunk and head of the original do not give its '{name}' again")
    return oracle


def _open_shaken(sketch: exposure.Sketch, part: onnx.ModelProto, path: str, provider: str) -> Runner:
    """The trunk with every number changed a little. Raises UsageError, ValueError."""
    model = onnx.ModelProto()
    model.CopyFrom(part)
    shaken(model)
    return session_of(sketch, model, path, provider, optimize=False)


def _open_pools(trunk: onnx.ModelProto, open_: Callable[[onnx.ModelProto], Runner], native: Feeds) -> None:
    """Write a pool whose kernel is the whole native map as a pool over the whole map, in place.

    Behind it and ahead of the cut it weighs the map, so it is one value for any image; its kernel only names a size.
    """
    inputs = {value.name for value in trunk.graph.input}
    pools = [n for n in trunk.graph.node if n.op_type in WHOLE and _plain(n) and n.input[0] not in inputs]
    if not pools:
        return
    probe = onnx.ModelProto()
    probe.CopyFrom(trunk)
    del probe.graph.output[:]
    names = list(dict.fromkeys(node.input[0] for node in pools))
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_(probe)
    seen = session.run({info.name: native[info.name] for info in session.inputs})
    for node in pools:
        if _kernel(node) == seen[node.input[0]].shape[2:]:
            node.op_type = f"Global{node.op_type}"
            kept = [attribute for attribute in node.attribute if attribute.name == "p"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _kernel(node: onnx.NodeProto) -> tuple[int, ...]:
    return tuple(next((a.ints for a in node.attribute if a.name == "kernel_shape"), ()))


def _plain(node: onnx.NodeProto) -> bool:
    """Whether a pool sees no padding, and more than one cell."""
    padded = any(any(a.ints) for a in node.attribute if a.name == "pads")
    return not padded and max(_kernel(node), default=1) > 1 and len(node.output) == 1


def _used(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop inputs that no node reads: ONNX Runtime would ask for them."""
    read = set().union(*(exposure.reads(node) for node in model.graph.node)) if model.graph.node else set()
    kept = [value for value in model.graph.input if value.name in read]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model


def check(
    subject: Subject, cut: Sequence[CutTensor], images: Sequence[LargeImage], provider: str, ran: list[str]
) -> Deviation | None:
    """Compare the converted model with the oracle on larger images, and measure the deviation from the crops.

    The name of every image that is done goes to `ran`.
    """
    oracle, reason = None, ""
    try:
        oracle = build(subject, cut, provider)
    except NoOracle as error:
        reason = said(error)
    deviation = None
    for image in images:
        name = f"{CHECK} at {image.name}"
        values = run_converted(subject, image, name)
        if values is None:
            continue
        if oracle is None:
            subject.ledger.skip(name, reason)
        else:
            try:
                wants, source, again = oracle.wants(image)
                compare_cells(
                    subject, name, values, image.chosen, wants=wants, note=f"{image.note}; {source}", again=again
                )
            except WrongStride as error:
                subject.ledger.fail(name, said(error))
            except (NoOracle, RunFailed) as error:
                subject.ledger.skip(name, said(error))
        if deviation is None and image is max(images, key=lambda one: len(one.chosen)):
            deviation = measure_deviation(subject, image, values)
        ran.append(image.name)
    return _worse(deviation, _farther(subject, images)) if deviation is not None else None


def _worse(one: Deviation, other: Deviation | None) -> Deviation:
    return other if other is not None and other.error > one.error else one


def _farther(subject: Subject, images: Sequence[LargeImage]) -> Deviation | None:
    """The deviation on an image of up to twice the native size that is darker on one side than on the other.

    There what a block makes of the whole map is not what it makes of a window; two pixels beyond the native size, or
    on noise that is the same everywhere, the two can hardly be told apart. None where such an image does not run.
    """
    window, model = subject.window, max(images, key=lambda one: len(one.chosen))
    if subject.fixed_size() is not None or not model.note.endswith(f"seed {subject.seed + 1000 + images.index(model)}"):
        return None
    counts = [1 + size // step for size, step in zip(window.size, window.stride, strict=True)]
    size = window.image_size(tuple(counts))
    image = model.feeds[window.input]
    if any(now <= before for now, before in zip(size, model.size, strict=True)) or image.dtype.kind != "f":
        return None
    budget = max(9, min(DEVIATION_WINDOWS, FARTHER_PIXELS // max(1, int(np.prod(window.size)))))
    every = [tuple(map(int, position)) for position in np.ndindex(*counts)]
    chosen = [every[i] for i in sorted({*np.linspace(0, len(every) - 1, min(budget, len(every))).round().astype(int)})]
    shape = list(image.shape)
    for axis, extent in zip(subject.axes, size, strict=True):
        shape[axis] = extent
    spec = replace(subject.spec, shape=tuple(shape))
    larger = random_array(np.random.default_rng(subject.seed + 2000), spec, model.scale)
    for axis, extent in zip(subject.axes, size, strict=True):
        ramp = np.linspace(0.1, 1.0, extent, dtype=larger.dtype)
        larger = larger * ramp.reshape([-1 if i == axis else 1 for i in range(larger.ndim)])
    with contextlib.suppress(DeviceFailed, RunFailed, MemoryError):
        subject.room(size)
        farther = replace(
            model,
            size=size,
            chosen=tuple(chosen),
            total=len(every),
            feeds={**model.feeds, window.input: larger},
            note="random, brighter towards one corner",
        )
        return measure_deviation(subject, farther, subject.converted.run(farther.feeds))
    return None


def measure_deviation(subject: Subject, image: LargeImage, values: Mapping[str, Array]) -> Deviation | None:
    """How far the cells are from the original on each crop; of the first output, class scores before all others."""
    step = max(1, -(-len(image.chosen) // DEVIATION_WINDOWS))
    chosen = image.chosen[::step]
    kind = "a random image" if not image.note.endswith("reflected") else "a reflected image"
    kind = "a random image with a gradient" if image.note.endswith("corner") else kind
    shown = f"{kind} of {image.name}"
    outputs = [name for name in subject.original.outputs if name in subject.grids]
    scores = [name for name in outputs if "C" in subject.grids[name].layout and values[name].dtype.kind == "f"]
    for name in scores or outputs:
        blocks = [subject.block(name, values, position) for position in chosen]
        wants = [value[name] for value in run_crops(subject, image.feeds, chosen, "original on crops")]
        if any(block is None or block.shape != want.shape for block, want in zip(blocks, wants, strict=True)):
            continue
        got, want = np.stack([block for block in blocks if block is not None]), np.stack(wants)
        if name not in scores:
            same = float(np.mean(got == want))
            return Deviation(name, 1.0 - same, same, positions=len(wants), image=shown)
        axis = 1 + subject.grids[name].layout.index("C")
        agreement = float(np.mean(got.argmax(axis) == want.argmax(axis))) if want.shape[axis] > 1 else None
        return Deviation(name, relative_error(got, want), agreement, positions=len(wants), image=shown)
    return None
