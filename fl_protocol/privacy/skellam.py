"""Skellam noise drawn from a key: element j depends on the key and on j alone, so any split gives the same bits.

A Skellam variable is the difference of two Poisson variables; with the variance v, P(k) = exp(-v) I_k(v). It is drawn
by inversion: the sign by one bit of the keystream, the magnitude by where the other 63 fall in a table of the cumulated
probabilities. What is drawn changes neither the number of instructions nor, but for the caches, the time.

The table's Bessel functions come from the recurrence that runs downwards (Miller's), which needs no library, holds for
any variance, and of whose numbers all are positive: to 11 digits at least. Probabilities become whole numbers of
2^-63 before they are cumulated, so that the table adds up to 1 exactly; a tail of 10^-19 a variable has no place in it.
"""

import math
from functools import lru_cache
from typing import Final

import numpy as np

from fl_protocol.dtypes import Float64Array
from fl_protocol.masking.prg import keystream
from fl_protocol.privacy.noise import Int64Array
from fl_protocol.privacy.shared_noise import MAX_PART_VARIANCE, MAX_PARTS

_BITS: Final = 63
_TILE_ELEMENTS: Final = 1 << 14
_WIDTHS: Final = 10
_FEWEST: Final = 40
"""The table ends 10 standard deviations and 40 steps from zero."""
_MOST_WRONG: Final = 1e-9
_FIRST_STREAM: Final = 1 << 8
"""Part i of the noise is stream 2^8 + i of the key."""


def skellam(key: bytes, *, first: int, count: int, variance: float) -> Int64Array:
    """Draws the Skellam variables of the elements first, first + 1, ..., first + count - 1."""
    drawn = np.zeros(count, dtype=np.int64)
    add_skellam(drawn, key=key, first=first, variance=variance)
    return drawn


def add_skellam(totals: Int64Array, *, key: bytes, first: int, variance: float) -> None:
    """Adds a Skellam variable to each total in place; totals[0] is the vector's element number `first`.

    `key` is 32 bytes of `os.urandom`, for one vector. Skellam variables of a variance above 1e9 are sums of equal ones.
    """
    num_parts = parts_of(variance)
    table = thresholds(variance / num_parts)
    for part in range(num_parts):
        for begin in range(0, totals.size, _TILE_ELEMENTS):
            tile = totals[begin : begin + _TILE_ELEMENTS]
            words = np.empty(tile.size, dtype=np.uint64)
            keystream(key, stream=_FIRST_STREAM + part, first=first + begin, words=words)
            magnitudes = np.searchsorted(table, words >> np.uint64(1), side="right")
            signs = 1 - 2 * (words & np.uint64(1)).astype(np.int64)
            np.multiply(magnitudes, signs, out=signs)
            np.add(tile, signs, out=tile)


def parts_of(variance: float) -> int:
    """Gives of how many variables one of such a variance is the sum; raises ValueError beyond what is offered."""
    if not 0 < variance <= MAX_PART_VARIANCE * MAX_PARTS:
        raise ValueError(
            f"the noise's variance is {variance:g} steps; it must be above 0 and at most "
            f"{MAX_PART_VARIANCE * MAX_PARTS:g}"
        )
    return math.ceil(variance / MAX_PART_VARIANCE)


@lru_cache(maxsize=4)
def thresholds(variance: float) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    """Gives 2^63 times the probabilities that a magnitude is at most 0, 1, 2, ...; the last one is 2^63."""
    probabilities = _probabilities(variance)
    # Magnitudes but zero come with two signs.
    counts = np.rint(np.ldexp(probabilities, _BITS + 1)).astype(np.uint64)
    counts[0] = 0
    counts[0] = (1 << _BITS) - int(counts.sum())
    table = np.cumsum(counts)
    table = table[: np.searchsorted(table, np.uint64(1 << _BITS)) + 1]
    table.setflags(write=False)
    return table


def _probabilities(variance: float) -> Float64Array:
    """Gives P(0), P(1), ... by r(k) = I(k) / I(k - 1) = v / (2 k + v r(k + 1)), from far out in the tail."""
    last = math.ceil(_WIDTHS * math.sqrt(variance)) + _FEWEST
    start = 2 * last
    ratios = np.ones(last + 1)
    ratio = math.hypot(1, start / variance) - start / variance
    for order in range(start, 0, -1):
        ratio = variance / (2 * order + variance * ratio)
        if order <= last:
            ratios[order] = ratio
    probabilities = np.cumprod(ratios).astype(np.float64, copy=False)
    probabilities /= 2 * math.fsum(probabilities) - 1
    _check(probabilities, variance)
    return probabilities


def _check(probabilities: Float64Array, variance: float) -> None:
    """The second moment tells whether the table is right; raises ArithmeticError if it is not."""
    orders = np.arange(probabilities.size, dtype=np.float64)
    moment = 2 * math.fsum(np.square(orders) * probabilities)
    if not abs(moment - variance) <= _MOST_WRONG * variance:
        raise ArithmeticError(f"a table of Skellam noise of the variance {variance:g} has the variance {moment:g}")
