"""Robust strategies beside Flower's own aggregation functions: 10 updates of 10M float32 parameters in memory.

`python -m benchmarks.peers.flower --python PATH/TO/VENV/bin/python`, where that Python has `flwr` (`make bench-peers`
makes such an environment). Each side runs in a process of its own with one BLAS thread, in turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from benchmarks import robust_strategies as ours
from benchmarks.measurements import in_turns

ROUNDS: Final = 3
GOALS: Final = {"median": 7.0, "trimmed_mean": 7.0, "krum": 6.0}

# Runs where nothing but Flower and numpy is installed. Makes the same arrays, one layer a client.
_PEER: Final = """
import sys, time
import numpy as np
from flwr.server.strategy.aggregate import aggregate_krum, aggregate_median, aggregate_trimmed_avg
number, size, trimmed, byzantine = map(int, sys.argv[1:])
source = np.random.default_rng(0)
results = [([source.standard_normal(size, dtype=np.float32) * np.float32(0.01)], 1) for _ in range(number)]
work = {
    "median": lambda: aggregate_median(results),
    "trimmed_mean": lambda: aggregate_trimmed_avg(results, trimmed / number),
    "krum": lambda: aggregate_krum(results, byzantine, 0),
}
for name, run in work.items():
    begin = time.perf_counter()
    run()
    print(name, time.perf_counter() - begin, flush=True)
"""


def _time_peer(python: Path, num_elements: int) -> dict[str, float]:
    sizes = (ours.NUM_UPDATES, num_elements, ours.NUM_TRIMMED, ours.NUM_BYZANTINE)
    answer = subprocess.run(
        [str(python), "-c", _PEER, *map(str, sizes)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {name: float(seconds) for name, seconds in (line.split() for line in answer.stdout.splitlines())}


def _time_ours(updates: ours.Updates) -> dict[str, float]:
    work = {"median": ours.run_median, "trimmed_mean": ours.run_trimmed_mean, "krum": ours.run_krum}
    measured = in_turns({name: lambda run=run: run(updates) for name, run in work.items()}, repetitions=1)
    return {name: seconds[0] for name, seconds in measured.items()}


def _version(python: Path) -> str:
    code = "from importlib.metadata import version; print(version('flwr'))"
    return subprocess.run([str(python), "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def main() -> int:
    """Prints both sides' seconds and their ratio; the exit status is 1 where a ratio is below its goal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.flower", description=str(__doc__).splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="the interpreter of an environment that has flwr")
    parser.add_argument("--elements", type=int, default=ours.NUM_ELEMENTS, help="parameters an update")
    options = parser.parse_args()
    updates = ours.make_updates(options.elements)
    rounds = [(_time_peer(options.python, options.elements), _time_ours(updates)) for _ in range(ROUNDS)]
    table = Table("strategy", f"Flower {_version(options.python)}", "FedQuorum", "ratio", "goal")
    reached = True
    for name, goal in GOALS.items():
        theirs = statistics.median(peer[name] for peer, _ in rounds)
        own = statistics.median(mine[name] for _, mine in rounds)
        reached &= theirs / own >= goal
        table.add_row(name, f"{theirs:.2f} s", f"{own:.3f} s", f"{theirs / own:.1f}", f"{goal:.0f}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    return 0 if reached else 1


if __name__ == "__main__":
    # One thread on both sides: BLAS reads this when numpy is loaded, so the process starts over.
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.peers.flower", *sys.argv[1:]])
    sys.exit(main())
