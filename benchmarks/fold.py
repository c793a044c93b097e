"""Folding 160 MiB of updates into the exact sum, against a plain read of as many bytes."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from aggregator_service.domain import exact_sum
from aggregator_service.domain.exact_sum import Quantised, Sparse, Summand
from aggregator_service.flow.windows import WINDOW_ELEMENTS
from benchmarks.measurements import Row, in_turns, row

NUM_BYTES = 160 << 20
"""Of all updates together: several times what a cache holds."""
NUM_UPDATES = 8
NUM_INT8 = 16
"""More of them, as the server takes where there are many: they are no larger together."""
WINDOW = WINDOW_ELEMENTS
ROW = 1 << 12
REPETITIONS = 15
WEIGHT, SHIFT = 12_345, 40

Cut = Callable[[int, int, int], Summand]
"""Gives the elements [begin, end) of an update."""


def measure() -> list[Row]:
    """Measures plain reads and folds in turns."""
    source = np.random.default_rng(0)
    stored: NDArray[np.uint8] = source.integers(0, 256, NUM_BYTES, dtype=np.uint8)
    codes, many_codes = stored.reshape(NUM_UPDATES, -1), stored.reshape(NUM_INT8, -1)
    singles = (source.standard_normal((NUM_UPDATES, NUM_BYTES // 4 // NUM_UPDATES)) * 0.01).astype(np.float32)
    scales = np.full(WINDOW // ROW, 0.001, dtype=np.float32)
    indices = np.arange(0, WINDOW, 100, dtype=np.uint32)
    num_singles, num_codes, num_int8 = singles.shape[1], codes.shape[1], many_codes.shape[1]

    def single(update: int, begin: int, end: int) -> Summand:
        return singles[update, begin:end]

    def int8(update: int, begin: int, end: int) -> Summand:
        return Quantised(many_codes[update, begin:end].view(np.int8), scales, ROW)

    def int4(update: int, begin: int, end: int) -> Summand:
        return Quantised(codes[update, begin // 2 : end // 2], scales, ROW)

    def sparse(update: int, begin: int, end: int) -> Summand:
        return Sparse(indices, singles[update, begin:end][: indices.size])

    one_core: dict[str, Callable[[], object]] = {
        "plain read: add int64": lambda: np.add.reduce(stored.view(np.int64)),
        "plain read: or int64": lambda: np.bitwise_or.reduce(stored.view(np.int64)),
        "float32": lambda: _fold(single, num_singles),
        "float32, one at a time": lambda: _fold(single, num_singles, together=1),
        "int8": lambda: _fold(int8, num_int8, num_updates=NUM_INT8),
        "int4 of half the bytes": lambda: _fold(int4, num_codes),
        "1% of as many float32": lambda: _fold(sparse, num_singles),
        "naive float64 sum of float32": lambda: _naive(singles),
    }
    threads: dict[str, Callable[[], object]] = {
        "plain read, one thread": lambda: _read(stored, num_threads=1),
        "plain read, two threads": lambda: _read(stored, num_threads=2),
        "float32, one thread": lambda: _fold(single, num_singles),
        "float32, two threads": lambda: _fold(single, num_singles, num_threads=2),
        "int8, one thread": lambda: _fold(int8, num_int8, num_updates=NUM_INT8),
        "int8, two threads": lambda: _fold(int8, num_int8, num_updates=NUM_INT8, num_threads=2),
    }
    alone = in_turns(one_core, repetitions=REPETITIONS, clock=time.process_time)
    elapsed = in_turns(threads, repetitions=REPETITIONS)
    plain = min(statistics.median(times) for name, times in alone.items() if name.startswith("plain"))
    return [
        *(row(f"{name}, CPU", "s", times, of=plain, ratio_of="the faster plain read") for name, times in alone.items()),
        *(
            row(name, "s", times, of=statistics.median(elapsed[f"{name.split(',')[0]}, one thread"]), ratio_of="one")
            for name, times in elapsed.items()
        ),
    ]


def _fold(
    cut: Cut, num_elements: int, *, num_updates: int = NUM_UPDATES, together: int | None = None, num_threads: int = 1
) -> None:
    """Folds whole windows, which threads take as they come."""
    begins = iter(range(0, num_elements - WINDOW + 1, WINDOW))
    work = cut, begins, num_updates, together or num_updates
    threads = [threading.Thread(target=_fold_windows, args=work) for _ in range(num_threads - 1)]
    for thread in threads:
        thread.start()
    _fold_windows(*work)
    for thread in threads:
        thread.join()


def _read(stored: NDArray[np.uint8], *, num_threads: int) -> None:
    """Reads everything once: what the memory gives so many threads together is the most that any fold can have."""
    parts = np.split(stored.view(np.int64), num_threads)
    threads = [threading.Thread(target=np.bitwise_or.reduce, args=(part,)) for part in parts[1:]]
    for thread in threads:
        thread.start()
    np.bitwise_or.reduce(parts[0])
    for thread in threads:
        thread.join()


def _fold_windows(cut: Cut, begins: Iterator[int], num_updates: int, together: int) -> None:
    accumulator = np.zeros(WINDOW, dtype=np.int64)
    for begin in begins:
        for first in range(0, num_updates, together):
            updates = [cut(update, begin, begin + WINDOW) for update in range(first, first + together)]
            exact_sum.fold_all(accumulator, updates, weights=[WEIGHT] * together, shift=SHIFT)


def _naive(singles: NDArray[np.float32]) -> None:
    total = np.zeros(WINDOW)
    for update in singles:
        for begin in range(0, update.size - WINDOW + 1, WINDOW):
            np.add(total, update[begin : begin + WINDOW] * np.float64(WEIGHT), out=total)
