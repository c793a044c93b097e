"""How far bodies are read ahead of whoever takes them: all connections of a process share one bound.

uvicorn reads 256 KB at a time and stops behind 64 KiB, for each connection by itself: of a hundred clients that send at
once, 32 MB would lie in memory before the application has seen any of it. What is not read waits in the kernel's
buffers, and then at the sender. Short bodies are read whole as long as they have room together: each stop costs a turn
of the event loop, and most updates are short.
"""

import asyncio
from typing import Final, Protocol

_READ_AHEAD_NUM_BYTES: Final = 4 << 20
_MOST_AT_ONCE: Final = 256 << 10
_LEAST_AT_ONCE: Final = 16 << 10
_PARTS: Final = 4
_SHORT_NUM_BYTES: Final = 1 << 20
_SHORT_TOGETHER_NUM_BYTES: Final = 16 << 20


class Arrivals:
    """Counts the bodies that are arriving, and gives each of them its share of what may be read ahead.

    Its buffer takes one read at a time: whoever got it has taken what it wants before anybody else is given it.
    """

    def __init__(self) -> None:
        self._num_bodies = 0
        self._num_kept = 0
        self._buffer = memoryview(bytearray(_SHORT_NUM_BYTES))

    def keep(self, num_bytes: int) -> bool:
        """Makes room for all of a body until `forget`, if it is short and there is room for it."""
        is_kept = num_bytes <= min(_SHORT_NUM_BYTES, _SHORT_TOGETHER_NUM_BYTES - self._num_kept)
        self._num_kept += num_bytes if is_kept else 0
        return is_kept

    def forget(self, num_bytes: int) -> None:
        """Frees the room of a body that was kept and has been answered."""
        self._num_kept -= num_bytes

    def begin(self) -> None:
        """Counts one more body that shares what is read ahead."""
        self._num_bodies += 1

    def end(self) -> None:
        """Counts one body less."""
        self._num_bodies -= 1

    def room(self, *, is_begun: bool) -> int:
        """Gives how many bytes the next read may have, of a body that is begun or of what may be a head.

        It is 256 KiB for up to 16 bodies, and never less than 4 KiB. What begins is not counted yet: where there are
        many already, it shows itself in a quarter.
        """
        share = self._share()
        return share if is_begun or share == _MOST_AT_ONCE else share // _PARTS

    def is_much(self, num_bytes: int) -> bool:
        """Tells whether so many bytes of one body wait that no more of it is read: more than a quarter of a read."""
        return num_bytes > self._share() // _PARTS

    def _share(self) -> int:
        return min(max(_READ_AHEAD_NUM_BYTES // max(self._num_bodies, 1), _LEAST_AT_ONCE), _MOST_AT_ONCE)

    def buffer(self, num_bytes: int) -> memoryview:
        """Gives room for one read of so many bytes."""
        return self._buffer[:num_bytes]


class Reader(Protocol):
    """A connection's protocol, of which each read asks how much it may be."""

    def room(self) -> int:
        """Gives how many bytes the next read may have, at least one."""

    def data_received(self, data: memoryview) -> None:
        """Takes what was read, and keeps no reference to it."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends."""

    def eof_received(self) -> None:
        """Takes note that the other side has finished."""

    def pause_writing(self) -> None:
        """Stops writing for a while."""

    def resume_writing(self) -> None:
        """Goes on writing."""


class BoundedReads(asyncio.BufferedProtocol):
    """Stands between a transport and a connection's protocol, so that the protocol decides how much is read."""

    __slots__ = ("_arrivals", "_reader")

    def __init__(self, reader: Reader, arrivals: Arrivals) -> None:
        self._reader = reader
        self._arrivals = arrivals

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's name for what the transport would like
        """Gives room for the next read."""
        return self._arrivals.buffer(self._reader.room())

    def buffer_updated(self, nbytes: int) -> None:
        """Passes on what was read."""
        self._reader.data_received(self._arrivals.buffer(nbytes))

    def connection_lost(self, exc: Exception | None) -> None:
        """Passes the end on."""
        self._reader.connection_lost(exc)

    def eof_received(self) -> None:
        """Passes on that the other side has finished."""
        self._reader.eof_received()

    def pause_writing(self) -> None:
        """Passes on that the other side reads too slowly."""
        self._reader.pause_writing()

    def resume_writing(self) -> None:
        """Passes on that it has caught up."""
        self._reader.resume_writing()
