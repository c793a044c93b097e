"""What each update of a sealed round weighs in the mean: exact integers, a function of the sealed set alone."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from aggregator_service.domain.strategies.mean import weight_of
from fl_protocol.specs.strategies import MAX_WEIGHT, InverseStratumSizeWeighting, MeanStrategy, Strategy, exact_share


@dataclass(frozen=True, slots=True)
class Weighed:
    """What is known of an update's weight: its examples, and its client's stratum where the weighting asks for it."""

    num_examples: int
    stratum: str | None = None


def effective_weights(updates: Sequence[Weighed], strategy: Strategy) -> list[int]:
    """Gives each update's integer weight, from 1 to 2^29, in the order of the updates.

    Only the weights' ratios matter. `max_share` is kept exactly: no weight is more than that share of their sum. Raises
    ValueError for a largest share that so few updates cannot keep.
    """
    weights = [weight_of(update.num_examples, strategy) for update in updates]
    if not isinstance(strategy, MeanStrategy):
        return weights
    if isinstance(strategy.weighting, InverseStratumSizeWeighting):
        weights = _inverse_stratum_sizes([update.stratum for update in updates])
    return weights if strategy.max_share is None else _capped(weights, exact_share(strategy.max_share))


def _inverse_stratum_sizes(strata: Sequence[str | None]) -> list[int]:
    """Weighs each update with 1 / (number of updates of its stratum); those without the attribute are a stratum too.

    The common multiple of the sizes divided by a size is exact. Where that exceeds 2^29, 2^29 / size is rounded half to
    even, which is off by less than 2^-17 of itself for sizes up to 4096.
    """
    sizes = Counter(strata)
    multiple = math.lcm(*sizes.values())
    if multiple // min(sizes.values(), default=1) > MAX_WEIGHT:
        return [round(Fraction(MAX_WEIGHT, sizes[stratum])) for stratum in strata]
    return [multiple // sizes[stratum] for stratum in strata]


def _capped(weights: Sequence[int], share: Fraction) -> list[int]:
    """Lowers the largest weights to one level so that none exceeds a share of the sum (water-filling).

    If the k largest weights are lowered to c and the others sum to r, c = share x (k x c + r) gives c. It is the right
    k when the next weight is not above c. All weights are then multiplied by c's denominator, or by what fits below
    2^29, and c is rounded down, which keeps the share.
    """
    descending = sorted(weights, reverse=True)
    rest = sum(weights)
    for num_capped, weight in enumerate(descending):
        level = share * rest / (1 - num_capped * share)
        if weight <= level:
            return list(weights) if num_capped == 0 else _lowered(weights, level)
        rest -= weight
    raise ValueError(f"max_share {float(share):g} cannot hold among {len(weights)} updates")


def _lowered(weights: Sequence[int], level: Fraction) -> list[int]:
    scale = min(level.denominator, MAX_WEIGHT // math.ceil(level))
    return [min(weight * scale, math.floor(level * scale)) for weight in weights]
