"""Reasons of no pass: a pattern, the proof, whether it is worth it."""

from refused.example import Example

LOW_RANK = "np.outer(np.sin(np.arange(32)), np.cos(np.arange(32)))"
FULL_RANK = "np.eye(32)"
ALMOST = f"{LOW_RANK} + 0.05 * np.random.default_rng(0).standard_normal((32, 32))"

LAYER = """
network (float[7, 32] x) => (float[7, 32] y)
<float[32, 32] w = {}>
{
    y = MatMul (x, w)
}"""

EXAMPLES = (
    Example(
        "rewrite/left-out",
        "separable model.onnx factored.onnx --skip y",
        LAYER,
        weights={"w": LOW_RANK},
        works="separable model.onnx factored.onnx",
    ),
    Example(
        "verify/failed",
        "verify model.onnx other.onnx",
        """
        network (float[1, 2, 9, 9] image) => (float[1, 4, 7, 7] map)
        <float[4, 2, 3, 3] w = {}>
        {
            map = Conv (image, w)
        }""",
        other="""
        network (float[1, 2, 9, 9] image) => (float[1, 4, 7, 7] map)
        <float[4, 2, 3, 3] w = {}>
        {
            more = Conv (image, w)
            map = Relu (more)
        }""",
        note="What a command makes is held against the model that it was given in the same way. "
        "No model is known whose rewrite fails so: that would be a fault of convrewrite.",
    ),
    Example(
        "verify/vacuous",
        "separable model.onnx factored.onnx",
        """
        network (float[7, 32] x) => (float[7, 32] y)
        <float[32, 32] w = {}, float low = {-1e9}>
        {
            product = MatMul (x, w)
            least = Add (product, low)
            y = Relu (least)
        }""",
        weights={"w": LOW_RANK},
        works="separable model.onnx factored.onnx --no-verify",
        note="No input as large as those that are drawn brings the sum above 0. Real inputs may: `--data`.",
    ),
    Example(
        "accept/not-smaller",
        "separable model.onnx factored.onnx",
        LAYER,
        weights={"w": ALMOST},
        works="separable model.onnx factored.onnx --tol 0.2",
        note="A matrix of rank 1, but for noise.",
    ),
    Example(
        "accept/over-budget",
        "separable model.onnx factored.onnx --tol 0.2 --max-output-error 1e-4",
        LAYER,
        weights={"w": ALMOST},
        works="separable model.onnx factored.onnx --tol 0.2 --max-output-error 0.5",
    ),
    Example(
        "accept/not-faster",
        "separable model.onnx factored.onnx --accept faster",
        LAYER,
        weights={"w": FULL_RANK},
        note="No form has fewer multiply-accumulates; it is not even timed.",
    ),
    Example(
        "accept/whole-not-faster",
        "separable model.onnx factored.onnx --accept faster",
        LAYER,
        weights={"w": LOW_RANK},
        works="separable model.onnx factored.onnx --accept smaller",
        note="Whether a model gives it depends on the machine: on some, the two smaller products are faster than "
        "the one by themselves, and the model as a whole is not.",
    ),
    Example(
        "apply/whole-map",
        "apply model.onnx image.npy map.npy",
        """
        segmentation (float[1, 2, H, W] image) => (float[1, 2, H, W] map)
        {
            mean = GlobalAveragePool (image)
            map = Mul (image, mean)
        }""",
        note="image.npy is any image of two channels.",
    ),
    Example(
        "apply/not-a-map",
        "apply model.onnx image.npy map.npy",
        """
        classifier (float[1, 2, H, W] image) => (float[1, 2, 1, 1] scores)
        {
            scores = GlobalAveragePool (image)
        }""",
        works="fcn model.onnx any-size.onnx --window 9x9\napply any-size.onnx image.npy map.npy",
    ),
    Example(
        "apply/position",
        "apply model.onnx image.npy map.npy",
        """
        segmentation (float[1, 2, H, W] image) => (float[1, 2, H, W] map)
        <int64 first = {0}, int64 height = {2}, int64 one = {1}, int64[4] column = {1, 1, -1, 1}>
        {
            shape = Shape (image)
            rows = Gather (shape, height)
            whole = Range (first, rows, one)
            numbers = Cast <to = 1> (whole)
            row = Reshape (numbers, column)
            map = Add (image, row)
        }""",
    ),
    Example(
        "apply/fixed-batch",
        "apply model.onnx image.npy map.npy",
        """
        segmentation (float[2, 2, H, W] image) => (float[2, 2, H, W] map)
        {
            map = Relu (image)
        }""",
        works="fcn model.onnx any-batch.onnx --dynamic-batch\napply any-batch.onnx image.npy map.npy",
    ),
    Example(
        "apply/other-input",
        "apply model.onnx image.npy map.npy",
        """
        segmentation (float[1, 2, H, W] image, float[1, 2, 1, 1] gain) => (float[1, 2, H, W] map)
        {
            map = Mul (image, gain)
        }""",
        other="""
        segmentation (float[1, 2, H, W] image) => (float[1, 2, H, W] map)
        <float[1, 2, 1, 1] gain = {2, 3}>
        {
            map = Mul (image, gain)
        }""",
        works="apply other.onnx image.npy map.npy",
    ),
    Example(
        "apply/fixed-size",
        "apply model.onnx image.npy map.npy",
        """
        segmentation (float[1, 2, 32, 32] image) => (float[1, 3, 16, 16] map)
        <float[3, 2, 3, 3] w = {}>
        {
            map = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (image, w)
        }""",
        other="""
        segmentation (float[1, 2, H, W] image) => (float[1, 3, Y, X] map)
        <float[3, 2, 3, 3] w = {}>
        {
            map = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (image, w)
        }""",
        works="apply other.onnx image.npy map.npy",
    ),
)
