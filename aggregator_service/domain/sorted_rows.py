"""Sorts many columns at once, each holding one coordinate's value from every update.

Up to 128 updates a sorting network (Batcher 1968, "Sorting networks and their applications") exchanges whole rows by
minimum and maximum, which a processor does for many columns at a time; comparators that no wanted row depends on are
left out. More updates are sorted column by column.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from fl_protocol.dtypes import Values

MAX_NETWORK_ROWS: Final = 128


def sorted_rows(rows: Values, wanted: range) -> Sequence[Values]:
    """Gives the rows `wanted` (by rank, ascending) of the columns of [n, k] sorted; overwrites `rows`.

    Values must be finite and hold no negative zero, which would sort beside zero in either order.
    """
    if len(rows) > MAX_NETWORK_ROWS:
        columns = np.sort(rows.T, axis=1)
        return [np.ascontiguousarray(columns[:, rank]) for rank in wanted]
    wires, spare = list(rows), np.empty_like(rows[0])
    for low, high in network(len(wires), wanted.start, wanted.stop):
        first, second = wires[low], wires[high]
        np.minimum(first, second, out=spare)
        np.maximum(first, second, out=second)
        wires[low], spare = spare, first
    return [wires[rank] for rank in wanted]


@lru_cache(maxsize=64)
def network(num_rows: int, first: int, stop: int) -> tuple[tuple[int, int], ...]:
    """Gives the comparators, in order, that bring the ranks first..stop-1 of so many rows to their places."""
    needed = set(range(first, stop))
    kept = []
    for low, high in reversed(list(_odd_even_mergesort(num_rows))):
        if low in needed or high in needed:
            kept.append((low, high))
            needed |= {low, high}
    return tuple(reversed(kept))


def _odd_even_mergesort(num_rows: int) -> Iterator[tuple[int, int]]:
    merged = 1
    while merged < num_rows:
        step = merged
        while step:
            for begin in range(step % merged, num_rows - step, 2 * step):
                for low in range(begin, min(begin + step, num_rows - step)):
                    if low // (2 * merged) == (low + step) // (2 * merged):
                        yield low, low + step
            step //= 2
        merged *= 2
