"""How a result is checked: what `verification` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from convrewrite.options.kinds import (
    API,
    CLI,
    MAKE,
    Arrays,
    Choice,
    Extents,
    FilePath,
    Flag,
    Globs,
    Hook,
    Limit,
    ManySizes,
    Option,
    Patterns,
    SeveralExtents,
    Shapes,
    Sizes,
    Text,
    Tolerance,
    Value,
    Whole,
    Word,
    option_class,
)

Provider: TypeAlias = Literal["auto", "cpu", "cuda", "tensorrt"]
Reference: TypeAlias = Literal["onnxruntime", "onnx"]
Tell: TypeAlias = Callable[[str, int, int], None]

NO_ERROR = "Allow max|a-b| / max|b| up to E for every output{}. Left out: 1e-5, or 10 times the model's own noise."


@option_class
class CheckOptions:
    """How two models are compared. Each option says of itself what it is: see its help."""

    provider: Word[Provider] = Choice("auto", "Run the models on [bold]auto[/], cpu, cuda or tensorrt.", of=Provider)
    max_output_error: Limit = Tolerance(None, NO_ERROR.format(""), metavar="E", on=(CLI, API))
    samples: Value[int] = Whole(3, "Compare on N random inputs, at several scales.", at_least=1)
    seed: Value[int] = Whole(0, "Draw them from this seed.", at_least=0)
    data: Option[Any, Any] = Arrays(
        None, "Use real inputs: one array per input name, axis 0 is samples.", metavar="F.npz"
    )
    data_path: Value[str] = FilePath("F.npz", "Name the file that the data came from.", on=(API,))
    progress: Value[Tell | None] = Hook(None, "Call this with a text, what is done and what there is to do.", on=(API,))

    def comparing(self, *, size: Sequence[int] | None = None, sizes: Sequence[Sequence[int]] = ()) -> VerifyOptions:
        """What `verification.verify` takes of these options, at some size or sizes."""
        shared = {name: getattr(self, name) for name in CheckOptions.__dataclass_fields__}
        return VerifyOptions(size=size, sizes=sizes, **shared)


@option_class
class RewriteOptions(CheckOptions):
    """What every rewriting command takes."""

    only: Globs = Patterns((), "Rewrite only nodes or tensors of these names.", metavar="GLOB", panel=MAKE)
    skip: Globs = Patterns((), "Leave nodes or tensors of these names alone.", metavar="GLOB", panel=MAKE)
    verify: Value[bool] = Flag(True, "Run both models and compare them before writing.", on=(CLI, API))


@option_class
class VerifyOptions(CheckOptions):
    """What `verify` takes: sizes and shapes for what is open, and what is looked for."""

    size: Extents = Sizes(None, "Compare at this size, where inputs are open.", metavar="HxW", on=(API,))
    sizes: SeveralExtents = ManySizes(
        (),
        "Compare at these sizes, where inputs are open; may be given several times.",
        metavar="HxW,...",
        flag="--size",
    )
    batch: Value[int | None] = Whole(None, "Fill an open batch with N.", at_least=1)
    shapes: Option[Mapping[str, Any] | None, Mapping[str, tuple[int, ...]] | None] = Shapes(
        None, "Give one input its whole shape; once per input.", metavar="NAME=1x3x512x512", flag="--shape"
    )
    max_output_error: Limit = Tolerance(None, NO_ERROR.format(", or for one"), named=True, metavar="E|NAME=E")
    samples: Value[int] = Whole(3, "Compare on N inputs: 3 random ones, or all images.", at_least=1, shown=False)
    images: Value[str | None] = FilePath(
        None,
        "Use the images of a folder, resized: (pixel / 255 - mean) / std.",
        metavar="DIR",
        on=(CLI,),
        after="data",
    )
    mean: Value[str] = Text(
        "0", "Of the images' channels, on 0..1. Left out: 0.", metavar="M,M,M", on=(CLI,), example="0.485,0.456,0.406"
    )
    std: Value[str] = Text(
        "1", "Of the images' channels, on 0..1. Left out: 1.", metavar="S,S,S", on=(CLI,), example="0.229,0.224,0.225"
    )
    layout: Value[str] = Text("", "The axes of the image input, where they are not plain.", metavar="NCHW", on=(CLI,))
    reference: Word[Reference] = Choice(
        "onnxruntime", "Take what onnxruntime, or onnx (slow), makes of A as right.", of=Reference
    )
    where: Value[bool] = Flag(False, "Find the first tensor that differs.")
