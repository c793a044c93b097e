"""The exact integer sum: the same bits in any order, on any split over workers, after any restart.

Each contribution `delta * weight` is rounded once to a fixed-point grid of spacing 2^-shift and the integers are added.
The shift is chosen per tensor from the sealed set alone, so that nothing wraps and enough bits are kept:

- every |delta * weight * 2^shift| is at most 2^51, which `fold`'s rounding needs, and their sum at most 2^62;
- the shift is rounded down to a multiple of 4, so that a guess made from a part of the updates is nearly always right.

What is lost: the first rule leaves the largest contribution above 2^50, the second one costs one bit more for 2049 to
4096 updates, the rounding down up to three. The largest contribution is therefore above 2^46 and half a grid step per
update is below N * 2^-47 * max(weight_i * m_i) / total weight: a quarter of the contract's bound, which leaves room for
the rounding to the model's own type. A multiple of 8 would cost up to seven bits and break that bound by a factor of 2
(4 for more than 2048 updates).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fl_protocol.dtypes import Float64Array

Int64Array = NDArray[np.int64]

MAX_CONTRIBUTION_BITS: Final = 51
MAX_SUM_BITS: Final = 62
SHIFT_STEP: Final = 4
MIN_SHIFT: Final = -1008
MAX_SHIFT: Final = 992
"""weight * 2^shift stays a finite normal float64 for every weight up to 2^29."""

SCRATCH_ELEMENTS: Final = 1 << 16
"""512 KiB of float64: stays in a core's second-level cache, and hides the cost of a call."""

# Between 2^52 and 2^53 float64 has a spacing of 1: adding this rounds half to even, and the sum's bits, read as an
# integer, are the rounded value plus the bits of this constant.
_MAGIC: Final = 1.5 * 2.0**52
_MAGIC_BITS: Final = int(np.float64(_MAGIC).view(np.int64))


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """The largest and the sum of some contributions' |delta| * weight, exactly, in units of 2^-exponent."""

    largest: int = 0
    total: int = 0
    exponent: int = 0

    def extended(self, contributions: Iterable[tuple[float, float]]) -> "Magnitudes":
        """Takes in further contributions, each told by its largest |delta| and its weight; the order does not matter.

        Raises ValueError for a magnitude or a weight that is not finite.
        """
        largest, total, exponent = self.largest, self.total, self.exponent
        for magnitude, weight in contributions:
            if not math.isfinite(magnitude) or magnitude < 0 or not 0 < weight < math.inf:
                raise ValueError(f"a contribution needs a finite magnitude and a weight above 0: {magnitude}, {weight}")
            numerator, denominator = magnitude.as_integer_ratio()
            weight_numerator, weight_denominator = weight.as_integer_ratio()
            scaled = numerator * weight_numerator
            finer = denominator.bit_length() + weight_denominator.bit_length() - 2
            if finer > exponent:
                largest, total, exponent = largest << finer - exponent, total << finer - exponent, finer
            scaled <<= exponent - finer
            largest, total = max(largest, scaled), total + scaled
        return Magnitudes(largest, total, exponent)

    @property
    def shift(self) -> int:
        """The grid that they choose."""
        if not self.total:
            return 0
        most = MAX_CONTRIBUTION_BITS - _ceil_log2(self.largest)
        exact = min(most, MAX_SUM_BITS - _ceil_log2(self.total)) + self.exponent
        return min(max(exact // SHIFT_STEP * SHIFT_STEP, MIN_SHIFT), MAX_SHIFT)


def shift(contributions: Iterable[tuple[float, float]]) -> int:
    """Chooses a tensor's grid from each update's (largest |delta|, weight); the order does not matter.

    A weight is an integer up to 2^29, such an integer times a clip factor, or an algorithm's own: any finite number
    above 0. Float64 contributions that are all below 2^-946 meet MAX_SHIFT and keep fewer bits. Raises ValueError for a
    magnitude or a weight that is not finite.
    """
    return Magnitudes().extended(contributions).shift


def fold(accumulator: Int64Array, values: NDArray[Any], *, weight: float, shift: int, scratch: Float64Array) -> None:
    """Adds round_half_even(values * weight * 2^shift) plus a constant bias to each element of the accumulator.

    `values` are float16, float32 or float64; for the first two the product with an integer weight up to 2^29 is exact,
    any other product is rounded once to float64, by 2^-53 of itself. The bias costs nothing here and `settle` takes it
    off once. The accumulator wraps modulo 2^64 until then, which is harmless.
    """
    factor = math.ldexp(weight, shift)
    for begin in range(0, values.size, scratch.size):
        tile = values[begin : begin + scratch.size]
        scaled = scratch[: tile.size]
        np.copyto(scaled, tile)
        np.multiply(scaled, factor, out=scaled)
        np.add(scaled, _MAGIC, out=scaled)
        target = accumulator[begin : begin + scratch.size]
        np.add(target, scaled.view(np.int64), out=target)


def settle(accumulator: Int64Array, num_folds: int) -> None:
    """Takes the biases of so many folds off the accumulator, which is then the exact sum."""
    bias = num_folds * _MAGIC_BITS % 2**64
    np.subtract(accumulator, np.array(bias, dtype=np.uint64).view(np.int64), out=accumulator)


def mean(accumulator: Int64Array, *, total_weight: float, shift: int) -> Float64Array:
    """Turns a settled sum into the weighted mean; its relative error of at most 2^-52 is far below the grid's."""
    result = accumulator.astype(np.float64)
    np.divide(result, float(total_weight), out=result)
    with np.errstate(under="ignore", over="ignore"):
        np.ldexp(result, -shift, out=result)
    return result


def _ceil_log2(value: int) -> int:
    return (value - 1).bit_length()
