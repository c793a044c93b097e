"""Reads a stored blob in small pieces without fetching the same chunk again for each of them."""

from typing import Final

from aggregator_service.flow.windows import RangeReader
from aggregator_service.storage.blobs import CHUNK_NUM_BYTES

_BUDGET_NUM_BYTES: Final = 16 << 20


class ReadAhead:
    """A RangeReader that reads to the end of a chunk and keeps the rest for the next call, or as much as it may.

    Many are open at once, one an update: `num_readers` share a budget of 16 MiB. Up to 16 of them can keep the rest of
    any chunk, so that each chunk is fetched and checked once when a blob is read in order.
    """

    def __init__(self, read: RangeReader, *, num_bytes: int, num_readers: int = 1) -> None:
        self._read = read
        self._num_bytes = num_bytes
        self._most_kept = _BUDGET_NUM_BYTES // num_readers
        self._begin = 0
        self._kept = b""

    def __call__(self, begin: int, end: int) -> bytes:
        """Gives the bytes [begin, end)."""
        known = b""
        if self._begin <= begin < self._begin + len(self._kept):
            known = self._kept[begin - self._begin : end - self._begin]
        if begin + len(known) == end:
            return known
        whole = min(-(-end // CHUNK_NUM_BYTES) * CHUNK_NUM_BYTES, self._num_bytes)
        stop = max(end, min(whole, end + self._most_kept))
        fetched = memoryview(self._read(begin + len(known), stop))
        wanted = end - begin - len(known)
        self._begin, self._kept = end, bytes(fetched[wanted:])
        return b"".join((known, fetched[:wanted]))
