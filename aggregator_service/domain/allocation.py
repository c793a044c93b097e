"""How many places of a cohort each stratum has, round after round."""

import heapq
import math
from collections.abc import Iterator, Mapping
from itertools import islice


def places(weights: Mapping[str, int], *, number: int, cohort_size: int) -> dict[str, int]:
    """Gives the places of each stratum in round `number` (from 1); together they are `cohort_size`.

    Over the first n rounds each stratum has n x cohort_size x weight / total weight places, rounded up or down: never
    off by one or more. A function of the weights and the round's number alone, so nothing is carried over.
    """
    period = sum(weights.values()) // math.gcd(*weights.values())
    # After a whole period everyone has exactly the share due, and the order begins anew.
    begin = (number - 1) * cohort_size % period
    counts = dict.fromkeys(sorted(weights), 0)
    for stratum in islice(_order(weights), begin, begin + cohort_size):
        counts[stratum] += 1
    return {stratum: count for stratum, count in counts.items() if count > 0}


def _order(weights: Mapping[str, int]) -> Iterator[str]:
    """Yields the strata in the order in which they get places, for ever.

    The k-th place of a stratum with share w must not come before place floor((k - 1) / w) + 1 nor after place
    ceil(k / w): then each stratum's count is its exact share rounded up or down at every moment (a quota method,
    Balinski and Young 1975). Taking the earliest deadline first keeps all these windows, for jobs of one slot can be
    scheduled so whenever a schedule exists, and one exists (Pfair scheduling, Baruah et al. 1996).
    """
    total = sum(weights.values())
    strata = sorted(stratum for stratum, weight in weights.items() if weight > 0)
    taken = dict.fromkeys(strata, 0)
    waiting = [(1, index) for index in range(len(strata))]
    ready: list[tuple[int, int]] = []
    slot = 0
    while True:
        slot += 1
        while waiting and waiting[0][0] <= slot:
            _, index = heapq.heappop(waiting)
            weight = weights[strata[index]]
            heapq.heappush(ready, (-(-(taken[strata[index]] + 1) * total // weight), index))
        _, index = heapq.heappop(ready)
        stratum = strata[index]
        taken[stratum] += 1
        heapq.heappush(waiting, (taken[stratum] * total // weights[stratum] + 1, index))
        yield stratum
