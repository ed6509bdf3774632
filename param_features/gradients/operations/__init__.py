"""Uses of a parameter seen at torch's operations, for layers that show no module around them.

`Watch` notes each operation that is given a watched tensor. Those with a rule are in `plain.py` (products, tables, sums),
`attention.py` and `recurrent.py`; a parameter that goes into any other takes the dense route.
"""

from param_features.gradients.operations import attention, plain, recurrent  # noqa: F401  (they register)
from param_features.gradients.operations.gradients import Viewed
from param_features.gradients.operations.watch import Use, Watch

__all__ = ["Use", "Viewed", "Watch"]
