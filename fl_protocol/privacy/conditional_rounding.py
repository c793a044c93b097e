"""An update on the grid, rounded at random until it is no longer than the sum's noise is made for.

Rounding at random keeps the mean of many updates right, and may lengthen one: a draw that is longer than all but
exp(-1/2) of the draws may be is drawn anew (Kairouz et al. 2021, theorem 1), which nearly never happens.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from fl_protocol.dtypes import Float64Array
from fl_protocol.masking.prg import keystream
from fl_protocol.privacy.noise import Int64Array

MAX_TRIES: Final = 64
"""All of them are too long once in 10^13; the update is then rounded towards zero, which lengthens nothing."""

_TILE_ELEMENTS: Final = 1 << 14
_FIRST_STREAM: Final = 1 << 16
"""Try i is stream 2^16 + i of the key."""


def round_conditionally(
    tensors: Sequence[Float64Array], *, scale: float, max_norm: float, key: bytes, max_tries: int = MAX_TRIES
) -> Int64Array:
    """Gives an update's tensors as one vector of integers, `scale` a unit, of the L2 norm `max_norm` at most.

    The update is finite and clipped so that its norm times `scale` is below `max_norm`. `key` is 32 fresh random bytes.
    """
    rounded = np.empty(sum(tensor.size for tensor in tensors), dtype=np.int64)
    for each in range(max_tries):
        if _round(tensors, rounded, scale=scale, key=key, stream=_FIRST_STREAM + each) <= max_norm**2:
            return rounded
    first = 0
    for tensor in tensors:
        rounded[first : first + tensor.size] = tensor.reshape(-1) * scale
        first += tensor.size
    return rounded


def _round(tensors: Sequence[Float64Array], rounded: Int64Array, *, scale: float, key: bytes, stream: int) -> int:
    """Overwrites `rounded` with one draw, and gives the square of its norm, exactly."""
    squares, first = 0, 0
    for tensor in tensors:
        values = tensor.reshape(-1)
        for begin in range(0, values.size, _TILE_ELEMENTS):
            scaled = values[begin : begin + _TILE_ELEMENTS] * scale
            below = np.floor(scaled)
            words = np.empty(scaled.size, dtype=np.uint32)
            keystream(key, stream=stream, first=first, words=words)
            tile = rounded[first : first + scaled.size]
            tile[:] = below
            tile += words < np.ldexp(scaled - below, 32)
            squares += int(np.dot(tile, tile))
            first += scaled.size
    return squares
