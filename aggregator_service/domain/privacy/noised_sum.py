"""The noise that a private round's sum gets: one grid and one clipping norm for all tensors, known beforehand."""

from dataclasses import dataclass, field

from aggregator_service.domain.exact_sum import Int64Array
from aggregator_service.domain.privacy.ledger import ReleasedNoise
from fl_protocol.privacy import lattice, noise


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

    @property
    def shift(self) -> int:
        """The grid's step is 2^-shift."""
        return lattice.shift(self.clipping_norm)

    @property
    def released(self) -> ReleasedNoise:
        """What the ledger says of it, which is all but the key."""
        return ReleasedNoise(
            clipping_norm=self.clipping_norm,
            step=lattice.step(self.clipping_norm),
            sensitivity=self.sensitivity,
            stddev=self.stddev,
            num_elements=self.num_elements,
        )

    def add(self, totals: Int64Array, *, first: int) -> None:
        """Adds its noise to the integer sums of the elements first, first + 1, ..."""
        noise.add_lattice_gaussian(totals, key=self.key, first=first, stddev=self.stddev)


def gaussian_sum(noise_multiplier: float, *, clipping_norm: float, num_elements: int, key: bytes) -> NoisedSum:
    """Gives independent noise for one release (Gaussian mechanism, adjacency by zeroing one update out)."""
    return NoisedSum(
        clipping_norm=clipping_norm,
        num_elements=num_elements,
        sensitivity=lattice.sensitivity(clipping_norm, num_elements),
        stddev=lattice.noise_stddev(noise_multiplier, clipping_norm=clipping_norm, num_elements=num_elements),
        key=key,
    )
