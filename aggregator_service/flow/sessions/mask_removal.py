"""Takes the masks off a session's sum, on several cores where there is enough to do.

Other processes add up their share of the masks of a window while this one reads the window's inputs.
"""

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, Final

import numpy as np
import structlog

from aggregator_service import mask_process
from fl_protocol.masking.prg import Mask, remove_masks
from fl_protocol.masking.ring import Words

WORTH_BYTES: Final = 8 << 30
"""A process is started for each so many bytes of mask, some two seconds of a core: it takes half a second to start."""

ANSWER_SECONDS: Final = 60.0
"""How long a window's sum of masks may take before the process is given up and its masks are taken off here."""

_log = structlog.get_logger()


@dataclass(slots=True)
class _Process:
    """A process with its share of the masks."""

    masks: Sequence[Mask]
    process: "subprocess.Popen[bytes]"

    def tell(self, message: bytes) -> None:
        """Sends a message; one that has died is found out when its answer is read."""
        try:
            _pipe(self.process.stdin).write(message)
            _pipe(self.process.stdin).flush()
        except OSError:
            self.process.kill()

    def read(self, count: int, dtype: "np.dtype[np.unsignedinteger]") -> Words | None:
        """Reads the words that were asked for; None if the process is gone, or does not answer in time."""
        data = _read(_pipe(self.process.stdout), count * dtype.itemsize, seconds=ANSWER_SECONDS)
        return np.frombuffer(data, dtype=dtype) if len(data) == count * dtype.itemsize else None


@dataclass(slots=True)
class MaskRemoval:
    """The masks of one sum: those that this process takes off, and those that others do."""

    own: Sequence[Mask]
    processes: list[_Process] = field(default_factory=list)

    def ask(self, first: int, count: int) -> None:
        """Has the others begin with a window; its sum is given to `remove` next."""
        for each in self.processes:
            each.tell(mask_process.ask(first, count))

    def remove(self, sums: Words, *, first: int) -> None:
        """Takes all masks off a window of the sum, in place."""
        remove_masks(sums, self.own, first=first)
        for each in list(self.processes):
            added = each.read(sums.size, sums.dtype)
            if added is not None:
                np.subtract(sums, added, out=sums)
                continue
            _log.warning("mask_process_lost", pid=each.process.pid)
            each.process.kill()
            self.processes.remove(each)
            self.own = [*self.own, *each.masks]
            remove_masks(sums, each.masks, first=first)


@contextmanager
def mask_removal(masks: Sequence[Mask], *, num_elements: int, word_bytes: int) -> Iterator[MaskRemoval]:
    """Gives what takes masks off; the processes that were started for it end with the block."""
    num_bytes = len(masks) * num_elements * word_bytes
    count = min(num_cores() - 1, num_bytes // WORTH_BYTES, len(masks) - 1)
    if count <= 0:
        yield MaskRemoval(masks)
        return
    with ExitStack() as stack:
        own, *shares = (masks[number :: count + 1] for number in range(count + 1))
        yield MaskRemoval(own, [_start(share, stack, word_bytes=word_bytes) for share in shares])


def num_cores() -> int:
    """Gives how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(masks: Sequence[Mask], stack: ExitStack, *, word_bytes: int) -> _Process:
    # The server's settings, the operator's token among them, are none of its business; nor are signals of a terminal.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FEDQUORUM_")}
    process = subprocess.Popen(  # noqa: S603 - this very package
        [sys.executable, "-m", mask_process.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=environment,
        start_new_session=True,
    )
    stack.callback(_end, process)
    started = _Process(masks, process)
    started.tell(mask_process.begin(masks, word_bytes=word_bytes))
    return started


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()


def _read(pipe: IO[bytes], num_bytes: int, *, seconds: float) -> bytearray:
    """Reads so many bytes, or fewer if the pipe is closed or the time is over."""
    data, deadline = bytearray(), time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(data) < num_bytes and selector.select(deadline - time.monotonic()):
            piece = os.read(pipe.fileno(), num_bytes - len(data))
            if not piece:
                break
            data += piece
    return data


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("the process was started without pipes")
    return pipe
