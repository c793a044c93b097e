"""What a benchmark gives back, and how work is measured in turns."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement: the median of its repetitions, their smallest and largest, and the median's ratio to another."""

    name: str
    unit: str
    median: float
    low: float
    high: float
    ratio: float | None = None
    ratio_of: str = ""


def row(name: str, unit: str, values: Sequence[float], *, of: float | None = None, ratio_of: str = "") -> Row:
    """Makes a row of repetitions; `of` is what the ratio divides by, in the same unit."""
    median = statistics.median(values)
    return Row(
        name=name,
        unit=unit,
        median=median,
        low=min(values),
        high=max(values),
        ratio=None if of is None else median / of,
        ratio_of=ratio_of,
    )


def in_turns(
    work: Mapping[str, Callable[[], object]], *, repetitions: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Runs each piece of work once untimed, then all of them so many times in turns; gives the seconds each took.

    Taking turns lets whatever else the machine does fall on all of them alike. `clock` gives seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for run in work.values():
        run()
    for _ in range(repetitions):
        for name, run in work.items():
            begin = clock()
            run()
            seconds[name].append(clock() - begin)
    return seconds
