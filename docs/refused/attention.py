"""Models that `fcn` leaves as they are for what they attend to."""

from __future__ import annotations

from refused.example import Example
from refused.fcn import FCN, WORKS

EXAMPLES = (
    Example(
        "fcn/class-token",
        FCN,
        """
        transformer (float[1, 2, 8, 8] image) => (float[1, 4] scores)
        <int64[3] shape = {1, 3, 4}, int64 first = {0}, float[3, 2, 4, 4] w = {}, float[1, 1, 3] class_token = {},
         float[3, 3] query = {}, float[4, 3] fc = {}>
        {
            map = Conv <strides = [4, 4]> (image, w)
            line = Reshape (map, shape)
            patches = Transpose <perm = [0, 2, 1]> (line)
            tokens = Concat <axis = 1> (class_token, patches)
            asked = MatMul (tokens, query)
            keys = Transpose <perm = [0, 2, 1]> (tokens)
            product = MatMul (asked, keys)
            weights = Softmax <axis = -1> (product)
            seen = MatMul (weights, tokens)
            class = Gather <axis = 1> (seen, first)
            scores = Gemm <transB = 1> (class, fc)
        }""",
        note="A vision transformer has one class for all its patches, and no place for the classes of several windows.",
    ),
    Example(
        "fcn/self-attention",
        FCN,
        """
        non_local (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <int64[3] shape = {1, 3, 49}, int64[4] back = {1, 3, 7, 7}, float[3, 2, 3, 3] w = {}, float[4, 3] fc = {}>
        {
            map = Conv (image, w)
            line = Reshape (map, shape)
            tokens = Transpose <perm = [0, 2, 1]> (line)
            product = MatMul (tokens, line)
            weights = Softmax <axis = -1> (product)
            seen = MatMul (weights, tokens)
            turned = Transpose <perm = [0, 2, 1]> (seen)
            mixed = Reshape (turned, back)
            sum = Add (map, mixed)
            mean = GlobalAveragePool (sum)
            flat = Flatten (mean)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        other="""
        local (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[4, 3] fc = {}>
        {
            map = Conv (image, w)
            mean = GlobalAveragePool (map)
            flat = Flatten (mean)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        works=WORKS,
        note="The product has an entry for each pair of positions. The second model has no such block.",
    ),
    Example(
        "fcn/attention-pooling",
        FCN,
        """
        attention (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <int64[3] shape = {1, 1, 49}, int64[4] back = {1, 1, 7, 7}, float[3, 2, 3, 3] w = {},
         float[1, 3, 1, 1] ask = {}, float[4, 3] fc = {}>
        {
            map = Conv (image, w)
            asked = Conv (map, ask)
            line = Reshape (asked, shape)
            soft = Softmax <axis = -1> (line)
            weights = Reshape (soft, back)
            weighed = Mul (map, weights)
            largest = GlobalMaxPool (weighed)
            flat = Flatten (largest)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        other="""
        attention (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <int64[3] shape = {1, 1, 49}, int64[4] back = {1, 1, 7, 7}, int64[2] positions = {2, 3},
         float[3, 2, 3, 3] w = {}, float[1, 3, 1, 1] ask = {}, float[4, 3] fc = {}>
        {
            map = Conv (image, w)
            asked = Conv (map, ask)
            line = Reshape (asked, shape)
            soft = Softmax <axis = -1> (line)
            weights = Reshape (soft, back)
            weighed = Mul (map, weights)
            sum = ReduceSum <keepdims = 0> (weighed, positions)
            scores = Gemm <transB = 1> (sum, fc)
        }""",
        works=WORKS,
        note="The weights of a window are those of the image by a factor, which a sum can be divided by.",
    ),
    Example(
        "fcn/pools-one-axis",
        FCN,
        """
        strips (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[3, 3, 1, 1] v = {}, float[4, 3] fc = {}>
        {
            map = Conv (image, w)
            rows = ReduceMean <axes = [3], keepdims = 1> (map)
            weighed = Conv (rows, v)
            gate = Sigmoid (weighed)
            gated = Mul (map, gate)
            mean = GlobalAveragePool (gated)
            flat = Flatten (mean)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        other="""
        squeeze_and_excite (float[1, 2, 9, 9] image) => (float[1, 4] scores)
        <float[3, 2, 3, 3] w = {}, float[3, 3, 1, 1] v = {}, float[4, 3] fc = {}>
        {
            map = Conv (image, w)
            pooled = ReduceMean <axes = [2, 3], keepdims = 1> (map)
            weighed = Conv (pooled, v)
            gate = Sigmoid (weighed)
            gated = Mul (map, gate)
            mean = GlobalAveragePool (gated)
            flat = Flatten (mean)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        works=WORKS,
    ),
)
