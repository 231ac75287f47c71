"""A fully convolutional model over an image of any size, tile by tile, with the result of one pass over the whole.

survey     what the model does with an image of that size: strides, receptive fields, frozen pads; or why not
geometry   tiles in output space, and the crops of the image that give them exactly
memory     how large a tile may be
images, preparing, recipe     pixels of a crop, as the model takes them
store, engine                 workers that compute tiles and write them whole; what is left after a crash
exports, checks, arrays       other files; random places once more; lazy arrays of Dask
"""

from convrewrite.tiling.applying import apply
from convrewrite.tiling.arrays import lazily
from convrewrite.tiling.result import Applied
from convrewrite.tiling.survey import REASONS

__all__ = ["REASONS", "Applied", "apply", "lazily"]
