"""Noising ten million integers on one core, against a plain write of the same memory (`python -m benchmarks noise`)."""

import time
from collections.abc import Callable

import numpy as np

from aggregator_service.domain.privacy import blt
from aggregator_service.domain.privacy.blt import Participation
from benchmarks.measurements import Row, in_turns, row
from fl_protocol.privacy import noise
from fl_protocol.privacy.noise import Int64Array

NUM_ELEMENTS = 10_000_000
WINDOW = 1 << 18
REPETITIONS = 5
STDDEV = 2.0**32

KEY = bytes(range(32))
CORRELATED = blt.choose(Participation(num_rounds=500, separation=100, max_participations=5)).blt


def measure() -> list[Row]:
    """Measures a plain write, numpy's own normals, which no key protects, and the three kinds of noise, in turns."""
    totals = np.zeros(NUM_ELEMENTS, dtype=np.int64)
    normals = np.empty(NUM_ELEMENTS)
    guessable = np.random.default_rng(0)
    buffers = blt.init(CORRELATED, WINDOW)

    def gaussian(window: Int64Array, first: int) -> None:
        noise.add_lattice_gaussian(window, key=KEY, first=first, stddev=STDDEV)

    def laplace(window: Int64Array, first: int) -> None:
        noise.add_lattice_laplace(window, key=KEY, first=first, scale=STDDEV)

    def correlated(window: Int64Array, first: int) -> None:
        z = noise.gaussian(KEY, first=first, count=window.size)
        drawn, _ = blt.step(CORRELATED, z, buffers=tuple(buffer[: window.size] for buffer in buffers))
        noise.add_rounded(window, drawn, scale=STDDEV)

    work: dict[str, Callable[[], object]] = {
        "plain write": lambda: totals.fill(0),
        "numpy's standard_normal": lambda: guessable.standard_normal(out=normals),
        "Gaussian noise": lambda: _each_window(totals, gaussian),
        "Laplace noise": lambda: _each_window(totals, laplace),
        "correlated noise, 3 buffers": lambda: _each_window(totals, correlated),
    }
    seconds = in_turns(work, repetitions=REPETITIONS, clock=time.process_time)
    plain = float(np.median(seconds["plain write"]))
    return [
        row(f"{name}, 10M int64", "s", times, of=plain, ratio_of="the plain write") for name, times in seconds.items()
    ]


def _each_window(totals: Int64Array, work: Callable[[Int64Array, int], None]) -> None:
    for first in range(0, totals.size, WINDOW):
        work(totals[first : first + WINDOW], first)
