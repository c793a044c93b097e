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
_QUORUM_SHARE: Final = 20
_MAX_EXPONENT: Final = 700.0


class InfeasibleSplitError(ValueError):
    """The noise of the count alone would cost the whole budget."""

    def __init__(self, noise_multiplier: float, count_stddev: float) -> None:
        super().__init__(
            f"privacy.count_stddev {count_stddev:g} must be above {noise_multiplier / 2:g}, half the noise multiplier, "
            "else the count of unclipped updates costs the whole budget; where it is null it is a "
            f"{_QUORUM_SHARE}th of round.quorum, which then must be above {_QUORUM_SHARE * noise_multiplier / 2:g}"
        )
        self.noise_multiplier = noise_multiplier
        self.count_stddev = count_stddev


def default_count_stddev(quorum: int) -> float:
    """Gives the noise of the count where the spec leaves it open: a twentieth of the quorum."""
    return quorum / _QUORUM_SHARE


def value_noise_multiplier(noise_multiplier: float, count_stddev: float) -> float:
    """Gives the noise multiplier of the summed updates, so that they and the count together cost `noise_multiplier`.

    The count's noise multiplier is 2 * count_stddev, and two Gaussians of z_v and z_b are one of z where
    z_v^-2 + z_b^-2 = z^-2. Raises InfeasibleSplitError unless noise_multiplier < 2 * count_stddev.
    """
    count_multiplier = 2 * count_stddev
    if noise_multiplier >= count_multiplier:
        raise InfeasibleSplitError(noise_multiplier, count_stddev)
    return noise_multiplier / math.sqrt(1 - (noise_multiplier / count_multiplier) ** 2)


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
