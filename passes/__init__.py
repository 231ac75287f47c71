"""All passes, in the order in which a pipeline would run them."""

from __future__ import annotations

from convrewrite.engine.rewrite import Pass
from convrewrite.passes.conv_to_fc import ConvToFc
from convrewrite.passes.dense import Dense
from convrewrite.passes.fc_to_conv import FcToConv
from convrewrite.passes.fcn import Fcn
from convrewrite.passes.groups import Groups
from convrewrite.passes.open_batch import OpenBatch
from convrewrite.passes.separable import Separable
from convrewrite.passes.subpixel_conv import SubpixelConv
from convrewrite.passes.upsample import Upsample

ALL: tuple[type[Pass], ...] = (OpenBatch, Fcn, Dense, Upsample, Groups, Separable, SubpixelConv, FcToConv, ConvToFc)
"""Every pass of the project; a third party's come through the entry point `convrewrite.passes`."""
