"""What a sum costs whose noise the clients added themselves, on the integer grid: Skellam or discrete Gaussian.

By Renyi DP of integer orders, which dp-accounting turns into epsilon.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fl_protocol.privacy.releases import accounting_library

_ORDERS: Final = (*range(2, 129), *range(160, 513, 32))
_LOG_BETA: Final = -0.5
"""Conditional rounding keeps a draw that is longer than all but exp(-1/2) of the draws may be (Kairouz et al. 2021)."""


@dataclass(frozen=True, slots=True)
class DistributedRelease:
    """`count` sums of updates that were clipped, multiplied by `scale`, rounded at random and noised by each client.

    `clipping_norm` and `stddev`, that of the noise in the whole sum, are in the updates' own unit.
    """

    clipping_norm: float
    num_parameters: int
    scale: float
    stddev: float
    count: int = 1


def rounded_norm(release: DistributedRelease) -> float:
    """Gives the L2 norm that an update may have after rounding, in its own unit (Kairouz et al. 2021, theorem 1)."""
    norm, root = release.clipping_norm * release.scale, math.sqrt(release.num_parameters)
    likely = norm**2 + release.num_parameters / 4 + math.sqrt(-2 * _LOG_BETA) * (norm + root / 2)
    return min(norm + root, math.sqrt(likely)) / release.scale


def skellam_epsilon(releases: Sequence[DistributedRelease], *, delta: float) -> float:
    """Gives what sums with Skellam noise cost together; the clients' shares add up to such (Agarwal et al. 2021)."""

    def renyi(order: int) -> float:
        return math.fsum(release.count * _skellam_divergence(release, order) for release in releases)

    return _epsilon(renyi, delta=delta)


def _skellam_divergence(release: DistributedRelease, order: int) -> float:
    l2, l1, scale, variance = rounded_norm(release), _l1_norm(release), release.scale, release.stddev**2
    beyond_gaussian = ((2 * order - 1) * scale * l2**2 + 6 * l1) / (4 * scale**3 * variance**2)
    return order * l2**2 / (2 * variance) + min(beyond_gaussian, 3 * l1 / (2 * scale * variance))


def discrete_gaussian_epsilon(release: DistributedRelease, *, num_clients: int, delta: float) -> float:
    """Gives the epsilon of a sum of equal discrete Gaussians of `num_clients` (Kairouz et al. 2021, proposition 14)."""
    local_variance = (release.scale * release.stddev) ** 2 / num_clients
    excess = 10 * math.fsum(math.exp(-2 * math.pi**2 * local_variance * k / (k + 1)) for k in range(1, num_clients))
    l2, l1, size = rounded_norm(release) / release.stddev, _l1_norm(release) / release.stddev, release.num_parameters

    def renyi(order: int) -> float:
        return release.count * min(
            order / 2 * l2**2 + excess * size,
            order / 2 * (l2**2 + 2 * l1 * excess + excess**2 * size),
            order / 2 * (l2 + excess * math.sqrt(size)) ** 2,
        )

    return _epsilon(renyi, delta=delta)


def _l1_norm(release: DistributedRelease) -> float:
    """Gives the L1 norm of a rounded update: of integers, so at most the square of the L2 norm on the grid."""
    l2 = rounded_norm(release)
    return min(math.sqrt(release.num_parameters) * l2, release.scale * l2**2)


def _epsilon(renyi: Callable[[int], float], *, delta: float) -> float:
    divergences = [renyi(order) for order in _ORDERS]
    epsilon, _ = accounting_library().rdp.compute_epsilon(_ORDERS, divergences, delta)
    return float(epsilon)
