"""Robust strategies on 10 updates of 10M float32 parameters in memory, beside numpy and beside Flower's functions.

`make bench-peers`, or `python -m benchmarks robust_strategies` (without Flower where it is not installed). One thread
on all sides. The kernels are what the fold runs on one block after the other; reading the updates is not part of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregator_service.domain.inner_products import InnerProducts, squared_distances
from aggregator_service.domain.strategies import bulyan, geometric_median, krum
from aggregator_service.domain.strategies.median import median
from aggregator_service.domain.strategies.trimmed_mean import trimmed_mean
from benchmarks.measurements import Row, in_turns, row
from benchmarks.peers import flower
from fl_protocol.dtypes import Float64Array

NUM_UPDATES: Final = 10
NUM_ELEMENTS: Final = 10_000_000
NUM_TRIMMED: Final = 2
NUM_BYZANTINE: Final = 2
REPETITIONS: Final = 3

_TILE: Final = 1 << 13

Updates = list[NDArray[np.float32]]


def make_updates(num_elements: int = NUM_ELEMENTS) -> Updates:
    """Makes the updates that every measurement runs on."""
    source = np.random.default_rng(0)
    return [source.standard_normal(num_elements, dtype=np.float32) * np.float32(0.01) for _ in range(NUM_UPDATES)]


def _blocks(updates: Updates) -> Iterator[NDArray[np.float32]]:
    # As the fold loads them: copied into rows, without negative zeros.
    rows = np.empty((len(updates), _TILE), dtype=np.float32)
    for begin in range(0, updates[0].size, _TILE):
        block = rows[:, : min(_TILE, updates[0].size - begin)]
        for target, update in zip(block, updates, strict=True):
            np.add(update[begin : begin + target.size], np.float32(0), out=target)
        yield block


def by_coordinate(updates: Updates, combine: Callable[[NDArray[np.float32]], Float64Array]) -> Float64Array:
    """Combines all coordinates, tile by tile, as the fold does."""
    combined = np.empty(updates[0].size)
    begin = 0
    for block in _blocks(updates):
        combined[begin : begin + block.shape[1]] = combine(block)
        begin += block.shape[1]
    return combined


def products_of(updates: Updates) -> Float64Array:
    """Compares all updates, tile by tile, as the fold does before it decides."""
    products = InnerProducts(len(updates), centre=0, dtype=np.dtype(np.float32))
    products.begin_tensor([float(np.abs(update).max()) for update in updates], updates[0].size)
    for block in _blocks(updates):
        products.add(block)
    return products.result()


def run_median(updates: Updates) -> object:
    """The coordinate-wise median."""
    return by_coordinate(updates, median)


def run_trimmed_mean(updates: Updates) -> object:
    """The coordinate-wise trimmed mean."""
    return by_coordinate(updates, lambda rows: trimmed_mean(rows, num_trimmed=NUM_TRIMMED))


def run_krum(updates: Updates) -> object:
    """Krum's choice, and the chosen update in float64."""
    distances = squared_distances(products_of(updates))
    (chosen,) = krum.multi_krum(distances, num_byzantine=NUM_BYZANTINE, num_selected=1)
    return updates[chosen].astype(np.float64)


def _run_bulyan(updates: Updates) -> object:
    chosen = bulyan.select(squared_distances(products_of(updates)), num_byzantine=1)
    rows = [updates[number] for number in chosen]
    return by_coordinate(rows, lambda block: bulyan.mean_around_median(block, num_byzantine=1))


def _run_geometric_median(updates: Updates) -> object:
    weights = geometric_median.weights_of(products_of(updates), [1] * len(updates), num_iterations=100, smoothing=1e-6)
    return np.average(updates, axis=0, weights=weights)


def _plain_trimmed_mean(updates: Updates) -> object:
    ascending = np.sort(np.array(updates), axis=0)
    return ascending[NUM_TRIMMED : NUM_UPDATES - NUM_TRIMMED].mean(axis=0, dtype=np.float64)


def _plain_distances(updates: Updates) -> object:
    return [[float(np.square(one - other).sum()) for other in updates] for one in updates]


def measure() -> list[Row]:
    """Measures each strategy's kernels, what a numpy user would write and what Flower does, in turns."""
    updates = make_updates()
    work: dict[str, Callable[[], object]] = {
        "plain mean: numpy": lambda: np.mean(updates, axis=0, dtype=np.float64),
        "median": lambda: run_median(updates),
        "trimmed mean": lambda: run_trimmed_mean(updates),
        "krum": lambda: run_krum(updates),
        "bulyan": lambda: _run_bulyan(updates),
        "geometric median": lambda: _run_geometric_median(updates),
    }
    if not flower.is_installed():
        plain = {
            "median: numpy": lambda: np.median(np.array(updates), axis=0),
            "trimmed mean: numpy": lambda: _plain_trimmed_mean(updates),
            "krum: numpy": lambda: _plain_distances(updates),
        }
        return _rows(in_turns(work | plain, repetitions=REPETITIONS), peer="numpy")
    seconds: dict[str, list[float]] = {}
    for _ in range(REPETITIONS):
        version, theirs = flower.measure(
            num_updates=NUM_UPDATES, num_elements=NUM_ELEMENTS, num_trimmed=NUM_TRIMMED, num_byzantine=NUM_BYZANTINE
        )
        peer = f"Flower {version}"
        for name, times in in_turns(work, repetitions=1).items():
            seconds.setdefault(name, []).extend(times)
        for name, time in theirs.items():
            seconds.setdefault(f"{name}: {peer}", []).append(time)
    return _rows(seconds, peer=peer)


def _rows(seconds: Mapping[str, Sequence[float]], *, peer: str) -> list[Row]:
    mean = float(np.median(seconds["plain mean: numpy"]))
    rows = []
    for name, times in seconds.items():
        own, is_peer, _ = name.partition(f": {peer}")
        if is_peer and own in seconds:
            rows.append(row(name, "s", times, of=float(np.median(seconds[own])), ratio_of=f"FedQuorum's {own}"))
        else:
            rows.append(row(name, "s", times, of=mean, ratio_of="numpy's mean"))
    return rows
