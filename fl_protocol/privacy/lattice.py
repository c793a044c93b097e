"""The public grid of integers on which clipped updates are added up and noised, and what one update can change there.

All floating-point tensors of a private run share one step, a power of two that depends on the clipping norm alone. An
update, clipped to the norm C, becomes q = round_half_even(factor * delta / step); its L2 norm is at most C / step times
what float64 adds (2^-40 is generous), and each of its m coordinates may be off by half a step, together sqrt(m) / 2.
That bound, rounded up, is the sensitivity that is charged: deterministic rounding needs no more (privacy.md 4.6 has the
bound for stochastic rounding). Sums stay below 2^53, so that float64 holds every released total exactly.
"""

import math
from fractions import Fraction
from typing import Final

import numpy as np

from fl_protocol.dtypes import Values
from fl_protocol.privacy.noise import MAX_ABS_GAUSSIAN, Int64Array

_GRID_BITS: Final = 24
"""C / step lies above 2^23 and at most at 2^24: float64 then draws noise to within 2^-28 of a step."""
_CLIPPING_SLACK: Final = 1 + Fraction(1, 2**40)
_MAX_EXACT: Final = 2**53
_CORRELATED: Final = 2
"""A row of C^-1 of non-negative falling coefficients adds up to at most 2 in magnitude (Kaluza 1928)."""


class LatticeError(ValueError):
    """A sum or its noise may leave the integers that float64 holds exactly; `field` names what is too large."""

    def __init__(self, field: str, *, value: float, bound: float, what: str) -> None:
        super().__init__(
            f"{field}: {what} is {value:g}; it may be at most {bound:.6g}, so that the noised sum stays below 2^53 "
            "steps of the grid and float64 holds it exactly"
        )
        self.field = field
        self.value = value
        self.bound = bound


def shift(clipping_norm: float) -> int:
    """Gives s where the grid's step is 2^-s: floor(log2(2^24 / clipping_norm)), exactly."""
    mantissa, exponent = math.frexp(clipping_norm)
    return _GRID_BITS - exponent + (mantissa == 0.5)


def step(clipping_norm: float) -> float:
    """Gives the grid's step, in the units of the update: a power of two."""
    return math.ldexp(1.0, -shift(clipping_norm))


def sensitivity(clipping_norm: float, num_elements: int) -> int:
    """Gives the largest L2 norm in steps of an update of so many elements that was clipped in the L2 norm."""
    root = math.isqrt(num_elements - 1) + 1
    return _clipped(clipping_norm) + -(-root // 2)


def l1_sensitivity(clipping_norm: float, num_elements: int) -> int:
    """Gives the largest L1 norm in steps of an update of so many elements that was clipped in the L1 norm."""
    return _clipped(clipping_norm) + -(-num_elements // 2)


def quantise(values: Values, *, factor: float, clipping_norm: float) -> Int64Array:
    """Rounds factor * values to the grid, half to even: `factor` is what clips them, `values` are finite floats."""
    scaled = values.astype(np.float64)
    np.multiply(scaled, math.ldexp(factor, shift(clipping_norm)), out=scaled)
    np.rint(scaled, out=scaled)
    return scaled.astype(np.int64)


def noise_stddev(noise_multiplier: float, *, clipping_norm: float, num_elements: int) -> float:
    """Gives the Gaussian noise's standard deviation in steps, for adjacency by zeroing one update out.

    Correlated noise multiplies `noise_multiplier` by its own sensitivity first. A message that is noised before it
    leaves, where any update may stand for any other, multiplies it by 2.
    """
    return noise_multiplier * sensitivity(clipping_norm, num_elements)


def laplace_scale(noise_multiplier: float, *, clipping_norm: float, num_elements: int) -> float:
    """Gives the scale in steps of Laplace noise against one update zeroed out; a message takes the multiplier twice."""
    return noise_multiplier * l1_sensitivity(clipping_norm, num_elements)


def check_exact(num_updates: int, *, clipping_norm: float, num_elements: int, stddev: float) -> None:
    """Raises LatticeError if the sum of so many updates with Gaussian noise, correlated or not, may exceed 2^53 steps.

    `stddev` is the noise's standard deviation in steps.
    """
    most = _MAX_EXACT // 2 // sensitivity(clipping_norm, num_elements)
    if num_updates > most:
        raise LatticeError("round.cohort_size", value=num_updates, bound=most, what="the number of updates in a sum")
    widest = _MAX_EXACT / 2 / (_CORRELATED * MAX_ABS_GAUSSIAN)
    if stddev > widest:
        raise LatticeError(
            "privacy.noise_multiplier", value=stddev, bound=widest, what="the noise's standard deviation in steps"
        )


def _clipped(clipping_norm: float) -> int:
    return math.ceil(Fraction(clipping_norm) * Fraction(2) ** shift(clipping_norm) * _CLIPPING_SLACK)
