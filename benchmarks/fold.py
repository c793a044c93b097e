"""Folding float32 deltas into the exact sum, against a plain read of the same memory."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aggregator_service.domain import exact_sum

NUM_ELEMENTS = 10_000_000
WINDOW = 1 << 20
REPETITIONS = 15


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: the median of its repetitions, and how many times the plain read that is."""

    name: str
    seconds: float
    gigabytes_per_second: float
    ratio: float


def measure() -> list[Row]:
    """Measures the fastest plain read, the fold with and without llvmlite, and a float64 sum that is not exact, one after another in one run."""
    values = (np.random.default_rng(0).standard_normal(NUM_ELEMENTS) * 0.01).astype(np.float32)
    shift = exact_sum.shift([(float(np.abs(values).max()), 12_345)])
    accumulator = np.zeros(WINDOW, dtype=np.int64)
    scratch = np.empty(exact_sum.SCRATCH_ELEMENTS)
    naive = np.zeros(WINDOW)

    def fold(tile: np.ndarray) -> None:
        exact_sum.fold(accumulator[: tile.size], tile, weight=12_345, shift=shift, scratch=scratch)

    def fold_with_numpy(tile: np.ndarray) -> None:
        exact_sum.fold_with_numpy(accumulator[: tile.size], tile, factor=2.0**20, scratch=scratch)

    def sum_float64(tile: np.ndarray) -> None:
        np.add(naive[: tile.size], tile * np.float64(12_345), out=naive[: tile.size])

    work: dict[str, Callable[[], object]] = {
        "read: add int64": lambda: np.add.reduce(values.view(np.int64)),
        "read: or int64": lambda: np.bitwise_or.reduce(values.view(np.int64)),
        "fold: exact sum": lambda: _each_window(values, fold),
        "fold: numpy only": lambda: _each_window(values, fold_with_numpy),
        "fold: naive float64": lambda: _each_window(values, sum_float64),
    }
    seconds = _medians(work)
    plain = min(taken for name, taken in seconds.items() if name.startswith("read"))
    return [Row(name, taken, values.nbytes / taken / 1e9, taken / plain) for name, taken in seconds.items()]


def _each_window(values: np.ndarray, work: Callable[[np.ndarray], None]) -> None:
    for begin in range(0, values.size, WINDOW):
        work(values[begin : begin + WINDOW])


def _medians(work: dict[str, Callable[[], object]]) -> dict[str, float]:
    # Taking turns lets whatever else the machine does fall on all of them alike.
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(REPETITIONS):
        for name, run in work.items():
            begin = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    """Prints the measurements."""
    print(f"{NUM_ELEMENTS} float32 elements, medians of {REPETITIONS}")
    for row in measure():
        print(
            f"{row.name:<22} {row.seconds * 1e3:8.2f} ms {row.gigabytes_per_second:7.1f} GB/s {row.ratio:6.2f} x read"
        )


if __name__ == "__main__":
    main()
