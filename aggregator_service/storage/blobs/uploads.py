"""A blob that is being written: what was taken and is not durable yet, and how much of it is."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

CHUNK_NUM_BYTES: Final = 1 << 20
CHUNKS_A_WRITE: Final = 4
_SMALLEST_CHUNK_NUM_BYTES: Final = 64 << 10
_CHUNKS_OF_ONE_OF_MANY: Final = 64
_KEPT_AS_IT_IS_NUM_BYTES: Final = 64 << 10
"""Shorter pieces are gathered: each object costs some dozen bytes of its own."""


class BlobCorruptError(Exception):
    """Stored bytes are missing or are not what was written."""


@dataclass(slots=True)
class BlobUpload:
    """Collects bytes until `chunks_a_write` chunks are full; what `Blobs` writes of them is noted here.

    Every chunk but the last has `chunk_num_bytes`, for as long as the blob exists.

    `num_written` counts the chunks that are durable and forgotten, `num_durable` the bytes that are durable, some of
    which may stay here because more of their chunk will follow. `checksums` are those of the forgotten chunks where a
    file or an object holds them, `last_checksums` those of what was left when the upload was finished.
    """

    blob_id: str
    chunks_a_write: int = CHUNKS_A_WRITE
    chunk_num_bytes: int = CHUNK_NUM_BYTES
    num_bytes: int = 0
    num_written: int = 0
    num_durable: int = 0
    store: str | None = None
    is_resumable: bool = False
    is_discarded: bool = False
    checksums: bytearray = field(default_factory=bytearray)
    last_checksums: bytes = b""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _tail: list[bytes | bytearray] = field(default_factory=list, repr=False)
    _tail_num_bytes: int = 0

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Takes the next bytes; when `is_due`, a write must follow before more is taken.

        Long pieces that cannot change are kept as they are, without a copy.
        """
        if isinstance(data, bytes) and len(data) >= _KEPT_AS_IT_IS_NUM_BYTES:
            self._tail.append(data)
        elif self._tail and isinstance(last := self._tail[-1], bytearray):
            last += data
        else:
            self._tail.append(bytearray(data))
        self._tail_num_bytes += len(data)
        self.num_bytes += len(data)

    @property
    def is_begun(self) -> bool:
        """Tells whether a row may exist that says where its bytes are."""
        return self.store is not None

    @property
    def is_due(self) -> bool:
        """Tells whether enough has been collected to be worth a write."""
        return self._tail_num_bytes >= self.chunks_a_write * self.chunk_num_bytes

    def num_collected(self, *, last: bool, unit: int | None = None) -> int:
        """Gives how many of the collected bytes are written now: whole units (chunks), or all of them at the end."""
        unit = unit or self.chunk_num_bytes
        return self._tail_num_bytes if last else self._tail_num_bytes // unit * unit

    def collected(self, begin: int, end: int) -> list[memoryview]:
        """Gives a stretch of the collected bytes as they lie in memory; must be let go before more is appended."""
        found = []
        for part in self._tail:
            if begin < len(part) and end > 0:
                found.append(memoryview(part)[max(begin, 0) : end])
            begin, end = begin - len(part), end - len(part)
        return found

    def pieces(self, *, last: bool) -> Iterator[tuple[int, bytes]]:
        """Gives the chunks to be written now, by number; only the last may be short."""
        end, size = self.num_collected(last=last), self.chunk_num_bytes
        for number, begin in enumerate(range(0, end, size), start=self.num_written):
            yield number, b"".join(self.collected(begin, min(end, begin + size)))

    def written(self, *, unit: int | None = None) -> None:
        """Forgets the full units (chunks), which are now durable."""
        full = self.num_collected(last=False, unit=unit)
        if full:
            # A copy: a part that is kept for its end would be kept whole.
            self._tail = [bytearray(b"".join(self.collected(full, self._tail_num_bytes)))]
            self._tail_num_bytes -= full
        self.num_written += full // self.chunk_num_bytes
        self.num_durable = max(self.num_durable, self.num_written * self.chunk_num_bytes)


def one_of_many(blob_id: str, *, num_bytes: int) -> BlobUpload:
    """Gives an upload for a blob of so many bytes that comes together with a hundred of its kind.

    Each holds a sixty-fourth of its bytes in memory, as far as that is between 64 KiB and 1 MiB: all of them together
    hold what one or two have.
    """
    size = 1 << max(num_bytes // _CHUNKS_OF_ONE_OF_MANY - 1, 0).bit_length()
    size = min(max(size, _SMALLEST_CHUNK_NUM_BYTES), CHUNK_NUM_BYTES)
    return BlobUpload(blob_id, chunks_a_write=1, chunk_num_bytes=size)
