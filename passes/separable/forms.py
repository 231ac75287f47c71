"""The forms in which one weight W [O, I / g, *kernel] can be factored; that of a linear layer has no kernel.

    channel     kh x kw, I -> R    then  1 x 1, R -> O          SVD of the (I kh kw) x O matrix (Zhang et al. 2016)
                1 x 1, I -> R      then  kh x kw, R -> O        SVD of the I x (O kh kw) matrix
    depthwise   r times: kh x kw on each channel, then 1 x 1    SVD of the O x (kh kw) matrix of each input channel
                r times: 1 x 1, then kh x kw on each channel    SVD of the I x (kh kw) matrix of each output channel
                ("network decoupling", Guo et al. 2018)
    tucker      1 x 1, I -> R1, then kh x kw, R1 -> R2, then 1 x 1, R2 -> O     HOSVD (Kim et al. 2016)
    spatial     kh x 1, I -> R     then  1 x kw, R -> O        SVD of the (I kh) x (O kw) matrix (Jaderberg et al. 2014)
                filters on one channel: r times kh x 1, then 1 x kw             SVD of each kh x kw filter

A filter on one channel becomes r branches on that channel and never one convolution with r times the channels in
groups, which is several times slower. `chains` and `branches` tell how each is computed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from convrewrite.passes.separable.branches import Decoupled, Filters
from convrewrite.passes.separable.chains import Pair, Triple
from convrewrite.passes.separable.decomposition import Decomposition
from convrewrite.passes.separable.factors import Array
from convrewrite.passes.separable.grouped import Axes, Grouped

FORMS = ("channel", "depthwise", "tucker", "spatial")

_AXIS_NAMES: dict[int, tuple[str, ...]] = {
    0: (),
    1: ("horizontal",),
    2: ("vertical", "horizontal"),
    3: ("depth", "vertical", "horizontal"),
}


def decompositions(weight: Array, group: int, forms: Collection[str] = FORMS) -> list[Decomposition]:
    """All forms that a weight has, the cheap ones to compute first. Nothing is computed yet.

    Args:
        weight: [O, I / group, *kernel] with one, two or three spatial axes, or the matrix [O, I] of a linear layer; any
            float type. It is kept, not copied.
        group: the groups of the convolution.
        forms: which of `FORMS`.

    Raises:
        ValueError: the weight holds NaN or infinity, or has no such shape.
    """
    if weight.ndim not in (2, 3, 4, 5) or 0 in weight.shape or group < 1 or weight.shape[0] % group:
        raise ValueError(f"no convolution has a weight of shape {weight.shape} in {group} groups")
    if not np.isfinite(weight).all():
        raise ValueError("the weight holds NaN or infinity")
    if unknown := set(forms) - set(FORMS):
        raise ValueError(f"no such form: {', '.join(sorted(unknown))}; the forms are {', '.join(FORMS)}")
    grouped = Grouped(weight, group)
    found = [made for form in FORMS if form in forms for made in _MAKERS[form](grouped)]
    if "depthwise" in forms or "spatial" in forms:  # chains of filters on one channel are both
        found += _filters(grouped)
    # At rank 1 a form that is exact there for every weight is the original and one more convolution.
    return [made for made in found if max(made.full) > 1]


def _channel(weight: Grouped) -> Iterator[Decomposition]:
    if weight.size(weight.axes) == 1:
        yield Pair("channel", "channel", weight, ())
    else:
        yield Pair("channel", "channel-out", weight, weight.axes)
        yield Pair("channel", "channel-in", weight, ())


def _depthwise(weight: Grouped) -> Iterator[Decomposition]:
    if weight.size(weight.axes) > 1 and weight.inputs_each > 1:
        yield Decoupled("depthwise", "depthwise-pointwise", weight, pointwise_first=False)
        yield Decoupled("depthwise", "pointwise-depthwise", weight, pointwise_first=True)


def _tucker(weight: Grouped) -> Iterator[Decomposition]:
    if weight.size(weight.axes) > 1 and weight.inputs_each > 1 and weight.outs_each > 1:
        yield Triple("tucker", "tucker", weight)


def _spatial(weight: Grouped) -> Iterator[Decomposition]:
    """Not where filters see one channel of several: there, branches are faster (`_filters`)."""
    names = _AXIS_NAMES[len(weight.kernel)]
    if weight.inputs_each > 1 or weight.group == 1:
        for parts in _cuts(weight):
            if len(parts) == 2:
                yield Pair("spatial", _named(parts, names), weight, parts[0])
            else:
                yield Triple("spatial", _named(parts, names), weight, first=parts[0], last=parts[2])


def _filters(weight: Grouped) -> Iterator[Decomposition]:
    names = _AXIS_NAMES[len(weight.kernel)]
    if weight.inputs_each == 1:
        for parts in _cuts(weight):
            yield Filters("depthwise", "depthwise-" + _named(parts, names), weight, parts)


def _cuts(weight: Grouped) -> Iterator[tuple[Axes, ...]]:
    """The ways to share the axes of extent above 1 among the stages of a chain."""
    wide = [axis for axis in weight.axes if weight.kernel[axis] > 1]
    if len(wide) == 2:
        one, two = wide
        yield (one,), (two,)
        yield (two,), (one,)
    elif len(wide) == 3:
        depth, vertical, horizontal = wide
        yield (depth,), (vertical, horizontal)
        yield (vertical, horizontal), (depth,)
        yield (depth,), (vertical,), (horizontal,)
        yield (vertical,), (horizontal,), (depth,)


def _named(parts: tuple[Axes, ...], names: tuple[str, ...]) -> str:
    """ "vertical-horizontal", "depth-plane"."""
    return "-".join(names[part[0]] if len(part) == 1 else "plane" for part in parts)


_MAKERS = {"channel": _channel, "depthwise": _depthwise, "tucker": _tucker, "spatial": _spatial}
