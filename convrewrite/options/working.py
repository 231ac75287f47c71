"""What the commands take that rewrite nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from convrewrite.options.checking import Provider, Tell
from convrewrite.options.kinds import (
    API,
    CHECK,
    CLI,
    IMAGE,
    MAKE,
    RUN,
    TELL,
    TOML,
    Choice,
    Extents,
    FilePath,
    Flag,
    Globs,
    Hook,
    ManyNumbers,
    ManySizes,
    Number,
    Numbers,
    Option,
    Patterns,
    Positive,
    SeveralExtents,
    Sizes,
    Text,
    Tolerance,
    Value,
    Whole,
    Wholes,
    Word,
    option_class,
)

Sort: TypeAlias = Literal["order", "macs", "parameters", "bytes", "field"]

MEMORY = "4GB"


@option_class
class BenchOptions:
    """What `bench` takes."""

    sizes: SeveralExtents = ManySizes((), "Time at these sizes, e.g. 224,512x768.", metavar="HxW,...", flag="--size")
    batches: Option[int | Iterable[int], tuple[int, ...]] = Wholes(
        (), "Time these batches.", metavar="N,...", flag="--batch"
    )
    windows: Value[bool] = Flag(False, "Compare A, slid over every window of the image, with B, which fcn made of it.")
    min_speedup: Value[float | None] = Positive(
        None, "Fail (exit 1) where the median speedup is below X at some size.", metavar="X"
    )
    seconds: Value[float] = Positive(10.0, "Time for so long per size.", metavar="S")
    provider: Word[Provider] = Choice("auto", "Run the models on [bold]auto[/], cpu, cuda or tensorrt.", of=Provider)
    tf32: Value[bool] = Flag(False, "Let CUDA round float32 factors to TF32.")
    threads: Value[int | None] = Whole(None, "Use N threads of the CPU. Left out: one per core.", at_least=1)
    seed: Value[int] = Whole(0, "Draw inputs and orders from this seed.", at_least=0)
    profile: Value[bool] = Flag(False, "List the most expensive nodes of each.", panel=TELL)
    plot: Value[str | None] = FilePath(None, "Draw time against size.", metavar="F.png|svg", panel=TELL, on=(CLI,))
    memory: Value[bool] = Flag(True, "Measure peak memory as well, in processes of their own.", on=(API,))
    sets: Value[int] = Whole(10, "Make N sets of fresh sessions, fewer where that takes long.", at_least=1, on=(API,))
    verbose: Value[bool] = Flag(False, "Let ONNX Runtime tell what it does.", on=(API,))
    progress: Value[Tell | None] = Hook(None, "Call this with a text, what is done and what there is to do.", on=(API,))


@option_class
class InspectOptions:
    """What `inspect` takes."""

    size: Extents = Sizes(
        None,
        "Look at it at this size, where the file leaves it open; with --toeplitz, of the layer's input.",
        metavar="HxW",
        panel=MAKE,
    )
    tol: Value[float] = Tolerance(
        0.0, "Ask separable and groups what they would do within this tolerance.", metavar="T", panel=MAKE
    )
    passes: Value[bool] = Flag(True, "Ask the passes what they would do.", panel=MAKE)
    sort: Word[Sort] = Choice(
        "order",
        "List layers by [bold]order[/], macs, parameters, bytes or (receptive) field.",
        of=Sort,
        metavar="BY",
        panel=TELL,
        on=(CLI,),
    )
    toeplitz: Value[str | None] = Text(
        None,
        "Build the doubly block Toeplitz matrix T of one Conv, and check that conv(x) = T x.",
        metavar="LAYER",
        example="conv1",
        on=(CLI,),
    )
    save: Value[str | None] = FilePath(
        None, "Keep the matrix of --toeplitz (scipy.sparse.load_npz).", metavar="F.npz", panel=TELL, on=(CLI,)
    )
    json: Value[str | None] = FilePath(None, "Write it as JSON; - is stdout.", metavar="F.json", panel=TELL, on=(CLI,))


@option_class
class LazyOptions:
    """What `apply` takes where the image is an array: how pixels are prepared, and what is computed."""

    layout: Value[str] = Text(
        "",
        "Name the axes of the image, where the file and the model leave it open.",
        metavar="HWC|CHW|HW",
        panel=IMAGE,
        example="HWC",
    )
    channels: Option[Iterable[int] | None, tuple[int, ...] | None] = ManyNumbers(
        None, "Take these channels, in this order.", of=int, metavar="N,...", panel=IMAGE
    )
    scale: Value[float | None] = Number(None, "Divide pixels by S first, such as 255.", metavar="S", panel=IMAGE)
    mean: Numbers = ManyNumbers(None, "Then take off M, one number or one per channel.", metavar="M,...", panel=IMAGE)
    std: Numbers = ManyNumbers(None, "Then divide by D, one number or one per channel.", metavar="D,...", panel=IMAGE)
    outputs: Globs = Patterns(
        (),
        "Compute this output of the model; may be given several times.",
        flag="--output",
        metavar="NAME",
        panel=MAKE,
        example="probabilities",
    )
    top1: Value[bool] = Flag(False, "Keep the best class of each cell.", panel=MAKE)
    tile: Extents = Sizes(None, "Choose tiles of so many cells instead.", metavar="HxW", panel=RUN)


@option_class
class ApplyOptions(LazyOptions):
    """What `apply` takes.

    What is done to pixels (`scale`, `mean`, `std`, `channels`) stands in the model's metadata, or is given here.
    """

    array: Value[str] = Text(
        "",
        "Choose an array of a Zarr group, or a series of a TIFF.",
        metavar="NAME",
        panel=IMAGE,
        after="layout",
        example="0",
    )
    chosen: Value[int | None] = Whole(
        None, "Draw this class in a PNG.", at_least=0, flag="--class", metavar="K", panel=MAKE, after="top1"
    )
    labels: Value[str | None] = FilePath(
        None, "Name the classes: one per line of this file, in the model's order.", metavar="F.txt", panel=TELL
    )
    resume: Value[bool] = Flag(False, "Go on with what a stopped run has left.", panel=MAKE)
    overwrite: Value[bool] = Flag(False, "Replace an OUT that is there.", panel=MAKE)
    memory: Value[str] = Text(
        MEMORY,
        "Choose tiles such that all processes fit into this; 4GB if left out.",
        metavar="SIZE",
        example="4GB",
        panel=RUN,
    )
    workers: Value[int | None] = Whole(
        None, "Use N processes; one per core, or per GPU, if left out.", at_least=1, panel=RUN, after="tile"
    )
    threads: Value[int | None] = Whole(None, "Give each N threads.", at_least=1, panel=RUN)
    scheduler: Value[str | None] = Text(
        None, "Use the Dask cluster at this address.", metavar="ADDRESS", panel=RUN, example="tcp://10.0.0.1:8786"
    )
    provider: Word[Provider] = Choice(
        "auto", "Run the model on [bold]auto[/], cpu, cuda or tensorrt.", of=Provider, panel=RUN
    )
    check: Value[int] = Whole(
        0, "Compute N random places once more, and compare.", at_least=0, panel=CHECK, shown=False
    )
    original: Value[str | None] = FilePath(
        None, "With --check, compare with this classifier on their crops.", metavar="MODEL", example="classifier.onnx"
    )
    seed: Value[int] = Whole(0, "Draw the places from this seed.", at_least=0, shown=False)
    tolerance: Value[float | None] = Tolerance(
        None, "Allow max|a-b| / max|b| up to E; 1e-5 if left out.", flag="--max-output-error", metavar="E"
    )


@option_class
class RunOptions:
    """What `run` takes: the file says the rest."""

    force: Value[bool] = Flag(False, "Do unchanged models again.", panel=MAKE)
    check: Value[bool] = Flag(False, "Write no model; fail (exit 1) where an output is not what would be written.")
    dry_run: Value[bool] = Flag(False, "Show what would be done.")
    jobs: Value[int | None] = Whole(None, "Do N models at a time.", at_least=1, panel=MAKE)
    baseline: Value[str | None] = Text(
        None,
        "Fail (exit 1) where a model is larger, slower or less accurate than it was: at a git ref, or in a report or "
        "lock file of run.",
        metavar="REF|FILE",
        on=(CLI,),
    )
    markdown: Value[str | None] = FilePath(
        None, "Write the results as Markdown, for a pull request; - is stdout.", metavar="F.md", panel=TELL, on=(CLI,)
    )
    reports: Value[str | None] = FilePath(
        None,
        "Write a report of every kind into this folder, and none where the file says.",
        metavar="DIR",
        panel=TELL,
        on=(CLI,),
    )


@option_class
class InitOptions:
    """What `init` takes."""

    gitignore: Value[bool] = Flag(
        False, "Have git ignore the reports: add them to .gitignore, also for a file that is there.", panel=MAKE
    )


@option_class
class ChangeOptions:
    """How much worse than a baseline a model may become; shares of what it was there."""

    max_more_macs: Value[float] = Tolerance(0.01, "Allow so many more multiply-accumulates.", on=(TOML,))
    max_more_parameters: Value[float] = Tolerance(0.01, "Allow so many more parameters.", on=(TOML,))
    max_more_bytes: Value[float] = Tolerance(0.01, "Allow a file that is so much larger.", on=(TOML,))
    max_slowdown: Value[float] = Tolerance(
        0.05,
        "Allow it to be so much slower. It counts where the intervals of both speedups leave no other reading.",
        on=(TOML,),
    )
    max_more_error: Value[float] = Tolerance(
        0.1, "Allow an error against the original that is so much larger. Up to 1e-5 it is rounding.", on=(TOML,)
    )
    max_less_agreement: Value[float] = Tolerance(
        0.005,
        "Allow the share of samples with the original's class to fall by so much, of 1.",
        on=(TOML,),
    )
