"""`python -m benchmarks [NAME ...]` measures and prints tables; with no name, everything that takes seconds."""

import argparse
import importlib
import os
import sys
import time

from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.measurements import Row

NAMES = (
    "disk",
    "fold",
    "masks",
    "noise",
    "sessions",
    "upload",
    "download",
    "small_updates",
    "whole_round",
    "long_polls",
)
LONGER = ("beside_peers", "eager", "robust_strategies", "sessions_under_load")
"""Those that only run when they are named."""


def main() -> int:
    """Runs the benchmarks that were named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures FedQuorum on this machine.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (these by default), {', '.join(LONGER)}"
    )
    parser.add_argument("--save", action="store_true", help="write tables and plots into docs/benchmarks.md, too")
    given = parser.parse_args()
    names = given.names or list(NAMES)
    if unknown := sorted(set(names) - {*NAMES, *LONGER}):
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join((*NAMES, *LONGER))}")
    # What is compared runs on one core; numpy's BLAS reads this when a benchmark first imports numpy.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    console = Console(width=None if sys.stdout.isatty() else 150)
    load = " ".join(f"{average:.2f}" for average in os.getloadavg())
    console.print(f"{os.cpu_count()} cores; load before the first benchmark: {load}", highlight=False)
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        begin = time.monotonic()
        rows = module.measure()
        console.print(_table(name, str(module.__doc__).splitlines()[0], rows))
        if given.save:
            report.save(name, rows, load=load)
        console.print(f"python -m benchmarks {name}: {time.monotonic() - begin:.0f} s\n", highlight=False)
    return 0


def _table(name: str, caption: str, rows: list[Row]) -> Table:
    table = Table("measured", "unit", title=f"{name}: {caption}", title_justify="left")
    for heading in ("median", "low", "high", "ratio"):
        table.add_column(heading, justify="right")
    table.add_column("of what")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        figures = (report.figure(value) for value in (row.median, row.low, row.high))
        table.add_row(row.name, row.unit, *figures, ratio, row.ratio_of)
    return table


if __name__ == "__main__":
    sys.exit(main())
