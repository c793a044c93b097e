"""Times Flower's own aggregation functions, in a process of the environment that `make bench-peers` makes."""

import os
import subprocess
from typing import Final

from benchmarks.peers.environments import PYTHONS

PYTHON: Final = PYTHONS["Flower"]
"""The interpreter of an environment that has `flwr`."""

# Runs where nothing but Flower and numpy is installed. Makes the same arrays as the benchmark, one layer a client.
_WORK: Final = """
import sys, time
import numpy as np
from importlib.metadata import version
from flwr.server.strategy.aggregate import aggregate_krum, aggregate_median, aggregate_trimmed_avg
number, size, trimmed, byzantine = map(int, sys.argv[1:])
source = np.random.default_rng(0)
results = [([source.standard_normal(size, dtype=np.float32) * np.float32(0.01)], 1) for _ in range(number)]
work = {
    "median": lambda: aggregate_median(results),
    "trimmed mean": lambda: aggregate_trimmed_avg(results, trimmed / number),
    "krum": lambda: aggregate_krum(results, byzantine, 0),
}
for name, run in work.items():
    run()
    begin = time.process_time()
    run()
    print(version("flwr"), time.process_time() - begin, name, flush=True)
"""


def is_installed() -> bool:
    """Tells whether there is such an environment."""
    return PYTHON.exists()


def measure(
    *, num_updates: int, num_elements: int, num_trimmed: int, num_byzantine: int
) -> tuple[str, dict[str, float]]:
    """Gives Flower's version, and each function's seconds of the processor when it ran again, with one BLAS thread."""
    sizes = map(str, (num_updates, num_elements, num_trimmed, num_byzantine))
    answer = subprocess.run(
        [str(PYTHON), "-c", _WORK, *sizes],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = [line.split(maxsplit=2) for line in answer.stdout.splitlines()]
    return lines[0][0], {name: float(seconds) for _, seconds, name in lines}
