"""Transposed convolutions that `transform subpixel-conv` leaves as they are."""

from refused.example import Example

SUBPIXEL = "transform subpixel-conv model.onnx subpixel.onnx"
OTHER = "transform subpixel-conv other.onnx subpixel.onnx"

EXAMPLES = (
    Example(
        "subpixel-conv/weight-not-constant",
        SUBPIXEL,
        """
        decoder (float[1, 2, 8, 8] map, float[2, 3, 3, 3] w) => (float[1, 3, 17, 17] image)
        {
            image = ConvTranspose <strides = [2, 2]> (map, w)
        }""",
        other="""
        decoder (float[1, 2, 8, 8] map) => (float[1, 3, 17, 17] image)
        <float[2, 3, 3, 3] w = {}>
        {
            image = ConvTranspose <strides = [2, 2]> (map, w)
        }""",
        works=OTHER,
    ),
    Example(
        "subpixel-conv/weight-type",
        SUBPIXEL,
        """
        <ir_version: 10, opset_import: ["": 22]>
        decoder (bfloat16[1, 2, 8, 8] map) => (bfloat16[1, 3, 17, 17] image)
        <bfloat16[2, 3, 3, 3] w = {}>
        {
            image = ConvTranspose <strides = [2, 2]> (map, w)
        }""",
    ),
    Example(
        "subpixel-conv/unknown-rank",
        SUBPIXEL,
        """
        decoder (float[1, 2, 4, 4, 4, 4] map) => (float[1, 3, 4, 4, 4, 4] volume)
        <float[2, 3, 1, 1, 1, 1] w = {}>
        {
            volume = ConvTranspose (map, w)
        }""",
    ),
    Example(
        "subpixel-conv/nan-weight",
        SUBPIXEL,
        """
        decoder (float[1, 2, 8, 8] map) => (float[1, 3, 17, 17] image)
        <float[2, 3, 3, 3] w = {}>
        {
            image = ConvTranspose <strides = [2, 2]> (map, w)
        }""",
        weights={"w": "np.nan"},
    ),
    Example(
        "subpixel-conv/opset",
        SUBPIXEL,
        """
        <ir_version: 4, opset_import: ["": 6]>
        decoder (float[1, 2, 8, 8] map) => (float[1, 3, 17, 17] image)
        <float[2, 3, 3, 3] w = {}>
        {
            image = ConvTranspose <strides = [2, 2]> (map, w)
        }""",
        other="""
        <ir_version: 4, opset_import: ["": 7]>
        decoder (float[1, 2, 8, 8] map) => (float[1, 3, 17, 17] image)
        <float[2, 3, 3, 3] w = {}>
        {
            image = ConvTranspose <strides = [2, 2]> (map, w)
        }""",
        works=OTHER,
    ),
    Example(
        "subpixel-conv/empty-weight",
        SUBPIXEL,
        """
        decoder (float[1, 2, 8, 8] map) => (float[1, 0, 17, 17] image)
        <float[2, 0, 3, 3] w = {}>
        {
            image = ConvTranspose <strides = [2, 2]> (map, w)
        }""",
    ),
    Example(
        "subpixel-conv/not-an-image",
        SUBPIXEL,
        """
        decoder (float[1, 2, 8] line) => (float[1, 3, 17] signal)
        <float[2, 3, 3] w = {}>
        {
            signal = ConvTranspose <strides = [2]> (line, w)
        }""",
    ),
    Example(
        "subpixel-conv/quantized",
        SUBPIXEL,
        """
        decoder (float[1, 2, 8, 8] map) => (float[1, 3, 17, 17] image)
        <int8[2, 3, 3, 3] stored = {}, float scale = {0.1}>
        {
            w = DequantizeLinear (stored, scale)
            image = ConvTranspose <strides = [2, 2]> (map, w)
        }""",
        weights={"stored": "np.arange(54).reshape(2, 3, 3, 3) % 9 - 4"},
    ),
    Example(
        "subpixel-conv/mostly-zeros",
        SUBPIXEL,
        """
        decoder (float[1, 2, 8, 8] map) => (float[1, 3, 85, 86] image)
        <float[2, 3, 1, 2] w = {}>
        {
            image = ConvTranspose <strides = [12, 12]> (map, w)
        }""",
        note="Of 12 x 12 cells of the image, two see the map at all.",
    ),
    Example(
        "subpixel-conv/open-map",
        SUBPIXEL,
        """
        decoder (float[1, 2, H, W] map) => (float[1, 3, 16, 16] image)
        <float[2, 3, 3, 3] w = {}>
        {
            image = ConvTranspose <strides = [2, 2], output_shape = [16, 16]> (map, w)
        }""",
        works=f"{SUBPIXEL} --size 8x8",
    ),
    Example(
        "subpixel-conv/auto-pad",
        SUBPIXEL,
        """
        decoder (float[1, 2, 8, 8] map) => (float[1, 3, H, W] image)
        <float[2, 3, 3, 3] w = {}>
        {
            image = ConvTranspose <strides = [2, 2], auto_pad = "SAME_UPPER", output_padding = [1, 1]> (map, w)
        }""",
        other="""
        decoder (float[1, 2, 8, 8] map) => (float[1, 3, 16, 16] image)
        <float[2, 3, 3, 3] w = {}>
        {
            image = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]> (map, w)
        }""",
        works=OTHER,
        note="ONNX Runtime crops the rows and columns that output_padding adds, and shape inference keeps them.",
    ),
)
