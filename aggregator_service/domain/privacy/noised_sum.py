"""The noise that a private round's sum gets: one grid and one clipping norm for all tensors, known beforehand."""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, isqrt
from typing import Final

from aggregator_service.domain.exact_sum import Int64Array
from aggregator_service.domain.privacy import adaptive_clipping
from aggregator_service.domain.privacy.ledger import ReleasedNoise
from fl_protocol.dtypes import Float64Array
from fl_protocol.privacy import lattice, noise
from fl_protocol.specs.privacy import CentralGaussianAdaptivePrivacy

_TILE_ELEMENTS: Final = 1 << 16
_CLIPPING_SLACK: Final = 1 + Fraction(1, 2**40)


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How the next round's clipping norm follows from a noised count; `place` is that of the count's own noise."""

    privacy: CentralGaussianAdaptivePrivacy
    count_stddev: float
    place: int

    def next_norm(self, noised: "NoisedSum", *, num_unclipped: int, num_judged: int, num_updates: int) -> float:
        """Gives the next clipping norm."""
        stddev = adaptive_clipping.lattice_count_stddev(self.count_stddev)
        drawn = noise.lattice_gaussian(noised.key, first=self.place, count=1, stddev=stddev)
        share = adaptive_clipping.noised_unclipped_share(
            num_unclipped, num_judged, noise=int(drawn[0]), denominator=num_updates
        )
        return adaptive_clipping.next_clipping_norm(
            noised.clipping_norm,
            share,
            target_unclipped_quantile=self.privacy.target_unclipped_quantile,
            learning_rate=self.privacy.clip_learning_rate,
            bounds=(self.privacy.min_clipping_norm, self.privacy.max_clipping_norm),
        )


@dataclass(frozen=True, slots=True)
class Grid:
    """The grid of a sum: its step, and what one update can change there at most, in steps and the L2 norm."""

    step: float
    sensitivity: int


def plain_grid(clipping_norm: float, num_elements: int) -> Grid:
    """Gives the grid on which plain updates are added up."""
    return Grid(lattice.step(clipping_norm), lattice.sensitivity(clipping_norm, num_elements))


def masked_grid(step: float, *, clipping_norm: float, num_elements: int) -> Grid:
    """Gives the grid of masked updates: rounded at random, each of m coordinates is off by less than a whole step.

    So the sensitivity is ceil(C / step * (1 + 2^-40)) + ceil(sqrt(m)).
    """
    clipped = ceil(Fraction(clipping_norm) / Fraction(step) * _CLIPPING_SLACK)
    return Grid(step, clipped + isqrt(num_elements - 1) + 1)


@dataclass(frozen=True, slots=True)
class NoisedSum:
    """How a sum of clipped updates is noised; `stddev` and `sensitivity` count steps of the grid.

    The noise of the model's element j, counted over all its tensors in order, depends on the key and on j alone.
    """

    clipping_norm: float
    num_elements: int
    sensitivity: int
    stddev: float
    key: bytes = field(repr=False)
    step: float
    adaptation: Adaptation | None = None
    correlate: Callable[[Float64Array], Float64Array] | None = None

    @property
    def shift(self) -> int:
        """The step of the grid of a sum of plain updates is 2^-shift; that of masked ones is the ring's."""
        return lattice.shift(self.clipping_norm)

    def released(self, *, num_unclipped: int, num_judged: int, num_updates: int) -> ReleasedNoise:
        """Gives what the ledger says of it: all but the key, and the next clipping norm if that is adaptive.

        Of the `num_updates` counted, `num_judged` are not zero, and no norm clipped `num_unclipped` of these.
        """
        following = None
        if self.adaptation is not None:
            following = self.adaptation.next_norm(
                self, num_unclipped=num_unclipped, num_judged=num_judged, num_updates=num_updates
            )
        return ReleasedNoise(
            clipping_norm=self.clipping_norm,
            step=self.step,
            sensitivity=self.sensitivity,
            stddev=self.stddev,
            num_elements=self.num_elements,
            next_clipping_norm=following,
        )

    def add(self, totals: Int64Array, *, first: int) -> None:
        """Adds its noise to the integer sums of the elements first, first + 1, ...

        Correlated noise takes each element once, in order.
        """
        if self.correlate is None:
            noise.add_lattice_gaussian(totals, key=self.key, first=first, stddev=self.stddev)
            return
        for begin in range(0, totals.size, _TILE_ELEMENTS):
            tile = totals[begin : begin + _TILE_ELEMENTS]
            independent = noise.gaussian(self.key, first=first + begin, count=tile.size)
            noise.add_rounded(tile, self.correlate(independent), scale=self.stddev)


def gaussian_sum(
    noise_multiplier: float,
    *,
    clipping_norm: float,
    num_elements: int,
    key: bytes,
    grid: Grid | None = None,
    adaptation: Adaptation | None = None,
) -> NoisedSum:
    """Gives independent noise for one release (Gaussian mechanism, adjacency by zeroing one update out).

    `grid` is that of the sum, by default the one of plain updates.
    """
    grid = grid or plain_grid(clipping_norm, num_elements)
    return NoisedSum(
        clipping_norm=clipping_norm,
        num_elements=num_elements,
        sensitivity=grid.sensitivity,
        stddev=noise_multiplier * grid.sensitivity,
        key=key,
        step=grid.step,
        adaptation=adaptation,
    )


def correlated_sum(
    noise_multiplier: float,
    *,
    clipping_norm: float,
    num_elements: int,
    key: bytes,
    sensitivity: float,
    correlate: Callable[[Float64Array], Float64Array],
    grid: Grid | None = None,
) -> NoisedSum:
    """Gives one round's noise of a run whose rounds together are one release; `sensitivity` is that of the matrix."""
    grid = grid or plain_grid(clipping_norm, num_elements)
    whole = ceil(sensitivity * grid.sensitivity)
    return NoisedSum(
        clipping_norm=clipping_norm,
        num_elements=num_elements,
        sensitivity=whole,
        stddev=noise_multiplier * whole,
        key=key,
        step=grid.step,
        correlate=correlate,
    )
