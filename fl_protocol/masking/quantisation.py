"""Updates on the ring's grid, rounded at random without bias: q = floor(v) + [r < v - floor(v)].

The uniform r_j is word j of a fresh key's stream 2, over 2^32 (privacy.md 3.2): the mean of many updates then has an
error that falls with their number, where rounding to nearest would lose what all of them agree on below half a step.
"""

import math
from typing import Final

import numpy as np

from fl_protocol.dtypes import Values
from fl_protocol.masking.errors import RingError
from fl_protocol.masking.prg import ROUNDING_STREAM, keystream
from fl_protocol.masking.ring import Int64Array, Ring

_SLACK: Final = 1 + 2.0**-20
"""What was clipped in float32 may lie so far beyond its bound; it is put back on it."""


def weight_of(num_examples: int, *, unit: float, ring: Ring) -> int:
    """Gives the integer weight of a client with so many examples: 1 to W_max units, rounded."""
    return min(max(round(num_examples / unit), 1), ring.max_weight)


def clipping_factor(squared_norm: float, *, clipping_norm: float) -> float:
    """Gives min(1, C / norm), which clips an update when it is multiplied by it; 1 for the zero update."""
    norm = math.sqrt(squared_norm)
    return 1.0 if norm <= clipping_norm else clipping_norm / norm


def quantise(
    values: Values, *, ring: Ring, key: bytes, factor: float = 1.0, weight: int = 1, first: int = 0
) -> Int64Array:
    """Gives weight * factor * values in steps of the ring's grid; values[0] is the update's element `first`.

    `values` are float32 or float64; `key` is 32 fresh random bytes, the same for all windows of one update. Raises
    RingError for a value that is not finite or larger than the ring's `max_abs` after `factor`, and for a weight out of
    range: nothing is cut off silently.
    """
    if not 1 <= weight <= ring.max_weight:
        raise RingError(
            "weight", value=weight, bound=ring.max_weight, what=f"{weight} is not in 1 to {ring.max_weight}"
        )
    scaled = values.astype(np.float64)
    np.multiply(scaled, factor, out=scaled)
    _check_range(scaled, ring=ring, first=first)
    np.multiply(scaled, weight, out=scaled)
    np.divide(scaled, ring.step, out=scaled)
    largest = _largest(ring, weight)
    np.clip(scaled, -largest, largest, out=scaled)
    return _round(scaled, key=key, first=first)


def _round(scaled: Values, *, key: bytes, first: int) -> Int64Array:
    words = np.empty(scaled.size, dtype=np.uint32)
    keystream(key, stream=ROUNDING_STREAM, first=first, words=words)
    below = np.floor(scaled)
    np.subtract(scaled, below, out=scaled)
    np.multiply(scaled, 2.0**32, out=scaled)
    rounded = below.astype(np.int64)
    rounded += words < scaled
    return rounded


def _largest(ring: Ring, weight: int) -> float:
    """Gives weight * levels, or the next float64 towards zero."""
    exact = weight * ring.levels
    nearest = float(exact)
    return math.nextafter(nearest, 0.0) if int(nearest) > exact else nearest


def _check_range(values: Values, *, ring: Ring, first: int) -> None:
    largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
    if largest <= ring.max_abs * _SLACK:
        return
    place = int(np.argmax(~(np.abs(values) <= ring.max_abs * _SLACK)))
    raise RingError(
        "update",
        value=float(values[place]),
        bound=ring.max_abs,
        what=f"element {first + place} is {values[place]:g}; it may be {ring.max_abs:g} in magnitude",
    )
