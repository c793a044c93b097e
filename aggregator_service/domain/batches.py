"""When the updates that wait in a collecting round are folded, and which rounds may be folded in parts at all."""

from dataclasses import dataclass
from typing import Final

from fl_protocol.runs import RunSpec
from fl_protocol.specs.algorithms import FedAvgAlgorithm
from fl_protocol.specs.secure_aggregation import is_masked
from fl_protocol.specs.strategies import InverseStratumSizeWeighting, MeanStrategy

MIN_UPDATES: Final = 4
_WORTH_AN_ELEMENT: Final = 16
"""A batch reads and writes 8 bytes for each element of the model: it should fold at least as many bytes of updates."""

_WORTH_A_BATCH: Final = 16 << 20
_MIN_AWAITED: Final = 2
_WORTH_WAITING_FOR: Final = 2
"""So many times a batch is folded even when only one more update is awaited."""

_MOST: Final = 4
"""So many times a batch is folded at most at once: whoever waits for a sealed round waits for its last batch, too."""

_WORTH_WAITING_WITH: Final = 64 << 20
_AWAITED: Final = 2
"""A batch may wait for so many bytes as long as so many times what it has is still to come."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the updates of a round are, on average, and how many elements its model has."""

    update_bytes: int
    num_parameters: int

    @property
    def batch_bytes(self) -> int:
        """How many bytes of updates are worth a batch."""
        return max(_WORTH_A_BATCH, _WORTH_AN_ELEMENT * self.num_parameters)

    @property
    def most_updates(self) -> int:
        """How many updates a batch has at most."""
        return max(MIN_UPDATES, _MOST * self.batch_bytes // self.update_bytes)


def adds_up_in_parts(spec: RunSpec) -> bool:
    """Tells whether what an update adds to a round's sum does not depend on the others that the round will have."""
    strategy = spec.strategy
    return (
        isinstance(strategy, MeanStrategy)
        and not isinstance(strategy.weighting, InverseStratumSizeWeighting)
        and strategy.max_share is None
        and isinstance(spec.algorithm, FedAvgAlgorithm)
        and not is_masked(spec)
    )


def is_due(num_waiting: int, *, num_awaited: int, sizes: Sizes) -> bool:
    """Tells whether to fold the updates that wait, while `num_awaited` more are to come.

    Small updates are cheaper to fold all at once, and each batch reads the round's rows anew: while many are to come,
    it waits for 64 MiB of them. Just before the last update a batch would only be in its way, unless
    many wait: what is left to the end is less than two batches and one update, whatever the size of the round.
    """
    waiting_bytes, awaited_bytes = num_waiting * sizes.update_bytes, num_awaited * sizes.update_bytes
    enough = max(sizes.batch_bytes, min(_WORTH_WAITING_WITH, awaited_bytes // _AWAITED))
    if num_waiting < MIN_UPDATES or waiting_bytes < enough:
        return False
    return num_awaited >= _MIN_AWAITED or waiting_bytes >= _WORTH_WAITING_FOR * sizes.batch_bytes
