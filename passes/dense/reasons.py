"""Why `dense` leaves a model alone: one code each, with what it means and what helps."""

from __future__ import annotations

from convrewrite.engine.rewrite import Reason
from convrewrite.text import parameter

REASONS = {
    reason.code: reason
    for reason in (
        Reason(
            "dense/dense-already",
            "no tensor has a larger stride than was asked for",
            f"ask for a smaller {parameter('stride')}, if there is one",
        ),
        Reason(
            "dense/dynamic-shape",
            "the shapes of the model do not follow from the size of its image",
            f"name a size with {parameter('window')}, or fix the model's other symbolic dimensions",
        ),
        Reason(
            "dense/no-rule",
            "what the operator gives at a finer stride is not known, since it does not look at cells one by one",
            f"choose a {parameter('stride')} that is no finer than the map that it reads",
        ),
        Reason(
            "dense/lowers-stride",
            "the operator brings the map to a finer stride by itself, while it is finer than it was already",
            f"choose a {parameter('stride')} that is no finer than the map that it reads",
        ),
        Reason(
            "dense/flattened",
            "the operator takes rows and columns together as they are, so that finer ones would not fit",
            "convert the model with fcn first",
        ),
        Reason(
            "dense/baked-shape",
            "a shape in the model has the extents of the map as numbers",
            "export the model with a symbolic height and width, or convert it with fcn first",
        ),
        Reason(
            "dense/branches",
            "branches that meet have maps of one extent at the old stride, and of different ones at the finer stride",
            f"choose a larger {parameter('stride')}: that of the map where the branches part is always possible",
        ),
        Reason(
            "dense/map-output",
            "it is a map in the original already, and its cells would now lie between the original's own",
            f"leave that output out of the model, or choose a {parameter('stride')} that is no finer than the map",
        ),
        Reason(
            "dense/ceil-mode",
            "a pool in ceil_mode ends on a window partly beyond the map, and has no such end at the finer stride",
            "export the model without ceil_mode",
        ),
        Reason(
            "dense/opset",
            "the operator cannot be dilated in the model's operator set",
            f"give {parameter('opset', '10')} or later",
        ),
        Reason(
            "dense/uses-indices",
            "the places of the maxima are used, and they would be others at the finer stride",
            "leave the model at its stride, or cut it ahead of that node",
        ),
    )
}
