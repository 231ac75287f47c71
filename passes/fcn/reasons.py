"""Why `fcn` leaves a model or a part of it alone: one code each, with what it means and what helps."""

from __future__ import annotations

from convrewrite.engine.rewrite import Reason
from convrewrite.text import parameter

REASONS = {
    reason.code: reason
    for reason in (
        Reason(
            "fcn/already-convolutional",
            "nothing collapses the spatial axes, so the model runs on any size its input admits",
            "if its input is fixed at one size and must not be, export it with a symbolic height and width",
        ),
        Reason(
            "fcn/flat-input",
            "the image enters as a flat vector, so its rows and columns are lost before the first convolution",
            "export the model with an image input, [N, C, H, W] or [N, H, W, C]",
        ),
        Reason(
            "fcn/no-image-input",
            "no input can be an image: none of three axes or more reaches a convolution",
            "export the model with an image input, [N, C, H, W] or [N, H, W, C]",
        ),
        Reason(
            "fcn/not-a-tensor",
            "an output is a sequence or a map of numbers, which has no place for the positions of a class map",
            "cut the model there: onnx.utils.extract_model(IN, OUT, [its inputs], [that tensor])",
        ),
        Reason(
            "fcn/window-needed",
            "the input size is symbolic, so the window the classifier was made for is not in the file",
            f"name it with {parameter('window', 'HxW')}",
        ),
        Reason(
            "fcn/dynamic-shape",
            "a shape is not known from the input's size",
            "fix the model's other symbolic dimensions, or simplify it first",
        ),
        Reason(
            "fcn/position-dependent-constant",
            "a constant differs from pixel to pixel, so it has no meaning at another size",
            "remove it (subtract a mean per channel, not a mean image) and export again",
        ),
        Reason(
            "fcn/position-in-output",
            "an output lists the positions of the map one by one, so it has no class axis to keep apart from them",
            "a detector runs over positions already: cut the model ahead of that output to lift what is before it",
        ),
        Reason(
            "fcn/mixed-axes",
            "an operator mixes rows or columns of the image with its channels or batch",
            "export the model with one layout throughout",
        ),
        Reason(
            "fcn/no-rule",
            "the operator has no rule that says what it means on a larger map",
            "open an issue with the model, or cut it ahead of that node",
        ),
        Reason(
            "fcn/custom-operator",
            "an operator outside the ONNX standard has a meaning that is not known here",
            "export the model with standard operators",
        ),
        Reason(
            "fcn/integer-operator",
            "the model is quantized, and written with operators that take integers (QLinearConv, MatMulInteger ...)",
            "quantize in the QDQ form (QuantizeLinear and DequantizeLinear around float operators; in ONNX Runtime "
            "quant_format=QuantFormat.QDQ), or rewrite the float model and quantize the result",
        ),
        Reason(
            "fcn/weight-not-constant",
            "the weight of a fully connected layer is computed or fed at run time",
            "fold constants first, or make the weight an initializer",
        ),
        Reason(
            "fcn/not-finite",
            "a weight holds NaN or infinity",
            "retrain or repair the weights: no rewrite of them can be verified",
        ),
        Reason(
            "fcn/uncontracted-channels",
            "a matrix product leaves a channel axis aside, which a convolution cannot",
            "reshape so that the fully connected layer sees all features in one axis",
        ),
        Reason(
            "fcn/spatial-broadcast",
            "values of one position are spread over the whole map, and they do not come from a pooling",
            "replace the fully connected layer in the trunk by a pooling and a 1x1 convolution",
        ),
        Reason(
            "fcn/stride-mismatch",
            "two branches of different stride meet while they still have several positions",
            "bring the branches to one stride ahead of the place where they meet",
        ),
        Reason(
            "fcn/whole-map-statistic",
            "the head is made of statistics that are taken about the mean of the whole map, such as a third moment; of "
            "means, variances and deviations there is one per window, of these there is not",
            "cut the model ahead of the statistic, and take it of every window of the map",
        ),
        Reason(
            "fcn/class-token",
            "a token of its own (a class token, or the mean of all positions) stands in line with the positions of the "
            "map, and attention reads them all together, so the class is one for the whole image",
            "run the model on crops of its own size, or cut it ahead of that node and average the positions there",
        ),
        Reason(
            "fcn/self-attention",
            "every position of the map reads every other one, so that what it holds depends on the image's size",
            "run the model on crops of its own size, or cut it ahead of that node",
        ),
        Reason(
            "fcn/attention-pooling",
            "a softmax over all positions of the map weighs them in a form that has no sum over a window",
            "multiply the map by the softmax and sum up (Mul and ReduceSum, or one MatMul), in float32",
        ),
        Reason(
            "fcn/pools-one-axis",
            "rows or columns are pooled alone and go back into the map (coordinate attention, strip pooling), so that "
            "each cell depends on a whole row or column of the image",
            "put a block in its place that pools both axes, such as squeeze-and-excite, and train it again",
        ),
        Reason(
            "fcn/opset-too-old",
            "operator sets below 7 broadcast by an attribute and are not read here",
            "convert the model with onnx.version_converter to opset 7 or later",
        ),
        Reason(
            "fcn/several-images",
            "two inputs have positions of their own; the windows of both cannot be moved as one",
            "give both the same rows and columns and let them meet on a map, or split the model into one per input",
        ),
    )
}
