"""When the updates that wait in a collecting round are folded, and which rounds may be folded in parts at all."""

from typing import Final

from fl_protocol.runs import RunSpec
from fl_protocol.specs.algorithms import FedAvgAlgorithm
from fl_protocol.specs.secure_aggregation import is_masked
from fl_protocol.specs.strategies import InverseStratumSizeWeighting, MeanStrategy

MIN_UPDATES: Final = 4
"""A batch reads and writes 8 bytes for each element of the model, which so many updates outweigh."""

MAX_UPDATES: Final = 16
"""Whoever waits for a sealed round waits for its last batch, too."""

_MIN_BATCH_BYTES: Final = 16 << 20
_MIN_AWAITED: Final = 2
_MAX_WAITING: Final = 2 * MIN_UPDATES


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


def is_due(num_waiting: int, *, num_awaited: int, num_bytes: int) -> bool:
    """Tells whether to fold what waits, of `num_bytes` an update, while `num_awaited` more are to come.

    Small updates are cheaper to fold all at once. Just before the last update a batch would only be in its way, unless
    many wait: at most 8 are left to the end, whatever the size of the round.
    """
    if num_waiting < MIN_UPDATES or num_waiting * num_bytes < _MIN_BATCH_BYTES:
        return False
    return num_awaited >= _MIN_AWAITED or num_waiting >= _MAX_WAITING
