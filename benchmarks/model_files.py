"""Large model files: time and memory of rewriting them, beside copying them and beside other tools.

    python -m benchmarks.model_files --out benchmarks/results/model_files.json --date 2026-01-31

    VGG-16, 553 MB in one file        convrewrite fcn --no-verify
    75 convolutions, 2.8 GB beside    convrewrite groups --no-verify; one of them is planted in two groups

Beside each, in turns and in the same run: a plain copy of the files, onnx and graphsurgeon reading and writing, and
onnxslim where it is installed. Each is a fresh process, start of the interpreter included; memory is the peak resident
size that the kernel counts for it, mapped pages of the files included. Needs `os.wait4`: Linux or macOS.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks import common
from benchmarks.convert_vgg16 import BUILD

NAME = "model_files"
CHANNELS, LAYERS = 1024, 75
VGG_SECONDS, VGG_MB, LARGE_MB, LARGE_SHARE = 1.5, 300, 600, 1.5
MB = 1e6

PYTHON = (sys.executable, "-c")
TOOLS: dict[str, Sequence[str]] = {
    "onnx": (*PYTHON, "import sys, onnx; onnx.save(onnx.load(sys.argv[1]), sys.argv[2], {external})"),
    "graphsurgeon": (
        *PYTHON,
        "import sys, onnx, onnx_graphsurgeon as gs; "
        "onnx.save(gs.export_onnx(gs.import_onnx(onnx.load(sys.argv[1]))), sys.argv[2], {external})",
    ),
    "onnxslim": (
        *PYTHON,
        "import sys, onnx, onnxslim; onnx.save(onnxslim.slim(onnx.load(sys.argv[1])), sys.argv[2], {external})",
    ),
}
LARGE = (
    *PYTHON,
    "import sys, pathlib; from benchmarks import model_files; "
    "model_files.large(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))",
)
"""A process apart: a child counts the memory of the one that started it."""

EXTERNAL = "save_as_external_data=True, location='beside.data'"


def large(path: Path, layers: int, channels: int) -> None:
    """Convolutions with their weights in a file beside; the first has two groups, in no order of the channels."""
    rng = np.random.default_rng(0)
    block = (rng.standard_normal((channels, channels, 3, 3)) / channels).astype(np.float32)
    order = rng.permutation(channels)
    half = channels // 2
    planted = block.copy()
    planted[np.ix_(order[:half], order[half:])] = 0
    planted[np.ix_(order[half:], order[:half])] = 0
    nodes, tensors, size = [], [], block.nbytes
    with open(path.with_suffix(".data"), "wb") as file:
        for layer in range(layers):
            file.write((planted if layer == 0 else block * np.float32(1 + layer / 100)).tobytes())
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=block.shape)
            tensor.data_location = TensorProto.EXTERNAL
            where = {"location": path.with_suffix(".data").name, "offset": layer * size, "length": size}
            for key, value in where.items():
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            made = "y" if layer == layers - 1 else f"t{layer + 1}"
            nodes.append(helper.make_node("Conv", [f"t{layer}", f"w{layer}"], [made], f"c{layer}", pads=[1, 1, 1, 1]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 16, 16]) for name in ("t0", "y")]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def measure(command: Sequence[str]) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of one fresh process, its flush to the disk included."""
    os.sync()
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=common.ROOT, env=common.environment(), stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        os.sync()
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)}\nfailed:\n{errors.read().decode(errors='replace').strip()}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def commands(name: str, source: Path, target: Path) -> dict[str, list[str]]:
    """What takes turns on one model."""
    own = ["fcn"] if name == "VGG-16" else ["groups"]
    beside = source.with_suffix(".data")
    external = EXTERNAL if beside.exists() else ""
    found = {
        "copy": ["cp", str(source), *([str(beside)] if beside.exists() else []), str(target.parent)],
        "convrewrite": [sys.executable, "-m", "convrewrite", *own, str(source), str(target), "--no-verify", "--quiet"],
    }
    for tool, words in TOOLS.items():
        if importlib.util.find_spec(tool if tool != "graphsurgeon" else "onnx_graphsurgeon") is not None:
            found[tool] = [*words[:-1], words[-1].format(external=external), str(source), str(target)]
    return found


def run(name: str, source: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds and bytes of each, the smallest of several rounds."""
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    out = folder / "out"
    for _ in range(rounds):
        for tool, words in commands(name, source, out / "result.onnx").items():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            elapsed, peak = measure(words)
            seconds.setdefault(tool, []).append(elapsed)
            peaks[tool] = max(peaks.get(tool, 0), peak)
    files = [source, *([source.with_suffix(".data")] if source.with_suffix(".data").exists() else [])]
    size = sum(file.stat().st_size for file in files)
    return {"bytes": size, "seconds": {tool: min(found) for tool, found in seconds.items()}, "peaks": peaks}


def goals(data: Mapping[str, Any]) -> list[str]:
    """Each goal in words."""
    small, big = data["models"]["VGG-16"], data["models"]["large"]
    seconds, memory = small["seconds"]["convrewrite"], small["peaks"]["convrewrite"] / MB
    share = big["seconds"]["convrewrite"] / big["seconds"]["copy"]
    peak = big["peaks"]["convrewrite"] / MB
    return [
        f"VGG-16: {seconds:.1f} s (goal {VGG_SECONDS}: {common.verdict(seconds <= VGG_SECONDS)}), "
        f"{memory:.0f} MB (goal {VGG_MB}: {common.verdict(memory <= VGG_MB)}).",
        f"{big['bytes'] / 1e9:.1f} GB: {share:.1f} times a plain copy (goal {LARGE_SHARE}: "
        f"{common.verdict(share <= LARGE_SHARE)}), {peak:.0f} MB "
        f"(goal {LARGE_MB}: {common.verdict(peak <= LARGE_MB)}).",
    ]


def markdown(data: Mapping[str, Any]) -> str:
    """The table and what belongs below it."""
    tools = list(next(iter(data["models"].values()))["seconds"])
    rows = []
    for name, found in data["models"].items():
        cells = [f"{found['seconds'][t]:.1f} s, {found['peaks'][t] / MB:.0f} MB" for t in tools]
        rows.append([f"{name}, {found['bytes'] / 1e9:.1f} GB", *cells])
    return "\n".join([common.table(["model", *tools], rows), "", *goals(data), common.provenance(data)])


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.partition("\n")[0])
    options.add_argument("--rounds", type=int, default=3, help="repetitions; default: 3")
    options.add_argument("--quick", action="store_true", help="a rehearsal: small models, one repetition")
    common.add_options(options, table=True)
    options.add_argument("--folder", help="for 7 GB of models; default: the system's temporary folder")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    options = parser().parse_args(arguments)
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="convrewrite-bench-") as name:
        folder = Path(name)
        common.run_quietly([*BUILD, str(folder / "vgg16.onnx"), "0.125" if options.quick else "1"])
        size = (3, 128) if options.quick else (LAYERS, CHANNELS)
        common.run_quietly([*LARGE, str(folder / "large.onnx"), *map(str, size)])
        models = {
            "VGG-16": run("VGG-16", folder / "vgg16.onnx", folder, rounds),
            "large": run("large", folder / "large.onnx", folder, rounds),
        }
    data = {
        **common.head(NAME, options),
        "models": models,
    }
    print(markdown(data) if options.markdown else "\n".join(goals(data)))
    common.keep(data, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
