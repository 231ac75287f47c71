"""Why a convolution keeps its groups."""

from __future__ import annotations

from convrewrite.engine.convsite import weight_reasons
from convrewrite.engine.rewrite import Reason
from convrewrite.text import parameter

REASONS = {
    reason.code: reason
    for reason in (
        *weight_reasons("groups"),
        Reason(
            "groups/no-structure",
            "within the tolerance the channels cannot be divided into groups that would be faster",
            f"raise {parameter('tol')} to what the detail names, if the model can bear it",
        ),
        Reason(
            "groups/already-grouped",
            "the groups were made within a tolerance by this pass; dividing them further would add to the error unseen",
            f"group the original model instead, with another {parameter('tol')}",
        ),
        Reason(
            "groups/not-grouped",
            "the convolution has one group, so there is nothing to expand",
            f"leave {parameter('expand')} out to look for groups instead",
        ),
        Reason(
            "groups/no-such-number",
            "the number of channels cannot be divided by the number of groups that was asked for",
            f"choose another {parameter('into')}",
        ),
        Reason(
            "groups/public-order",
            "the channels would have to change places in an input or an output of the model, where their order is "
            "public, and gathering them there costs more than the groups save",
            "give the model's input or output another order of channels, or end the model elsewhere",
        ),
        Reason(
            "groups/order-fixed",
            "the channels would have to change places in front of or behind an operator that depends on their order, "
            "and gathering them there costs more than the groups save",
            "none, unless that operator can be left out of the model",
        ),
        Reason(
            "groups/tied-channels",
            "the groups would need an order of channels that another place which shares them cannot have, and "
            "gathering them costs more than the groups save",
            "none: the layers that share these channels disagree about their groups",
        ),
        Reason(
            "groups/unknown-shape",
            "how the channels run through a neighbouring operator is not known, for want of its shapes",
            "export the model with an input of one size, or fix that in its file",
        ),
        Reason(
            "groups/dead-in-padding",
            "the convolution has channels that are constant, but a convolution behind it pads them with zeros, so "
            "that they are another constant at the border",
            "none: it would not be the same function",
        ),
        Reason(
            "groups/dead-kept",
            "the convolution has dead channels, but something that depends on their number or order reads them",
            "none, unless that operator can be left out of the model",
        ),
    )
}
"""All reasons of the pass, by code."""
