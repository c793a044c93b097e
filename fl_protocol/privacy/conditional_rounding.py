"""An update on the grid, rounded at random until it is no longer than the sum's noise is made for.

Rounding at random keeps the mean of many updates right, and may lengthen one: a draw that is longer than all but
exp(-1/2) of the draws may be is drawn anew (Kairouz et al. 2021, theorem 1), which nearly never happens.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np

from fl_protocol.dtypes import Float64Array
from fl_protocol.masking.prg import keystream
from fl_protocol.privacy.noise import Int64Array

MAX_TRIES: Final = 64
"""All of them are too long once in 10^13; the update is then rounded towards zero, which lengthens nothing."""

Windows = Callable[[], Iterable[Float64Array]]
"""Gives an update's elements from the first on, as often as it is asked; a window need not outlive the next one."""

_TILE_ELEMENTS: Final = 1 << 14
_FIRST_STREAM: Final = 1 << 16
"""Try i is stream 2^16 + i of the key."""


def round_conditionally(
    windows: Windows, *, scale: float, max_norm: float, key: bytes, max_tries: int = MAX_TRIES
) -> Iterator[Int64Array]:
    """Yields an update's windows as integers, `scale` a unit, which together have the L2 norm `max_norm` at most.

    The update is finite and clipped so that its norm times `scale` is below `max_norm`. `key` is 32 fresh random bytes.
    """
    stream = _accepted(windows, scale=scale, max_norm=max_norm, key=key, max_tries=max_tries)
    first = 0
    for window in windows():
        if stream is None:
            yield (window * scale).astype(np.int64)
        else:
            yield _round(window, scale=scale, key=key, stream=stream, first=first)
        first += window.size


def _accepted(windows: Windows, *, scale: float, max_norm: float, key: bytes, max_tries: int) -> int | None:
    """Gives the first stream of coins that makes no update too long; None if none of those tried does."""
    for stream in range(_FIRST_STREAM, _FIRST_STREAM + max_tries):
        squares, first = 0, 0
        for window in windows():
            rounded = _round(window, scale=scale, key=key, stream=stream, first=first)
            squares += int(np.dot(rounded, rounded))
            first += rounded.size
        if squares <= max_norm**2:
            return stream
    return None


def _round(window: Float64Array, *, scale: float, key: bytes, stream: int, first: int) -> Int64Array:
    """Rounds a window up or down by its elements' coins; window[0] is the update's element `first`."""
    rounded = np.empty(window.size, dtype=np.int64)
    for begin in range(0, window.size, _TILE_ELEMENTS):
        scaled = window[begin : begin + _TILE_ELEMENTS] * scale
        below = np.floor(scaled)
        words = np.empty(scaled.size, dtype=np.uint32)
        keystream(key, stream=stream, first=first + begin, words=words)
        tile = rounded[begin : begin + scaled.size]
        tile[:] = below
        tile += words < np.ldexp(scaled - below, 32)
    return rounded
