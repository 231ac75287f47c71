"""Models whose batch stays as it is."""

from refused.example import Example

OPEN = "transform open-batch model.onnx any-batch.onnx"
OTHER = "transform open-batch other.onnx any-batch.onnx"

EXAMPLES = (
    Example(
        "open-batch/already-open",
        OPEN,
        """
        network (float[N, 2, 6, 6] image) => (float[N, 2, 6, 6] map)
        {
            map = Relu (image)
        }""",
    ),
    Example(
        "open-batch/open-size",
        OPEN,
        """
        network (float[1, 2, H, W] image) => (float[1, 4] scores)
        <float[4, 72] fc = {}>
        {
            flat = Flatten (image)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        works=f"{OPEN} --size 6x6",
        note="Some usual sizes are tried first; this model runs at none of them.",
    ),
    Example(
        "open-batch/no-input",
        OPEN,
        """
        network (float[6] x) => (float[6] y)
        {
            y = Relu (x)
        }""",
    ),
    Example(
        "open-batch/baked",
        OPEN,
        """
        network (float[2, 4] x) => (float[1, 4] one, float[1, 4] two)
        <int64[2] each = {1, 1}>
        {
            one, two = Split <axis = 0> (x, each)
        }""",
    ),
    Example(
        "open-batch/no-shape",
        OPEN,
        """
        <ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        network (float[1, 6] x) => (float[1, 4] y)
        <float scale = {0.1}, uint8 zero = {0}, int8[6, 4] w = {}, int8 middle = {0}, int32[4] bias = {}>
        {
            whole = QuantizeLinear (x, scale, zero)
            product = com.microsoft.QGemm (whole, scale, zero, w, scale, middle, bias, scale, zero)
            y = DequantizeLinear (product, scale, zero)
        }""",
        weights={"w": "1", "bias": "0"},
        note="The package onnx knows nothing of this operator of ONNX Runtime.",
    ),
    Example(
        "open-batch/mixed",
        OPEN,
        """
        network (float[1, 2, 6, 6] image) => (float[1, 2, 6, 6] map)
        {
            mean = ReduceMean <axes = [0]> (image)
            map = Sub (image, mean)
        }""",
        other="""
        network (float[1, 2, 6, 6] image) => (float[1, 2, 6, 6] map)
        {
            mean = ReduceMean <axes = [1]> (image)
            map = Sub (image, mean)
        }""",
        works=OTHER,
        note="A mean over the batch of one image is the image; of two, each sees the other.",
    ),
    Example(
        "open-batch/counted",
        OPEN,
        """
        network (float[1, 2, 6, 6] image) => (float[1, 2, 6, 6] map)
        <int64 first = {0}>
        {
            shape = Shape (image)
            count = Gather (shape, first)
            number = Cast <to = 1> (count)
            map = Mul (image, number)
        }""",
    ),
    Example(
        "open-batch/no-rule",
        OPEN,
        """
        network (float[1, 2, 6, 6] image) => (float[1, 2, 6, 6] map)
        {
            pooled, places = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image)
            map = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (pooled, places)
        }""",
        note="MaxUnpool counts its places over all images.",
    ),
)
