"""The arrays that a server optimizer keeps from round to round."""

from fl_protocol.dtypes import Float64Array

States = tuple[Float64Array, ...]
"""One array a slot, in the order of the optimizer's `slots`; empty for an optimizer without memory."""
