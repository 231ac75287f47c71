"""Models that `fcn` makes no denser, and no larger."""

from refused.example import Example

DENSE = "fcn model.onnx dense.onnx --dense"
OTHER = "fcn other.onnx dense.onnx --dense"
PASS = """
import convrewrite as cr
from convrewrite.passes.{module} import {name}
from convrewrite.rewrite import run_pass

result = run_pass({name}({options}), cr.load("model.onnx").graph)
"""

EXAMPLES = (
    Example(
        "dense/dense-already",
        PASS.format(module="dense", name="Dense", options="stride=(2, 2)"),
        """
        segmentation (float[1, 2, 9, 9] image) => (float[1, 4, 4, 4] map)
        <float[4, 2, 3, 3] w = {}>
        {
            map = Conv <strides = [2, 2]> (image, w)
        }""",
        works=DENSE,
        note="The map has that stride already. `fcn --stride 2` copies the file, and says so without a code.",
    ),
    Example(
        "dense/dynamic-shape",
        PASS.format(module="dense", name="Dense", options=""),
        """
        segmentation (float[1, 2, H, W] image) => (float[1, 2, Y, X] map)
        {
            map = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)
        }""",
    ),
    Example(
        "dense/no-rule",
        DENSE,
        """
        segmentation (float[1, 2, H, W] image) => (float[1, 2, Y, X] map)
        <float[2] scale = {1, 1}, float[2] bias = {0, 0}>
        {
            pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)
            map = InstanceNormalization (pooled, scale, bias)
        }""",
        note="The normalisation takes means over all cells, and there would be others among them.",
    ),
    Example(
        "dense/lowers-stride",
        DENSE,
        """
        segmentation (float[1, 2, H, W] image) => (float[1, 4, Y, X] map, float[1, 2, V, U] pooled)
        <float[2, 4, 2, 2] w = {}>
        {
            pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)
            map = ConvTranspose <strides = [2, 2]> (pooled, w)
        }""",
    ),
    Example(
        "dense/flattened",
        PASS.format(module="dense", name="Dense", options=""),
        """
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[4, 32] fc = {}>
        {
            map = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        works=DENSE,
        note="The command converts a classifier first; the pass by itself does not.",
    ),
    Example(
        "dense/baked-shape",
        DENSE,
        """
        segmentation (float[1, 2, 9, 9] image) => (float[1, 2, 4, 4] map)
        <float[1, 2, 4, 4] offset = {}>
        {
            pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)
            map = Add (pooled, offset)
        }""",
        other="""
        segmentation (float[1, 2, 9, 9] image) => (float[1, 2, 4, 4] map)
        <float[1, 2, 1, 1] offset = {1, 2}>
        {
            pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)
            map = Add (pooled, offset)
        }""",
        works=OTHER,
    ),
    Example(
        "dense/branches",
        DENSE,
        """
        segmentation (float[1, 2, 38, 38] image) => (float[1, 2, Y, X] map)
        {
            one = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)
            two = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (image)
            map = Add (one, two)
        }""",
    ),
    Example(
        "dense/map-output",
        DENSE,
        """
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores, float[1, 2, 4, 4] map)
        <float[4, 32] fc = {}>
        {
            map = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        other="""
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[4, 32] fc = {}>
        {
            map = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        works=OTHER,
    ),
    Example(
        "dense/ceil-mode",
        DENSE,
        """
        segmentation (float[1, 2, H, W] image) => (float[1, 2, Y, X] map)
        {
            pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)
            map = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (pooled)
        }""",
        other="""
        segmentation (float[1, 2, H, W] image) => (float[1, 2, Y, X] map)
        {
            pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)
            map = AveragePool <kernel_shape = [3, 3], strides = [2, 2]> (pooled)
        }""",
        works=OTHER,
    ),
    Example(
        "dense/opset",
        DENSE,
        """
        <ir_version: 4, opset_import: ["": 9]>
        segmentation (float[1, 2, H, W] image) => (float[1, 2, Y, X] map)
        {
            once = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)
            map = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (once)
        }""",
        works=f"{DENSE} --opset 10",
    ),
    Example(
        "dense/uses-indices",
        DENSE,
        """
        segmentation (float[1, 2, H, W] image) => (float[1, 2, Y, X] map, int64[1, 2, Y, X] places)
        {
            map, places = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)
        }""",
        other="""
        segmentation (float[1, 2, H, W] image) => (float[1, 2, Y, X] map)
        {
            map = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)
        }""",
        works=OTHER,
    ),
    Example(
        "upsample/no-window",
        PASS.format(module="upsample", name="Upsample", options=""),
        """
        segmentation (float[1, 2, H, W] image) => (float[1, 4, Y, X] map)
        <float[4, 2, 3, 3] w = {}>
        {
            map = Conv (image, w)
        }""",
        other="""
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        works="fcn other.onnx as-large.onnx --upsample bilinear",
        note="Seen from Python alone: the pass is a step of `fcn`, which knows the windows where it makes them.",
    ),
    Example(
        "upsample/opset",
        "fcn model.onnx as-large.onnx --upsample bilinear",
        """
        <ir_version: 4, opset_import: ["": 10]>
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}, float[4] bias = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc, bias)
        }""",
        works="fcn model.onnx as-large.onnx --upsample bilinear --opset 11",
    ),
    Example(
        "upsample/classes",
        "fcn model.onnx as-large.onnx --upsample bilinear",
        """
        classifier (float[1, 2, 9, 9] image) => (int64[1, 1] class)
        <float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc)
            class = ArgMax <axis = 1> (scores)
        }""",
        works="fcn model.onnx as-large.onnx --upsample nearest",
    ),
    Example(
        "upsample/not-a-map",
        "fcn model.onnx as-large.onnx --upsample bilinear",
        """
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores, float[1, 3, 7, 7] map)
        <float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        other="""
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        works="fcn other.onnx as-large.onnx --upsample bilinear",
    ),
)
