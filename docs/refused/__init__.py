"""An example for every reason to leave something as it is, by its code."""

from refused import attention, dense, fcn, general, groups, linear, open_batch, separable, subpixel_conv
from refused.example import Example

PARTS = (open_batch, fcn, attention, dense, groups, separable, linear, subpixel_conv, general)
EXAMPLES: dict[str, Example] = {example.code: example for part in PARTS for example in part.EXAMPLES}
