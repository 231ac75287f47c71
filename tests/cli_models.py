"""Small models and ways to run the command line, shared by the tests of the commands."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer_once  # noqa: F401
import warm
from onnx import helper
from processes import HANGS

from convrewrite.cli import app as cli
from helpers import Net

SCRIPT = shutil.which("convrewrite", path=os.path.dirname(sys.executable))
COMMAND = [SCRIPT] if SCRIPT else [sys.executable, "-m", "convrewrite"]
"""The console script where the package is installed beside this Python, else the module."""


# Models that convert ------------------------------------------------------------------------------------------------


def plain(opset: int = 13, *, batch: int | str = 1) -> onnx.ModelProto:
    """Valid convolutions and one fully connected layer: `windows`, stride 2, a window of 16 x 12."""
    net = Net(batch, 3, 16, 12, opset=opset)
    trunk = net.conv(net.Relu(net.conv("x", 4, 3, 3)), 6, 3, 3, strides=[2, 2])
    return net.model(net.fc(net.Flatten(trunk), 5, name="head"))


def padded() -> onnx.ModelProto:
    """A padded convolution: `native-size`."""
    net = Net(1, 3, 10, 8)
    trunk = net.Relu(net.conv("x", 4, 3, 3, pads=[1, 1, 1, 1], strides=[2, 2]))
    return net.model(net.Softmax(net.fc(net.Flatten(trunk), 5), axis=1))


def symbolic() -> onnx.ModelProto:
    """A classifier whose input size is open; its head was made for 16 x 12."""
    net = Net(1, 3, 16, 12)
    trunk = net.conv(net.Relu(net.conv("x", 4, 3, 3)), 6, 3, 3, strides=[2, 2])
    model = net.model(net.fc(net.Flatten(trunk), 5))
    for place, name in ((2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    return model


def convolutional() -> onnx.ModelProto:
    """Nothing collapses its map, so there is nothing to do."""
    net = Net(1, 3, "h", "w")
    return net.model(net.Relu(net.conv("x", 4, 3, 3)))


def constant_output() -> onnx.ModelProto:
    """Weights of zero: its output is the same for every input."""
    net = Net(1, 3, 10, 8)
    trunk = net.Relu(net.conv("x", 4, 3, 3))
    weight = net.const(np.zeros((5, 4 * 8 * 6)))
    return net.model(net.Gemm(net.Flatten(trunk), weight, net.ints(5), transB=1))


# Models that do not -------------------------------------------------------------------------------------------------


def mean_image() -> onnx.ModelProto:
    """A constant that differs from pixel to pixel."""
    net = Net(1, 3, 10, 8)
    trunk = net.conv(net.Sub("x", net.ints(1, 3, 10, 8, name="mean_image")), 4, 3, 3)
    return net.model(net.fc(net.Flatten(trunk), 5))


def flattened_map() -> onnx.ModelProto:
    """No head: the flattened map itself is the output."""
    net = Net(1, 3, 10, 8)
    return net.model(net.Flatten(net.conv("x", 4, 3, 3)))


def custom_operator() -> onnx.ModelProto:
    """An operator from another domain, which ONNX Runtime does not have."""
    model = plain()
    model.graph.node[1].domain = "com.example"
    model.graph.node[1].op_type = "Sparkle"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    return model


def unknown_to_runtime() -> onnx.ModelProto:
    """Convolutions in double precision: valid, but ONNX Runtime has none on the CPU."""
    net = Net(1, 3, 10, 8, dtype=np.float64)
    trunk = net.Conv("x", net.ints(4, 3, 3, 3))
    return net.model(net.Gemm(net.Flatten(trunk), net.ints(5, 4 * 8 * 6), transB=1))


def flat_input() -> onnx.ModelProto:
    """The image enters as a vector."""
    net = Net(1, 3 * 10 * 8)
    trunk = net.conv(net.Reshape("x", net.const([1, 3, 10, 8])), 4, 3, 3)
    return net.model(net.fc(net.Flatten(trunk), 5))


def generator() -> onnx.ModelProto:
    """A fully connected layer ahead of the trunk, over a latent map."""
    net = Net(1, 16, 1, 1)
    seed = net.Reshape(net.fc(net.Flatten("x"), 4 * 6 * 5), net.const([1, 4, 6, 5]))
    return net.model(net.fc(net.Flatten(net.conv(seed, 3, 3, 3)), 5))


def attention() -> onnx.ModelProto:
    """A patch embedding whose tokens attend to each other."""
    net = Net(1, 3, 16, 16)
    patches = net.conv("x", 8, 4, 4, strides=[4, 4])
    tokens = net.Transpose(net.Reshape(patches, net.const([1, 8, 16])), perm=[0, 2, 1])
    scores = net.Softmax(net.MatMul(tokens, net.Transpose(tokens, perm=[0, 2, 1])), axis=2)
    pooled = net.reduce("ReduceMean", net.MatMul(scores, tokens), [1], keepdims=0)
    return net.model(net.fc(pooled, 5))


def dynamic_channels() -> onnx.ModelProto:
    """The number of channels is open."""
    model = plain()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "channels"
    return model


def with_nan(name: str, model: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """A model with one NaN in the weight (input 1) of its first Conv or of its Gemm."""
    model = model or plain()
    node = next(node for node in model.graph.node if node.op_type == name)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return model


def dangling() -> onnx.ModelProto:
    """A node reads a tensor that nothing makes."""
    model = plain()
    model.graph.node[1].input[0] = "nowhere"
    return model


def zero_size() -> onnx.ModelProto:
    """An input without elements."""
    model = plain()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 0
    return model


def of_opset(version: int) -> onnx.ModelProto:
    """A model that declares another operator set."""
    model = plain(opset=7)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", version))
    return model


# Running ------------------------------------------------------------------------------------------------------------


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model."""
    path.write_bytes(model.SerializeToString())
    return path


def run(
    *arguments: str | Path, cwd: Path | None = None, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own: a fork of one that is warm, where it sees the same environment."""
    words = list(map(str, arguments))
    environment = {**os.environ, "COLUMNS": "80", **(env or {})}
    if hasattr(os, "fork") and server().fits(environment):
        return server().run(words, cwd or Path.cwd(), stdin, environment)
    words = [*COMMAND, *words]
    return subprocess.run(words, cwd=cwd, input=stdin, capture_output=True, env=environment, timeout=HANGS, check=False)


@functools.cache
def server() -> warm.Server:
    """Started once per process that runs tests, in the environment that `run` gives its commands."""
    return warm.Server({**os.environ, "COLUMNS": "80"})


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The console script's function in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["convrewrite", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert isinstance(left.value.code, int)
    return left.value.code


def snapshot(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder, to see that nothing changed."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Samples for --data."""
    return np.random.default_rng(seed).random((count, *shape), np.float32)
