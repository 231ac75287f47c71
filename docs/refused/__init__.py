"""An example for every reason to leave something as it is, by its code."""

from refused import dense, fcn, general, groups, linear, open_batch, separable
from refused.example import Example

EXAMPLES: dict[str, Example] = {
    example.code: example
    for module in (open_batch, fcn, dense, groups, separable, linear, general)
    for example in module.EXAMPLES
}
