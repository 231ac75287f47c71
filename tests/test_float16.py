"""Models of half precision through every way of `fcn`, `fc-to-conv` and `conv-to-fc`.

The files list no types of the tensors inside, as most exporters write them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

import convrewrite as cr
from convrewrite import models

SMALL: dict[str, dict[str, Any]] = {
    "resnet18": {"width": 0.125, "size": 64},
    "googlenet": {"width": 0.125, "size": 64},
    "shufflenet": {"width": 0.125, "size": 64},
    "densenet121": {"width": 0.125, "size": 64},
}
"""Global pools, maxima over padding, means over padding and channel shuffles, and means without padding."""


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in half precision."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    attributes = [a.t for node in half.graph.node for a in node.attribute if a.HasField("t")]
    for tensor in (*half.graph.initializer, *attributes):
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    del half.graph.value_info[:]
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return half


def run(path: Path, image: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})[0]


def test_a_trained_net_on_every_crop(tmp_path: Path) -> None:
    """LeNet-5: every pixel of a larger image, against the original in half precision on the crop around it."""
    onnx.save(halved(onnx.load(models.lenet5_path())), tmp_path / "m.onnx")
    made = cr.fcn(tmp_path / "m.onnx", stride=2, dynamic_batch=True)
    made.save(tmp_path / "o.onnx")
    image = np.random.default_rng(0).random((2, 1, 40, 37)).astype(np.float16)
    cells = run(tmp_path / "o.onnx", image)
    assert (cells.dtype, cells.shape) == (np.float16, (2, 11, 5, 3))
    for n, i, j in np.ndindex(2, 5, 3):
        crop = image[n : n + 1, :, 2 * i : 2 * i + 32, 2 * j : 2 * j + 32]
        np.testing.assert_allclose(cells[n, :, i, j], run(tmp_path / "m.onnx", crop)[0], atol=4e-3)


@pytest.mark.parametrize("name", SMALL)
def test_built_networks(tmp_path: Path, name: str) -> None:
    """Every fourth cell of the denser map is the old map's, in ONNX Runtime; pixels keep their type."""
    onnx.save(halved(models.build(name, **SMALL[name])), tmp_path / "m.onnx")
    image = np.random.default_rng(0).standard_normal((1, 3, 96, 96)).astype(np.float16)
    maps = []
    for label, how in (("coarse", {}), ("dense", {"stride": 8}), ("pixels", {"upsample": "nearest"})):
        cr.fcn(tmp_path / "m.onnx", **how).save(tmp_path / f"{label}.onnx")
        maps.append(run(tmp_path / f"{label}.onnx", image))
        assert maps[-1].dtype == np.float16
    coarse, dense, pixels = maps
    limit = 8e-3 * float(np.abs(coarse).max())
    np.testing.assert_allclose(dense[:, :, ::4, ::4], coarse, atol=limit)
    assert pixels.shape[2:] == (96, 96)
    np.testing.assert_allclose(pixels[0, :, [0, 0, -1, -1], [0, -1, 0, -1]].T.reshape(-1, 2, 2), coarse[0], atol=limit)


@pytest.mark.parametrize("name", SMALL)
def test_linear_layers_as_convolutions_and_back(tmp_path: Path, name: str) -> None:
    onnx.save(halved(models.build(name, **SMALL[name])), tmp_path / "m.onnx")
    convolutional = cr.transform(tmp_path / "m.onnx", "fc-to-conv")
    back = cr.transform(convolutional.model, "conv-to-fc")
    convolutional.save(tmp_path / "c.onnx")
    back.save(tmp_path / "b.onnx")
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float16)
    want = run(tmp_path / "m.onnx", image)
    for path in ("c.onnx", "b.onnx"):
        np.testing.assert_allclose(run(tmp_path / path, image), want, atol=8e-3 * float(np.abs(want).max()))
    assert [n.op_type for n in onnx.load(tmp_path / "c.onnx").graph.node].count("Gemm") == 0
    assert [n.op_type for n in onnx.load(tmp_path / "b.onnx").graph.node].count("Gemm") == 1
