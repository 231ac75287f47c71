"""Layers that `separable` leaves as they are."""

from refused.example import Example

SEPARABLE = "separable model.onnx factored.onnx"
LOW_RANK = "np.outer(np.sin(np.arange(32)), np.cos(np.arange(32)))"

EXAMPLES = (
    Example(
        "separable/weight-not-constant",
        SEPARABLE,
        """
        network (float[1, 4, 8, 8] image, float[4, 4, 3, 3] w) => (float[1, 4, 6, 6] map)
        {
            map = Conv (image, w)
        }""",
    ),
    Example(
        "separable/weight-type",
        SEPARABLE,
        """
        network (int32[3, 4] x) => (int32[3, 5] y)
        <int32[4, 5] w = {}>
        {
            y = MatMul (x, w)
        }""",
        weights={"w": "1"},
    ),
    Example(
        "separable/unknown-rank",
        SEPARABLE,
        """
        network (float[1, 4, 5, 5, 5, 5] image) => (float[1, 2, 5, 5, 5, 5] map)
        <float[2, 4, 1, 1, 1, 1] w = {}>
        {
            map = Conv (image, w)
        }""",
    ),
    Example(
        "separable/nan-weight",
        SEPARABLE,
        """
        network (float[1, 4, 8, 8] image) => (float[1, 4, 6, 6] map)
        <float[4, 4, 3, 3] w = {}>
        {
            map = Conv (image, w)
        }""",
        weights={"w": "np.nan"},
    ),
    Example(
        "separable/already-factored",
        "separable model.onnx factored.onnx\nseparable factored.onnx again.onnx --tol 0.5",
        """
        network (float[7, 32] x) => (float[7, 32] y)
        <float[32, 32] w = {}>
        {
            y = MatMul (x, w)
        }""",
        weights={"w": LOW_RANK},
    ),
    Example(
        "separable/no-form",
        SEPARABLE + " --form spatial",
        """
        network (float[7, 32] x) => (float[7, 32] y)
        <float[32, 32] w = {}>
        {
            y = MatMul (x, w)
        }""",
        weights={"w": LOW_RANK},
        works=SEPARABLE,
        note="A matrix has no rows and columns of an image.",
    ),
    Example(
        "separable/zero-kernel",
        SEPARABLE,
        """
        network (float[1, 4, 8, 8] image) => (float[1, 4, 6, 6] map)
        <float[4, 4, 3, 3] w = {}>
        {
            map = Conv (image, w)
        }""",
        weights={"w": "0"},
    ),
    Example(
        "separable/not-folded",
        SEPARABLE,
        """
        <ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        network (float[7, 32] x) => (float[7, 32] y)
        <float[32, 32] stored = {}>
        {
            w = com.microsoft.Gelu (stored)
            y = MatMul (x, w)
        }""",
        note="The weight is computed by an operator of ONNX Runtime alone.",
    ),
    Example(
        "separable/not-a-matrix",
        SEPARABLE,
        """
        network (float[7, 32] x) => (float[2, 7, 32] y)
        <float[2, 32, 32] w = {}>
        {
            y = MatMul (x, w)
        }""",
    ),
    Example(
        "separable/open-rank",
        SEPARABLE,
        """
        network (float[32, 5] x, int64[K] shape) => (float[M, N] y)
        <float[32, 32] w = {}>
        {
            columns = Reshape (x, shape)
            y = MatMul (w, columns)
        }""",
        weights={"w": LOW_RANK},
        note="Nothing says how many axes the Reshape gives: a vector is multiplied otherwise than a matrix.",
    ),
)
