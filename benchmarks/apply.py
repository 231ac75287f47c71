"""`convrewrite apply` on images that no session could take: memory, a kill in the middle, throughput.

    python -m benchmarks.apply --out benchmarks/results/apply.json --date 2026-01-31

    canvas       20,000 x 20,000 pixels of digits through the converted LeNet-5 with --memory 2GB: killed halfway,
                 resumed, checked at 100 random windows against the original classifier
    throughput   a ResNet-18 over RGB pixels: `apply` against one pass on an image as large as a tile, and against the
                 original classifier on every window (roi the window, interval the stride) at the best of several
                 batches; with MONAI installed, by its `sliding_window_inference`
    scaling      the same with two workers over one, one thread each

Memory is the sum of the proportional set sizes of the process and all its descendants, looked at twice a second
(Linux: /proc/PID/smaps_rollup). Reading and writing are part of every time of `apply`; its own start is not, which it
states itself. The images are Zarr arrays of 8-bit pixels in chunks of 1024 x 1024.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import zarr

from benchmarks import common
from convrewrite.models import build, digits, lenet5_path

NAME = "apply"
SIDE, RESNET_SIDE, SCALING_SIDE = 20_000, 8_192, 2_048
MEMORY = 2e9
PLACES = 100
CHUNK = 1024
SHARE_GOAL, WINDOWS_GOAL, SCALING_GOAL = 0.9, 5.0, 1.6

Array = np.ndarray[Any, Any]


# Images


def canvas(path: Path, side: int) -> None:
    """Digits in rows and columns, 8 bits; one block of them over and over, turned about."""
    block = _block()
    array = zarr.create_array(path, shape=(side, side), chunks=(CHUNK, CHUNK), dtype="uint8")
    rng = np.random.default_rng(1)
    for i in range(0, side, CHUNK):
        for j in range(0, side, CHUNK):
            part = np.roll(block, tuple(rng.integers(CHUNK, size=2)), (0, 1))
            array[i : i + CHUNK, j : j + CHUNK] = part[: min(CHUNK, side - i), : min(CHUNK, side - j)]


def _block() -> Array:
    """A square of held-out digits, 0..255."""
    images, _ = digits.glyphs("held-out")
    tall = CHUNK // 32
    chosen = np.random.default_rng(0).integers(len(images), size=tall * tall)
    rows = images[chosen].reshape(tall, tall, 32, 32).transpose(0, 2, 1, 3).reshape(CHUNK, CHUNK)
    return np.asarray(np.clip(rows, 0, 1) * 255).astype(np.uint8)


def colours(path: Path, side: int) -> None:
    """RGB pixels: smooth, with noise on them."""
    rng = np.random.default_rng(0)
    small = rng.random((9, 9, 3))
    at = np.linspace(0, 7.99, CHUNK)
    low, share = at.astype(int), at % 1
    rows = small[low] * (1 - share)[:, None, None] + small[low + 1] * share[:, None, None]
    block = rows[:, low] * (1 - share)[None, :, None] + rows[:, low + 1] * share[None, :, None]
    array = zarr.create_array(path, shape=(side, side, 3), chunks=(CHUNK, CHUNK, 3), dtype="uint8")
    for i in range(0, side, CHUNK):
        for j in range(0, side, CHUNK):
            part = np.clip(block * 220 + rng.random(block.shape) * 35, 0, 255).astype(np.uint8)
            array[i : i + CHUNK, j : j + CHUNK] = part[: min(CHUNK, side - i), : min(CHUNK, side - j)]


# Processes


class Watched:
    """A command, and the most memory that it and its descendants held."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, cwd=common.ROOT, env=common.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self.peak = max(self.peak, sum(map(proportional, family(self.process.pid))))

    def kill(self) -> None:
        """Stop it and all that it has started, at once."""
        for pid in family(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait(check=False)

    def wait(self, *, check: bool = True) -> None:
        """Until it ends."""
        _, told = self.process.communicate()
        self._over.set()
        self._thread.join()
        if check and self.process.returncode:
            raise SystemExit(f"apply failed with exit code {self.process.returncode}:\n{told.decode(errors='replace')}")


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                children = (thread / "children").read_text().split()
                found.extend(other for child in children for other in family(int(child)))
    return found


def proportional(pid: int) -> int:
    """Bytes of a process; what several share counts in parts."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return 1024 * int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1])
    return 0


def command(model: Path, image: Path, target: Path, report: Path, *words: str) -> list[str]:
    """The public way to run it."""
    start = [sys.executable, "-m", "convrewrite", "apply", str(model), str(image), str(target)]
    return [*start, "--scale", "255", "--provider", "cpu", "--report", str(report), *words]


def done_share(target: Path) -> float:
    """Share of the tiles that are done."""
    try:
        return float(np.asarray(zarr.open_group(target, mode="r")["done"][:]).mean())
    except Exception:  # not there yet
        return 0.0


# Parts


def run_canvas(folder: Path, side: int, memory: float) -> dict[str, Any]:
    """Map the canvas, with a kill in the middle."""
    model, image, target, report = (folder / name for name in ("any.onnx", "canvas.zarr", "map.zarr", "canvas.json"))
    common.convert(lenet5_path(), model)
    canvas(image, side)
    words = ["--memory", f"{memory / 1e9}GB", "--top1"]
    first = Watched(command(model, image, target, report, *words))
    while done_share(target) < 0.5:
        if first.process.poll() is not None:
            raise SystemExit("it was done before it could be killed; take a larger --side")
        time.sleep(0.1)
    first.kill()
    check = ["--check", str(PLACES), "--original", str(lenet5_path()), "--resume"]
    second = Watched(command(model, image, target, report, *words, *check))
    second.wait()
    found = json.loads(report.read_text())
    return {
        "side": side,
        "memory": memory,
        "peak": max(first.peak, second.peak),
        "tiles": found["tiles"],
        "crop": found["crop"],
        "pixels_per_second": found["pixels_per_second"],
        "checks": found["checks"],
    }


def run_resnet(folder: Path, side: int, width: float, memory: float) -> dict[str, Any]:
    """Throughput of `apply`, of one pass on a tile, and of the original on every window."""
    source, model = folder / "resnet.onnx", folder / "resnet-any.onnx"
    image, target, report = folder / "colours.zarr", folder / "resnet.zarr", folder / "resnet.json"
    onnx.save(common.any_batch(build("resnet18", width=width)), source)
    common.convert(source, model)
    colours(image, side)
    cores = common.machine()["cores"]
    running = Watched(command(model, image, target, report, "--memory", f"{memory / 1e9}GB", "--workers", str(cores)))
    running.wait()
    found = json.loads(report.read_text())
    crop = found["crop"]
    pass_rate = rate_of(model, (1, 3, *crop), int(np.prod(crop)), cores, together=cores)
    windows = max(rate_of(source, (batch, 3, 224, 224), batch * 32 * 32, cores) for batch in (1, 4, 16))
    return {
        "side": side,
        "memory": memory,
        "peak": running.peak,
        "crop": crop,
        "useful": found["useful"],
        "tiles": found["tiles"]["total"],
        "pixels_per_second": found["pixels_per_second"],
        "pass_pixels_per_second": pass_rate,
        "windows_pixels_per_second": windows,
        "monai_pixels_per_second": monai(source, cores),
    }


def rate_of(model: Path, shape: Sequence[int], pixels: int, threads: int, together: int = 1) -> float:
    """Pixels per second of a session; `together` of them with their share of the threads, at once."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, threads // together)
    sessions = [
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"]) for _ in range(together)
    ]
    feed = {sessions[0].get_inputs()[0].name: np.random.default_rng(0).random(shape, np.float32)}

    def all_of_them() -> None:
        runs = [threading.Thread(target=session.run, args=(None, feed)) for session in sessions]
        for one in runs:
            one.start()
        for one in runs:
            one.join()

    all_of_them()
    seconds = min(common.repeated(all_of_them, 2.0)() for _ in range(3))
    return together * pixels / seconds


def monai(model: Path, threads: int) -> float | None:
    """Pixels per second of MONAI's sliding windows, where it is installed."""
    if importlib.util.find_spec("monai") is None:
        return None
    torch, inferers = importlib.import_module("torch"), importlib.import_module("monai.inferers")

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    side = 224 + 9 * 32

    def classified(batch: Any) -> Any:
        return torch.from_numpy(session.run(None, {name: batch.numpy()})[0])[:, :8, None, None]

    image = torch.rand(1, 3, side, side)
    begin = time.perf_counter()
    inferers.sliding_window_inference(image, (224, 224), 4, classified, overlap=1 - 32 / 224)
    return 100 * 32 * 32 / (time.perf_counter() - begin)


def run_scaling(folder: Path, side: int, width: float) -> dict[str, Any]:
    """Seconds with one worker and with two, one thread each, in turns."""
    model, image = folder / "resnet-any.onnx", folder / "small.zarr"
    colours(image, side)
    seconds: dict[str, list[float]] = {"1": [], "2": []}
    for _ in range(2):
        for workers, found in seconds.items():
            target, report = folder / "scaling.zarr", folder / "scaling.json"
            words = ["--workers", workers, "--threads", "1", "--tile", "8x8", "--overwrite"]
            Watched(command(model, image, target, report, *words)).wait()
            found.append(json.loads(report.read_text())["seconds"])
    return {"side": side, "width": width, "seconds": seconds, "speedup": min(seconds["1"]) / min(seconds["2"])}


# What is told


def goals(data: Mapping[str, Any]) -> list[str]:
    """Each goal in words."""
    mapped, net, both = data["canvas"], data["throughput"], data["scaling"]
    share = net["pixels_per_second"] / (net["useful"] * net["pass_pixels_per_second"])
    faster = net["pixels_per_second"] / net["windows_pixels_per_second"]
    best = [check for check in mapped["checks"] if check["status"] != "skipped"]
    failed = [check["name"] for check in best if check["status"] == "failed"]
    other = net["monai_pixels_per_second"]
    beside = "MONAI is not installed" if other is None else f"{net['pixels_per_second'] / other:.0f}x MONAI's"
    return [
        f"Canvas of {mapped['side']:,} x {mapped['side']:,} with --memory {mapped['memory'] / 1e9:g}GB: peak "
        f"{mapped['peak'] / 1e9:.2f} GB (goal no more: {common.verdict(mapped['peak'] <= mapped['memory'])}); killed, "
        f"resumed after {mapped['tiles']['resumed']} of {mapped['tiles']['total']} tiles; {len(best)} comparisons of "
        f"{PLACES} random places each, {len(failed)} failed.",
        f"ResNet-18: {share:.2f} of what one pass on a tile allows (goal {SHARE_GOAL}: "
        f"{common.verdict(share >= SHARE_GOAL)}), {net['useful']:.0%} of the pixels read belong to one tile alone; "
        f"peak {net['peak'] / 1e9:.2f} GB of {net['memory'] / 1e9:g} ({common.verdict(net['peak'] <= net['memory'])}).",
        f"Over the original on every window: {faster:.1f}x (goal {WINDOWS_GOAL:g}x over MONAI, whose windows cost no "
        f"less: {common.verdict(faster >= WINDOWS_GOAL)}); {beside}.",
        f"Two workers over one: {both['speedup']:.2f}x (goal {SCALING_GOAL}: "
        f"{common.verdict(both['speedup'] >= SCALING_GOAL)}).",
    ]


def markdown(data: Mapping[str, Any]) -> str:
    """The table and what belongs below it."""
    mapped, net = data["canvas"], data["throughput"]

    def row(name: str, of: Mapping[str, Any]) -> list[str]:
        size, crop = f"{of['side']:,} x {of['side']:,}", "x".join(map(str, of["crop"]))
        rate = f"{of['pixels_per_second'] / 1e6:.2f}"
        tiles = of["tiles"] if isinstance(of["tiles"], int) else of["tiles"]["total"]
        return [name, size, str(tiles), crop, f"{of['peak'] / 1e9:.2f} of {of['memory'] / 1e9:g}", rate]

    header = ["model", "image", "tiles", "crop", "peak memory, GB", "million pixels per second"]
    rows = [row("LeNet-5", mapped), row("ResNet-18", net)]
    return "\n".join([common.table(header, rows), "", *goals(data), common.provenance(data)])


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.partition("\n")[0])
    options.add_argument("--quick", action="store_true", help="a rehearsal: small images, a narrow net")
    common.add_options(options, table=True)
    options.add_argument("--folder", help="for images and maps; default: the system's temporary folder")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parser().parse_args(arguments)
    side, resnet, small = (3000, 1024, 768) if options.quick else (SIDE, RESNET_SIDE, SCALING_SIDE)
    width = 0.125 if options.quick else 1.0
    steps: dict[str, Callable[[Path], dict[str, Any]]] = {
        "canvas": lambda folder: run_canvas(folder, side, 0.9e9 if options.quick else MEMORY),
        "throughput": lambda folder: run_resnet(folder, resnet, width, 1.2e9 if options.quick else MEMORY),
        "scaling": lambda folder: run_scaling(folder, small, width),
    }
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="convrewrite-bench-") as folder:
        parts = {name: step(Path(folder)) for name, step in steps.items()}
    data = {
        **common.head(NAME, options),
        **parts,
    }
    print(markdown(data) if options.markdown else "\n".join(goals(data)))
    common.keep(data, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
