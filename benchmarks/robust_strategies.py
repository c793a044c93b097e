"""Robust strategies on 10 updates of 10M float32 parameters in memory, beside numpy and beside Flower's functions.

`make bench-peers`, or `python -m benchmarks robust_strategies` (without Flower where it is not installed). One thread
on all sides, and seconds of the processor, so that other work on the machine counts little. The kernels are what the
fold runs on one block after the other; reading the updates, and measuring their largest |value|, is not part of it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
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

Updates = NDArray[np.float32]
"""A row an update."""


def make_updates(num_elements: int = NUM_ELEMENTS) -> Updates:
    """Makes the updates that every measurement runs on."""
    source = np.random.default_rng(0)
    updates = np.empty((NUM_UPDATES, num_elements), dtype=np.float32)
    for update in updates:
        np.multiply(source.standard_normal(num_elements, dtype=np.float32), np.float32(0.01), out=update)
    return updates


def by_coordinate(updates: Updates, combine: Callable[[NDArray[np.float32]], Float64Array]) -> NDArray[np.float32]:
    """Combines all coordinates tile by tile, which is copied without negative zeros, as the fold does."""
    combined = np.empty(updates.shape[1], dtype=np.float32)
    rows = np.empty((len(updates), _TILE), dtype=np.float32)
    for begin in range(0, combined.size, _TILE):
        tile = updates[:, begin : begin + _TILE]
        block = rows[:, : tile.shape[1]]
        np.add(tile, np.float32(0), out=block)
        combined[begin : begin + _TILE] = combine(block)
    return combined


def products_of(updates: Updates, magnitudes: Sequence[float]) -> Float64Array:
    """Compares all updates; each one's largest |value| was measured when it arrived."""
    products = InnerProducts(len(updates), centre=0, dtype=updates.dtype)
    products.begin_tensor(magnitudes, updates.shape[1])
    products.add(updates)
    return products.result()


def run_median(updates: Updates) -> object:
    """The coordinate-wise median."""
    return by_coordinate(updates, median)


def run_trimmed_mean(updates: Updates) -> object:
    """The coordinate-wise trimmed mean."""
    return by_coordinate(updates, lambda rows: trimmed_mean(rows, num_trimmed=NUM_TRIMMED))


def run_krum(updates: Updates, magnitudes: Sequence[float]) -> object:
    """Krum's choice."""
    distances = squared_distances(products_of(updates, magnitudes))
    (chosen,) = krum.multi_krum(distances, num_byzantine=NUM_BYZANTINE, num_selected=1)
    return updates[chosen]


def _run_bulyan(updates: Updates, magnitudes: Sequence[float]) -> object:
    chosen = list(bulyan.select(squared_distances(products_of(updates, magnitudes)), num_byzantine=1))
    return by_coordinate(updates, lambda block: bulyan.mean_around_median(block[chosen], num_byzantine=1))


def _run_geometric_median(updates: Updates, magnitudes: Sequence[float]) -> object:
    products = products_of(updates, magnitudes)
    return geometric_median.weights_of(products, [1] * len(updates), num_iterations=100, smoothing=1e-6)


def _plain_trimmed_mean(updates: Updates) -> object:
    ascending = np.sort(updates, axis=0)
    return ascending[NUM_TRIMMED : NUM_UPDATES - NUM_TRIMMED].mean(axis=0, dtype=np.float64)


def _plain_distances(updates: Updates) -> object:
    return [[float(np.square(one - other).sum()) for other in updates] for one in updates]


def measure() -> list[Row]:
    """Measures each strategy's kernels, what a numpy user would write and what Flower does, in turns."""
    updates = make_updates()
    magnitudes = [float(np.abs(update).max()) for update in updates]
    work: dict[str, Callable[[], object]] = {
        "plain mean: numpy": lambda: np.mean(updates, axis=0, dtype=np.float64),
        "median": lambda: run_median(updates),
        "trimmed mean": lambda: run_trimmed_mean(updates),
        "krum": lambda: run_krum(updates, magnitudes),
        "bulyan": lambda: _run_bulyan(updates, magnitudes),
        "geometric median: its weights": lambda: _run_geometric_median(updates, magnitudes),
    }
    if not flower.is_installed():
        plain = {
            "median: numpy": lambda: np.median(updates, axis=0),
            "trimmed mean: numpy": lambda: _plain_trimmed_mean(updates),
            "krum: numpy": lambda: _plain_distances(updates),
        }
        return _rows(in_turns(work | plain, repetitions=REPETITIONS, clock=time.process_time), peer="numpy")
    seconds: dict[str, list[float]] = {}
    for _ in range(REPETITIONS):
        version, theirs = flower.measure(
            num_updates=NUM_UPDATES, num_elements=NUM_ELEMENTS, num_trimmed=NUM_TRIMMED, num_byzantine=NUM_BYZANTINE
        )
        peer = f"Flower {version}"
        for name, times in in_turns(work, repetitions=1, clock=time.process_time).items():
            seconds.setdefault(name, []).extend(times)
        for name, taken in theirs.items():
            seconds.setdefault(f"{name}: {peer}", []).append(taken)
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
