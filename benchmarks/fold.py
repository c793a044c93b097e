"""Folding float32 deltas into the exact sum, against a plain read of the same memory (`python -m benchmarks fold`)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from aggregator_service.domain import exact_sum
from benchmarks.measurements import Row, in_turns, row

NUM_ELEMENTS = 10_000_000
WINDOW = 1 << 20
REPETITIONS = 15

Values = NDArray[np.float32]


def measure() -> list[Row]:
    """Measures plain reads, the fold, and a float64 sum that is not exact, in turns."""
    values = (np.random.default_rng(0).standard_normal(NUM_ELEMENTS) * 0.01).astype(np.float32)
    shift = exact_sum.shift([(float(np.abs(values).max()), 12_345)])
    accumulator = np.zeros(WINDOW, dtype=np.int64)
    scratch = np.empty(exact_sum.SCRATCH_ELEMENTS)
    naive = np.zeros(WINDOW)

    def fold(tile: Values) -> None:
        exact_sum.fold(accumulator[: tile.size], tile, weight=12_345, shift=shift, scratch=scratch)

    def sum_float64(tile: Values) -> None:
        np.add(naive[: tile.size], tile * np.float64(12_345), out=naive[: tile.size])

    work: dict[str, Callable[[], object]] = {
        "plain read: add int64": lambda: np.add.reduce(values.view(np.int64)),
        "plain read: or int64": lambda: np.bitwise_or.reduce(values.view(np.int64)),
        "exact sum": lambda: _each_window(values, fold),
        "naive float64 sum": lambda: _each_window(values, sum_float64),
    }
    milliseconds = {
        name: [1e3 * second for second in seconds] for name, seconds in in_turns(work, repetitions=REPETITIONS).items()
    }
    plain = min(float(np.median(times)) for name, times in milliseconds.items() if name.startswith("plain"))
    return [
        row(f"{name}, 40 MB", "ms", times, of=plain, ratio_of="the faster plain read")
        for name, times in milliseconds.items()
    ]


def _each_window(values: Values, work: Callable[[Values], None]) -> None:
    for begin in range(0, values.size, WINDOW):
        work(values[begin : begin + WINDOW])
