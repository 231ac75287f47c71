"""Models whose time is known, or soon measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from cli_models import run
from onnx import TensorProto, helper

from convrewrite.models import lenet5_path

LENET = lenet5_path()


# Models


def conv_net(path: Path, convs: int = 1, side: int | str = 32, channels: int = 64, name: str = "x") -> Path:
    """3 x 3 convolutions in a row, which take all of the time."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((channels, channels, 3, 3)) / 24).astype(np.float32)
    names = [name, *(f"t{i}" for i in range(1, convs)), "y"]
    nodes = [
        helper.make_node("Conv", [names[i], "w"], [names[i + 1]], kernel_shape=[3, 3], pads=[1] * 4)
        for i in range(convs)
    ]
    batch = 1 if isinstance(side, int) else "n"
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, [batch, channels, side, side]) for end in (name, "y")]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], [onnx.numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def convert(source: Path, target: Path) -> Path:
    assert run("fcn", source, target, "--no-verify", "-q").returncode == 0
    return target
