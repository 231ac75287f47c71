"""Why a layer is not factored."""

from __future__ import annotations

from convrewrite.engine.convsite import weight_reasons
from convrewrite.engine.rewrite import Reason
from convrewrite.text import parameter

REASONS = {
    reason.code: reason
    for reason in (
        *weight_reasons("separable"),
        Reason(
            "separable/already-factored",
            "the layer is a factor that this pass made; factoring it again would add to its error unseen",
            f"factor the original model instead, with another {parameter('tol')}",
        ),
        Reason(
            "separable/no-form",
            "no form fits the kernel: a spatial form needs an extent above 1 on two axes, a depthwise one a kernel "
            "larger than 1x1; a matrix has the form 'channel' alone, and needs two rows and two columns",
            f"allow other forms with {parameter('form', 'auto')}",
        ),
        Reason(
            "separable/zero-kernel",
            "all weights are zero, so there is nothing to factor",
            "remove the layer; 'convrewrite groups' drops channels that are dead",
        ),
        Reason(
            "separable/not-folded",
            "the weight is computed from constants, by operators that are not computed beforehand",
            "fold constants first, for example with onnxsim, so that the weight is an initializer",
        ),
        Reason(
            "separable/not-a-matrix",
            "the constant factor is a vector, or a stack of several matrices",
            "nothing needs to be done: only one matrix has a rank that a layer can save",
        ),
        Reason(
            "separable/open-rank",
            "the constant stands on the left of a MatMul, and it is not known how many axes the other factor has",
            f"infer the shapes first (onnx.shape_inference), or give {parameter('size')}",
        ),
    )
}
"""All reasons of the pass, by code."""
