"""Layers that `fc-to-conv` and `conv-to-fc` leave as they are."""

from refused.example import Example

TO_CONV = "fc-to-conv model.onnx convolutions.onnx"
TO_FC = "conv-to-fc model.onnx products.onnx"

EXAMPLES = (
    Example(
        "fc-to-conv/not-constant",
        TO_CONV,
        """
        attention (float[7, 4] x) => (float[7, 7] y)
        {
            turned = Transpose (x)
            y = MatMul (x, turned)
        }""",
    ),
    Example(
        "fc-to-conv/not-a-matrix",
        TO_CONV,
        """
        network (float[7, 4] x) => (float[2, 7, 5] y)
        <float[2, 4, 5] w = {}>
        {
            y = MatMul (x, w)
        }""",
        other="""
        network (float[7, 4] x) => (float[7, 5] one, float[7, 5] two)
        <float[4, 5] first = {}, float[4, 5] second = {}>
        {
            one = MatMul (x, first)
            two = MatMul (x, second)
        }""",
        works="fc-to-conv other.onnx convolutions.onnx",
    ),
    Example(
        "fc-to-conv/open-shape",
        TO_CONV,
        """
        network (float[N, 4, M] x) => (float[1, N, 5, M] y)
        <float[1, 1, 5, 4] w = {}>
        {
            y = MatMul (w, x)
        }""",
        other="""
        network (float[N, 4, 7] x) => (float[1, N, 5, 7] y)
        <float[1, 1, 5, 4] w = {}>
        {
            y = MatMul (w, x)
        }""",
        works="fc-to-conv other.onnx convolutions.onnx",
    ),
    Example(
        "fc-to-conv/added-matrix",
        TO_CONV,
        """
        network (float[7, 4] x) => (float[7, 5] y)
        <float[4, 5] w = {}, float[7, 5] offset = {}>
        {
            y = Gemm (x, w, offset)
        }""",
        other="""
        network (float[7, 4] x) => (float[7, 5] y)
        <float[4, 5] w = {}, float[7, 5] offset = {}>
        {
            product = Gemm (x, w)
            y = Add (product, offset)
        }""",
        works="fc-to-conv other.onnx convolutions.onnx",
    ),
    Example(
        "fc-to-conv/weight-type",
        TO_CONV,
        """
        network (int32[7, 4] x) => (int32[7, 5] y)
        <int32[4, 5] w = {}>
        {
            y = MatMul (x, w)
        }""",
        weights={"w": "1"},
    ),
    Example(
        "conv-to-fc/slides",
        TO_FC,
        """
        network (float[1, 4, 8, 8] image) => (float[1, 5, 6, 6] map)
        <float[5, 4, 3, 3] w = {}>
        {
            map = Conv (image, w)
        }""",
    ),
    Example(
        "conv-to-fc/open-map",
        TO_FC,
        """
        network (float[N, 4] frames) => (float[1, 5, T] y)
        <int64[1] first = {0}, float[5, 4, 1] w = {}>
        {
            turned = Transpose (frames)
            line = Unsqueeze (turned, first)
            y = Conv (line, w)
        }""",
        other="""
        network (float[1, 4] frames) => (float[1, 5, 1] y)
        <int64[1] first = {0}, float[5, 4, 1] w = {}>
        {
            turned = Transpose (frames)
            line = Unsqueeze (turned, first)
            y = Conv (line, w)
        }""",
        works="conv-to-fc other.onnx products.onnx",
        note="The batch becomes the time of the convolution, and it is open.",
    ),
    Example(
        "conv-to-fc/grouped",
        TO_FC,
        """
        network (float[1, 4, 3, 3] image) => (float[1, 4, 1, 1] map)
        <float[4, 2, 3, 3] w = {}>
        {
            map = Conv <group = 2> (image, w)
        }""",
        works="groups model.onnx dense.onnx --expand dense\nconv-to-fc dense.onnx products.onnx",
    ),
    Example(
        "conv-to-fc/not-constant",
        TO_FC,
        """
        network (float[1, 4, 3, 3] image, float[5, 4, 3, 3] w) => (float[1, 5, 1, 1] map)
        {
            map = Conv (image, w)
        }""",
    ),
    Example(
        "conv-to-fc/opset",
        TO_FC,
        """
        <ir_version: 4, opset_import: ["": 6]>
        network (float[1, 4, 3, 3] image) => (float[1, 5, 1, 1] map)
        <float[5, 4, 3, 3] w = {}>
        {
            map = Conv (image, w)
        }""",
        other="""
        <ir_version: 4, opset_import: ["": 7]>
        network (float[1, 4, 3, 3] image) => (float[1, 5, 1, 1] map)
        <float[5, 4, 3, 3] w = {}>
        {
            map = Conv (image, w)
        }""",
        works="conv-to-fc other.onnx products.onnx",
    ),
)
