"""Models that `fcn` leaves as they are."""

from refused.example import Example

FCN = "fcn model.onnx any-size.onnx"
WORKS = "fcn other.onnx any-size.onnx"

EXAMPLES = (
    Example(
        "fcn/already-convolutional",
        FCN,
        """
        segmentation (float[1, 2, 9, 9] image) => (float[1, 4, 7, 7] map)
        <float[4, 2, 3, 3] w = {}>
        {
            map = Conv (image, w)
        }""",
        note="No operator takes the rows and columns together. The file is copied.",
    ),
    Example(
        "fcn/flat-input",
        FCN,
        """
        classifier (float[1, 162] vector) => (float[1, 4] scores)
        <int64[4] shape = {1, 2, 9, 9}, float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}>
        {
            image = Reshape (vector, shape)
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
        works=WORKS,
    ),
    Example(
        "fcn/no-image-input",
        FCN,
        """
        of_features (float[1, 16] features, float[1, 16] more) => (float[1, 4] scores)
        <float[4, 16] fc = {}>
        {
            sum = Add (features, more)
            scores = Gemm <transB = 1> (sum, fc)
        }""",
    ),
    Example(
        "fcn/not-a-tensor",
        FCN,
        """
        classifier (float[1, 2, 9, 9] image) => (seq(float[1, 4]) list)
        <float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc)
            list = SequenceConstruct (scores)
        }""",
        other="""
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        works=WORKS,
        note="Classifiers of scikit-learn end with a ZipMap, which gives a map of numbers. "
        'The second model is onnx.utils.extract_model("model.onnx", "other.onnx", ["image"], ["scores"]).',
    ),
    Example(
        "fcn/window-needed",
        FCN,
        """
        classifier (float[1, 2, H, W] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[4, 3] fc = {}>
        {
            map = Conv (image, w)
            mean = GlobalAveragePool (map)
            flat = Flatten (mean)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        works=f"{FCN} --window 9x9",
        note="A mean over the whole map fits every size; for how many pixels it was trained is not in the file.",
    ),
    Example(
        "fcn/dynamic-shape",
        FCN,
        """
        classifier (float[1, 2, 9, 9] image, float[1, M] features) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[4, 152] fc = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            all = Concat <axis = 1> (flat, features)
            scores = Gemm <transB = 1> (all, fc)
        }""",
        other="""
        classifier (float[1, 2, 9, 9] image, float[1, 5] features) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[4, 152] fc = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            all = Concat <axis = 1> (flat, features)
            scores = Gemm <transB = 1> (all, fc)
        }""",
        works=WORKS,
        note="M is 5, but nothing in the model's input says so.",
    ),
    Example(
        "fcn/position-dependent-constant",
        FCN,
        """
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[2, 9, 9] mean = {}, float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}>
        {
            centred = Sub (image, mean)
            map = Conv (centred, w)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        other="""
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[2, 1, 1] mean = {0.4, 0.6}, float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}>
        {
            centred = Sub (image, mean)
            map = Conv (centred, w)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        works=WORKS,
    ),
    Example(
        "fcn/position-in-output",
        FCN,
        """
        features (float[1, 2, 9, 9] image) => (float[1, 147] flat)
        <float[3, 2, 3, 3] w = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
        }""",
    ),
    Example(
        "fcn/mixed-axes",
        FCN,
        """
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <int64[4] shape = {1, 7, 7, 3}, float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}>
        {
            map = Conv (image, w)
            mixed = Reshape (map, shape)
            active = Relu (mixed)
            flat = Flatten (active)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        other="""
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}>
        {
            map = Conv (image, w)
            channels_last = Transpose <perm = [0, 2, 3, 1]> (map)
            active = Relu (channels_last)
            flat = Flatten (active)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        works=WORKS,
        note="A Reshape reads the numbers in another order where a Transpose was meant.",
    ),
    Example(
        "fcn/no-rule",
        FCN,
        """
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] sums)
        <int64 axis = {1}, float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc)
            sums = CumSum (scores, axis)
        }""",
    ),
    Example(
        "fcn/custom-operator",
        FCN,
        """
        <ir_version: 8, opset_import: ["": 17, "com.example": 1]>
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <int64[2] shape = {1, 147}, float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}>
        {
            map = Conv (image, w)
            special = com.example.Special (map)
            flat = Reshape (special, shape)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
    ),
    Example(
        "fcn/integer-operator",
        FCN,
        """
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, int8[147, 4] fc = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            whole, scale, zero = DynamicQuantizeLinear (flat)
            products = MatMulInteger (whole, fc, zero)
            numbers = Cast <to = 1> (products)
            scores = Mul (numbers, scale)
        }""",
        weights={"fc": "np.arange(588).reshape(147, 4) % 9 - 4"},
        other="""
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, int8[147, 4] stored = {}, float scale = {0.1}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            fc = DequantizeLinear (stored, scale)
            scores = MatMul (flat, fc)
        }""",
        numbers={"stored": "np.arange(588).reshape(147, 4) % 9 - 4"},
        works=WORKS,
    ),
    Example(
        "fcn/weight-not-constant",
        FCN,
        """
        classifier (float[1, 2, 9, 9] image, float[4, 147] fc) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
    ),
    Example(
        "fcn/not-finite",
        FCN,
        """
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        weights={"fc": "np.nan"},
    ),
    Example(
        "fcn/uncontracted-channels",
        FCN,
        """
        classifier (float[1, 2, 9, 9] image) => (float[1, 3, 4] scores)
        <int64[3] shape = {1, 3, 49}, float[3, 2, 3, 3] w = {}, float[49, 4] fc = {}>
        {
            map = Conv (image, w)
            rows = Reshape (map, shape)
            scores = MatMul (rows, fc)
        }""",
        note="The product takes the 49 positions of each channel by itself, as a mixer does.",
    ),
    Example(
        "fcn/spatial-broadcast",
        FCN,
        """
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <int64[4] shape = {1, 3, 1, 1}, float[3, 2, 3, 3] w = {}, float[3, 147] fc = {}, float[4, 147] last = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            values = Gemm <transB = 1> (flat, fc)
            everywhere = Reshape (values, shape)
            sum = Add (map, everywhere)
            flat_sum = Flatten (sum)
            scores = Gemm <transB = 1> (flat_sum, last)
        }""",
        other="""
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[3, 3, 1, 1] fc = {}, float[4, 147] last = {}>
        {
            map = Conv (image, w)
            mean = GlobalAveragePool (map)
            everywhere = Conv (mean, fc)
            sum = Add (map, everywhere)
            flat_sum = Flatten (sum)
            scores = Gemm <transB = 1> (flat_sum, last)
        }""",
        works=WORKS,
    ),
    Example(
        "fcn/whole-map-statistic",
        FCN,
        """
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float three = {3}, float[4, 3] fc = {}>
        {
            map = Conv (image, w)
            mean = GlobalAveragePool (map)
            away = Sub (map, mean)
            cube = Pow (away, three)
            moment = GlobalAveragePool (cube)
            flat = Flatten (moment)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        other="""
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float two = {2}, float[4, 3] fc = {}>
        {
            map = Conv (image, w)
            mean = GlobalAveragePool (map)
            away = Sub (map, mean)
            square = Pow (away, two)
            variance = GlobalAveragePool (square)
            flat = Flatten (variance)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        works=WORKS,
        note="Of a mean, a variance or a standard deviation there is one per window; of a third moment there is not.",
    ),
    Example(
        "fcn/stride-mismatch",
        FCN,
        """
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 6, 6] fine = {}, float[3, 2, 3, 3] coarse = {}, float[4, 48] fc = {}>
        {
            one = Conv (image, fine)
            two = Conv <strides = [2, 2]> (image, coarse)
            sum = Add (one, two)
            flat = Flatten (sum)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        note="Both maps have 4 x 4 cells, but one moves by a pixel from cell to cell and the other by two.",
    ),
    Example(
        "fcn/opset-too-old",
        FCN,
        """
        <ir_version: 4, opset_import: ["": 6]>
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}, float[1, 4] bias = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc, bias)
        }""",
        other="""
        <ir_version: 4, opset_import: ["": 7]>
        classifier (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[4, 147] fc = {}, float[1, 4] bias = {}>
        {
            map = Conv (image, w)
            flat = Flatten (map)
            scores = Gemm <transB = 1> (flat, fc, bias)
        }""",
        works=WORKS,
    ),
    Example(
        "fcn/several-images",
        FCN,
        """
        stereo (float[1, 2, 9, 9] left, float[1, 2, 9, 9] right) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[4, 6] fc = {}>
        {
            one = Conv (left, w)
            two = Conv (right, w)
            mean_one = GlobalAveragePool (one)
            mean_two = GlobalAveragePool (two)
            both = Concat <axis = 1> (mean_one, mean_two)
            flat = Flatten (both)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
    ),
)
