"""Synced writes to the disk: to new blocks, to freed ones, and over what is there (`python -m benchmarks disk`).

The disk of a virtual machine is often a file of its host that grows as it is written: a block's first write costs the
host a block of its own, many times what later writes cost. What is measured on blocks that were written before, as
those of a disk in use are, comes after `warm`.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.measurements import Row, row

_PIECE: Final = os.urandom(8 << 20)
_PIECES_A_PART: Final = 5
_NEW_PARTS: Final = 60
_MEASURED_PARTS: Final = 12


def measure() -> list[Row]:
    """Writes 2.5 GB, of which the last half gigabyte counts as new; the same once more, and once it was removed."""
    with tempfile.TemporaryDirectory(prefix="fedquorum-bench-") as folder:
        file = Path(folder, "file")
        new = _write(file, _NEW_PARTS)[-_MEASURED_PARTS:]
        over = _write(file, _MEASURED_PARTS)
        file.unlink()
        freed = _write(Path(folder, "next"), _MEASURED_PARTS)
    first = row("blocks written for the first time", "MB/s", new)
    rates = {"blocks of a file that was just removed": freed, "written over what is there": over}
    return [
        first,
        *(row(name, "MB/s", each, of=first.median, ratio_of="for the first time") for name, each in rates.items()),
    ]


def warm(num_bytes: int) -> None:
    """Writes so many bytes and frees them, so that what is written in the next seconds meets the same blocks."""
    with tempfile.TemporaryDirectory(prefix="fedquorum-bench-") as folder:
        _write(Path(folder, "file"), -(-num_bytes // (_PIECES_A_PART * len(_PIECE))))


def _write(file: Path, num_parts: int) -> list[float]:
    """Gives the megabytes a second of each part, of 42 MB."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_DSYNC)
    try:
        return [_megabytes_a_second(descriptor, part) for part in range(num_parts)]
    finally:
        os.close(descriptor)


def _megabytes_a_second(descriptor: int, part: int) -> float:
    begin = time.perf_counter()
    for number in range(_PIECES_A_PART):
        os.pwrite(descriptor, _PIECE, (part * _PIECES_A_PART + number) * len(_PIECE))
    return 1e-6 * _PIECES_A_PART * len(_PIECE) / (time.perf_counter() - begin)
