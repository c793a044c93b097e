"""Integer tensors (counters): the exact weighted mean of their deltas, rounded half to even."""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

IntegerArray = NDArray[Any]

_SAFE: Final = 1 << 62


def sum_type(contributions: Iterable[tuple[float, int]]) -> np.dtype[Any]:
    """Chooses int64 where the sum of (largest |delta|, weight) fits it, else Python's integers, for the same result."""
    bound = sum(int(magnitude) * weight for magnitude, weight in contributions)
    return np.dtype(np.int64) if bound < _SAFE else np.dtype(object)


def fold(accumulator: IntegerArray, values: IntegerArray, *, weight: int) -> None:
    """Adds values * weight; magnitudes are at most 2^53, so even uint64 values fit int64."""
    np.add(accumulator, values.astype(np.int64).astype(accumulator.dtype) * weight, out=accumulator)


def rounded_mean(accumulator: IntegerArray, total_weight: int) -> IntegerArray:
    """Divides the sum by the total weight, rounding half to even; shape and type of the accumulator."""
    quotient = accumulator // total_weight
    twice = (accumulator - quotient * total_weight) * 2
    up = (twice > total_weight) | ((twice == total_weight) & (quotient % 2 == 1))
    return np.asarray(quotient + up.astype(np.int64))


def add_saturating(base: IntegerArray, delta: IntegerArray) -> IntegerArray:
    """Adds the mean delta to a base of any integer type; the result stops at the type's bounds."""
    bounds = np.iinfo(base.dtype)
    far = base.size and base.itemsize == 8 and (int(base.max()) >= _SAFE or int(base.min()) <= -_SAFE)
    wide = np.dtype(object) if far else delta.dtype
    # Within int64 a sum cannot come near the top of uint64, and numpy would refuse the bound itself.
    top = bounds.max if wide.hasobject else min(bounds.max, (1 << 63) - 1)
    total: IntegerArray = np.clip(base.astype(wide) + delta, bounds.min, top).astype(base.dtype)
    return total
