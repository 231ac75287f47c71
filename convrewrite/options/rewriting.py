"""What the rewriting commands take: what is made, and what makes a rewrite worth it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from convrewrite.errors import UsageError
from convrewrite.options.checking import NO_ERROR, RewriteOptions
from convrewrite.options.kinds import (
    API,
    CLI,
    MAKE,
    Choice,
    Extents,
    Fields,
    FilePath,
    Flag,
    Limit,
    Sizes,
    Tolerance,
    Value,
    Whole,
    Word,
    option_class,
)
from convrewrite.text import parameter

__all__ = [
    "Accept",
    "Expand",
    "FcnOptions",
    "Form",
    "GroupsOptions",
    "LinearOptions",
    "RewriteOptions",
    "SeparableOptions",
    "Softmax",
    "TradeOptions",
    "TransformOptions",
    "Upsample",
]

Accept: TypeAlias = Literal["smaller", "faster", "always"]
Expand: TypeAlias = Literal["branches", "dense"]
Fit: TypeAlias = Literal["responses", "weights"]
Form: TypeAlias = Literal["auto", "spatial", "depthwise", "channel", "tucker"]
Softmax: TypeAlias = Literal["last", "none"]
Upsample: TypeAlias = Literal["bilinear", "nearest"]


@option_class
class FcnOptions(RewriteOptions):
    """What `fcn` takes."""

    window: Extents = Sizes(
        None,
        "Name the classifier's own input size, where the file leaves it open; one number is for every open axis.",
        metavar="HxW",
        panel=MAKE,
    )
    size: Extents = Sizes(
        None,
        "Fix the new input to this size. Left out: it takes images of any size.",
        metavar="HxW",
        panel=MAKE,
    )
    stride: Extents = Sizes(
        None,
        "Give a cell every S pixels, where the network's strides multiply to more: later layers are dilated.",
        metavar="S|SxS",
        panel=MAKE,
        example="4",
    )
    dense: Value[bool] = Flag(False, "The same as --stride 1.", panel=MAKE, on=(CLI,))
    upsample: Word[Upsample | Literal[""]] = Choice(
        "",
        "Bring the class map to the size of the image: 'bilinear' or 'nearest' between the windows' centres.",
        of=Upsample,
        metavar="HOW",
        panel=MAKE,
    )
    softmax: Word[Softmax | Literal[""]] = Choice(
        "",
        "With --upsample, interpolate the scores, not the probabilities: the Softmax comes 'last', or 'none'.",
        of=Softmax,
        metavar="WHERE",
        panel=MAKE,
    )
    opset: Value[int | None] = Whole(None, "Convert the model to this operator set first.", at_least=7, panel=MAKE)
    dynamic_batch: Value[bool] = Flag(False, "Take any number of images, where one was fixed.", panel=MAKE)

    def __post_init__(self) -> None:
        if not self.dense:
            return
        if self.stride is not None and set(self.stride) != {1}:
            told = f"{parameter('dense', True)} is {parameter('stride', 1)}, and {parameter('stride')} says otherwise"
            raise UsageError(told, remedy="leave one of them out")
        object.__setattr__(self, "stride", 1)

    @property
    def further(self) -> bool:
        """Whether anything is asked for besides that the model becomes fully convolutional."""
        return bool(self.stride or self.upsample or self.softmax or self.opset is not None or self.dynamic_batch)


@option_class
class TradeOptions(RewriteOptions):
    """What a pass takes whose rewrites cost something: a judge, and the size that it counts or times at."""

    accept: Word[Accept] = Choice(
        "smaller",
        "Rewrite a layer if it has [bold]smaller[/] cost (fewer multiply-accumulates), if it is measured to be "
        "faster and so is the whole model, or always.",
        of=Accept,
        panel=MAKE,
    )
    timings: Value[str | None] = FilePath(
        None,
        "Keep what --accept faster has timed in this file, and reuse it.",
        metavar="F.json",
        panel=MAKE,
        on=(CLI, API),
    )
    size: Extents = Sizes(
        None, "Count, time and verify at this size, where the file leaves it open.", metavar="HxW", panel=MAKE
    )
    max_output_error: Limit = Tolerance(
        None,
        "Rewrite only as many layers as keep max|a-b| / max|b| of every output within E of the original.",
        metavar="E",
    )

    @property
    def fits(self) -> bool:
        """Whether factors are fitted to the responses on the data, where the pass can."""
        return True

    @property
    def limit(self) -> float | None:
        """The bound on every output. Raises UsageError where there is one for each of several."""
        if isinstance(self.max_output_error, Mapping):
            raise UsageError("max_output_error is one for each output", remedy="give one number for all")
        return self.max_output_error


@option_class
class SeparableOptions(TradeOptions):
    """What `separable` takes; `max_output_error` here rewrites only as many layers as stay within it."""

    tol: Value[float] = Tolerance(
        0.0,
        "Allow each kernel, with its BatchNormalization folded in, a relative error ||W - W~|| / ||W|| "
        "(Frobenius) up to T. 0, the default, allows what rounding costs and no more.",
        metavar="T",
        panel=MAKE,
    )
    form: Word[Form] = Choice(
        "auto",
        "Use one form alone: spatial, depthwise, channel or tucker. Left out: whichever is cheapest. "
        "A linear layer has the form 'channel' alone.",
        of=Form,
        panel=MAKE,
    )
    fit: Value[bool] = Flag(
        True,
        "With --data, fit the factors to the layers' responses on it; 'weights' leaves them as the "
        "decomposition gives them. --tol bounds the kernel's error either way.",
        words=Fit,
        metavar="NAME",
        panel=MAKE,
        after="size",
    )

    @property
    def fits(self) -> bool:
        """Whether factors are fitted to the responses on the data."""
        return self.fit


@option_class
class GroupsOptions(TradeOptions):
    """What `groups` takes."""

    tol: Value[float] = Tolerance(
        0.0,
        "Allow each kernel a relative error ||W - W~|| / ||W|| (Frobenius) up to T: what lies outside of "
        "its groups. 0, the default, splits only what is in groups already.",
        metavar="T",
        panel=MAKE,
    )
    into: Value[int | None] = Whole(
        None, "Split into N groups and no other number, within --tol.", at_least=2, panel=MAKE
    )
    expand: Word[Expand | None] = Choice(
        None,
        "Do the opposite, exactly, for hardware without grouped convolution: each grouped Conv or "
        "ConvTranspose becomes 'branches' (Split, convolutions, Concat) or one 'dense' convolution with zeros. "
        "Usually slower on ONNX Runtime.",
        of=Expand,
        metavar="HOW",
        panel=MAKE,
    )

    def __post_init__(self) -> None:
        if self.expand is not None:  # it is never worth it on its own
            object.__setattr__(self, "accept", "always")


@option_class
class LinearOptions(TradeOptions):
    """What `fc-to-conv` and `conv-to-fc` take: they rewrite whatever they can."""

    accept: Word[Accept] = Choice("always", "Rewrite whatever can be.", of=Accept, on=())
    timings: Value[str | None] = FilePath(None, "Not used.", on=())
    max_output_error: Limit = Tolerance(None, NO_ERROR.format(""), metavar="E")


@option_class
class TransformOptions(TradeOptions):
    """What a pass takes that is run by its name."""

    accept: Word[Accept] = Choice("always", TradeOptions.__dict__["accept"].help, of=Accept, panel=MAKE)

    fields: Value[Mapping[str, Any] | None] = Fields(None, "Give the pass of that name these options.", on=(API,))

    def for_fcn(self, window: tuple[int, ...] | None, size: tuple[int, ...] | None) -> FcnOptions:
        """What of it `fcn` takes."""
        shared = {name: getattr(self, name) for name in RewriteOptions.__dataclass_fields__}
        return FcnOptions(window=window, size=size, **shared)
