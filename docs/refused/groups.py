"""Convolutions that `groups` leaves as they are."""

from refused.example import Example

GROUPS = "groups model.onnx grouped.onnx"

SHUFFLED = "(np.arange(16)[:, None] % 2 == np.arange(16) // 2 % 2)[..., None, None]"
"""Two groups: output channels alternate between them one by one, input channels two by two."""

NEARLY = "np.kron(np.eye(2), np.ones((8, 8)))[..., None, None] + 0.01"

EXAMPLES = (
    Example(
        "groups/weight-not-constant",
        GROUPS,
        """
        network (float[1, 4, 8, 8] image, float[4, 4, 3, 3] w) => (float[1, 4, 6, 6] map)
        {
            map = Conv (image, w)
        }""",
    ),
    Example(
        "groups/weight-type",
        GROUPS,
        """
        <ir_version: 10, opset_import: ["": 22]>
        network (bfloat16[1, 4, 8, 8] image) => (bfloat16[1, 4, 6, 6] map)
        <bfloat16[4, 4, 3, 3] w = {}>
        {
            map = Conv (image, w)
        }""",
    ),
    Example(
        "groups/unknown-rank",
        GROUPS,
        """
        network (float[1, 4, 5, 5, 5, 5] image) => (float[1, 2, 5, 5, 5, 5] map)
        <float[2, 4, 1, 1, 1, 1] w = {}>
        {
            map = Conv (image, w)
        }""",
    ),
    Example(
        "groups/nan-weight",
        GROUPS,
        """
        network (float[1, 4, 8, 8] image) => (float[1, 4, 6, 6] map)
        <float[4, 4, 3, 3] w = {}>
        {
            map = Conv (image, w)
        }""",
        weights={"w": "np.nan"},
    ),
    Example(
        "groups/no-structure",
        GROUPS,
        """
        network (float[1, 16, 8, 8] image) => (float[1, 16, 8, 8] map)
        <float[16, 16, 1, 1] w = {}>
        {
            map = Conv (image, w)
        }""",
        weights={"w": NEARLY},
        works="groups model.onnx grouped.onnx --tol 0.02",
        note="Two groups, but for weights of 0.01 between them.",
    ),
    Example(
        "groups/already-grouped",
        "groups model.onnx grouped.onnx --tol 0.02\ngroups grouped.onnx again.onnx --tol 0.02",
        """
        network (float[1, 16, 8, 8] image) => (float[1, 16, 8, 8] map)
        <float[16, 16, 1, 1] w = {}>
        {
            map = Conv (image, w)
        }""",
        weights={"w": NEARLY},
    ),
    Example(
        "groups/not-grouped",
        GROUPS + " --expand dense",
        """
        network (float[1, 4, 8, 8] image) => (float[1, 4, 6, 6] map)
        <float[4, 4, 3, 3] w = {}>
        {
            map = Conv (image, w)
        }""",
    ),
    Example(
        "groups/no-such-number",
        GROUPS + " --tol 0.1 --into 3",
        """
        network (float[1, 16, 8, 8] image) => (float[1, 16, 8, 8] map)
        <float[16, 16, 1, 1] w = {}>
        {
            map = Conv (image, w)
        }""",
        weights={"w": NEARLY},
        works=GROUPS + " --tol 0.1 --into 2",
    ),
    Example(
        "groups/public-order",
        GROUPS,
        """
        network (float[1, 16, 8, 8] image) => (float[1, 16, 8, 8] map)
        <float[16, 16, 1, 1] w = {}>
        {
            map = Conv (image, w)
        }""",
        weights={"w": SHUFFLED},
        note="There are two groups of eight channels, but not side by side, and both ends are the model's own.",
    ),
    Example(
        "groups/order-fixed",
        GROUPS,
        """
        network (float[1, 3, 8, 8] image) => (float[1, 3, 8, 8] map)
        <float[16, 3, 1, 1] first = {}, float[16, 16, 1, 1] w = {}, float[3, 16, 1, 1] last = {}>
        {
            one = Conv (image, first)
            normed = LRN <size = 5> (one)
            two = Conv (normed, w)
            map = Conv (two, last)
        }""",
        weights={"w": SHUFFLED},
        note="An LRN takes means over neighbouring channels.",
    ),
    Example(
        "groups/tied-channels",
        GROUPS,
        """
        network (float[1, 3, 8, 8] image) => (float[1, 3, 8, 8] map)
        <float[16, 3, 1, 1] first = {}, float[16, 16, 1, 1] w = {}, float[3, 16, 1, 1] last = {}>
        {
            one = Conv (image, first)
            two = Conv (one, w)
            sum = Add (one, two)
            map = Conv (sum, last)
        }""",
        weights={"w": SHUFFLED},
        note="The sum gives what the convolution reads and what it gives one order of channels; it wants two.",
    ),
    Example(
        "groups/unknown-shape",
        GROUPS,
        """
        network (float[1, 3, H, W] image) => (float[1, 5] scores)
        <float[16, 3, 1, 1] first = {}, float[16, 16, 1, 1] w = {}, int64[2] shape = {1, 1024}, float[5, 1024] fc = {}>
        {
            one = Conv (image, first)
            two = Conv (one, w)
            flat = Reshape (two, shape)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        weights={"w": SHUFFLED},
        other="""
        network (float[1, 3, 8, 8] image) => (float[1, 5] scores)
        <float[16, 3, 1, 1] first = {}, float[16, 16, 1, 1] w = {}, int64[2] shape = {1, 1024}, float[5, 1024] fc = {}>
        {
            one = Conv (image, first)
            two = Conv (one, w)
            flat = Reshape (two, shape)
            scores = Gemm <transB = 1> (flat, fc)
        }""",
        numbers={"w": SHUFFLED},
        works="groups other.onnx grouped.onnx",
    ),
    Example(
        "groups/dead-in-padding",
        GROUPS,
        """
        network (float[1, 3, 8, 8] image) => (float[1, 5, 8, 8] map)
        <float[12, 3, 1, 1] first = {}, float[12] bias = {}, float[5, 12, 3, 3] last = {}>
        {
            one = Conv (image, first, bias)
            map = Conv <pads = [1, 1, 1, 1]> (one, last)
        }""",
        weights={"first": "np.arange(12)[:, None, None, None] > 2"},
        note="Three channels of the first convolution are its bias everywhere, but 0 in the padding of the second.",
    ),
    Example(
        "groups/dead-kept",
        GROUPS,
        """
        network (float[1, 12, 8, 8] image) => (float[1, 5, 8, 8] map)
        <float[5, 12, 1, 1] w = {}>
        {
            map = Conv (image, w)
        }""",
        weights={"w": "np.arange(12)[:, None, None] > 2"},
        note="Nothing reads the first three channels of the image, but they are an input of the model.",
    ),
)
