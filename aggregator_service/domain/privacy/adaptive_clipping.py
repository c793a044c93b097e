"""A clipping norm that follows a quantile of the updates' norms (Andrew et al. 2021, arXiv 1905.03871).

Each update says with one bit whether it was NOT clipped. The share of ones is released with noise of its own, and the
norm moves geometrically towards the quantile: too many unclipped updates lower it. Bits count as +1/2 and -1/2, so that
one of them changes their sum by 1/2, and the sum is noised as an integer, in steps of 2^-20. An update of zeros has no
bit, so that every update is half a count away from the world in which its client sent zeros.
"""

import math
from typing import Final

COUNT_SHIFT: Final = 20
"""The sum of the bits is noised in steps of 2^-20."""

_HALF: Final = 1 << (COUNT_SHIFT - 1)
_MAX_EXPONENT: Final = 700.0


def lattice_count_stddev(count_stddev: float) -> float:
    """Gives the count's noise in steps, for a draw of `lattice_gaussian`."""
    return math.ldexp(count_stddev, COUNT_SHIFT)


def noised_unclipped_share(num_unclipped: int, num_judged: int, *, noise: int, denominator: float) -> float:
    """Gives the released share of updates that were not clipped; noise may bring it below 0 or above 1.

    `num_judged` is how many updates have a bit, `noise` a draw in steps, `denominator` a public number: how many
    updates are counted or expected.
    """
    total = (2 * num_unclipped - num_judged) * _HALF + noise
    return math.ldexp(total, -COUNT_SHIFT) / denominator + 0.5


def next_clipping_norm(
    clipping_norm: float,
    share: float,
    *,
    target_unclipped_quantile: float,
    learning_rate: float,
    bounds: tuple[float, float],
) -> float:
    """Gives clipping_norm * exp(-learning_rate * (share - target)), within the bounds (smallest, largest)."""
    smallest, largest = bounds
    # Beyond e^700 a float64 ends; wherever the noise led, the bounds are nearer.
    exponent = min(max(-learning_rate * (share - target_unclipped_quantile), -_MAX_EXPONENT), _MAX_EXPONENT)
    return min(max(clipping_norm * math.exp(exponent), smallest), largest)
