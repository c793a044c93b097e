"""Blobs as chunks of 1 MiB in the database.

A blob of one chunk is written in the very transaction that names it. A larger one is written ahead, some chunks a
transaction, and is an orphan until a transaction seals it; orphans are swept.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from async_lru import alru_cache

from aggregator_service.storage.tables import blob_chunks, blobs
from aggregator_service.storage.transactions import ReadTx, Transactions, WriteTx

CHUNK_NUM_BYTES: Final = 1 << 20
CHUNKS_A_WRITE: Final = 4
CHUNKS_KEPT: Final = 16

_INSERT_BLOB: Final = sa.insert(blobs)
_INSERT_CHUNK: Final = sa.insert(blob_chunks)
_SEAL: Final = (
    sa.update(blobs)
    .where(blobs.c.blob_id == sa.bindparam("of_blob"))
    .values(sealed=True, num_bytes=sa.bindparam("total"))
)
_READ: Final = (
    sa.select(blob_chunks.c.number, blob_chunks.c.checksum, blob_chunks.c.data)
    .where(
        blob_chunks.c.blob_id == sa.bindparam("blob_id"),
        blob_chunks.c.number.between(sa.bindparam("first"), sa.bindparam("last")),
    )
    .order_by(blob_chunks.c.number)
)


class BlobCorruptError(Exception):
    """Stored bytes are missing or are not what was written."""


@dataclass(slots=True)
class BlobUpload:
    """A blob being written: collects bytes until `chunks_a_write` chunks are full."""

    blob_id: str
    chunks_a_write: int = CHUNKS_A_WRITE
    num_bytes: int = 0
    num_written: int = 0
    _tail: bytearray = field(default_factory=bytearray)

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Takes the next bytes; when `is_due`, a write must follow before more is taken."""
        self._tail += data
        self.num_bytes += len(data)

    @property
    def is_due(self) -> bool:
        """Tells whether enough has been collected to be worth a write."""
        return len(self._tail) >= self.chunks_a_write * CHUNK_NUM_BYTES

    def pieces(self, *, last: bool) -> Iterator[tuple[int, bytes]]:
        """Gives the chunks to be written now, by number; only the last may be short."""
        number = self.num_written
        end = len(self._tail) if last else len(self._tail) // CHUNK_NUM_BYTES * CHUNK_NUM_BYTES
        for begin in range(0, end, CHUNK_NUM_BYTES):
            yield number, bytes(memoryview(self._tail)[begin : min(end, begin + CHUNK_NUM_BYTES)])
            number += 1

    def written(self) -> None:
        """Forgets the full chunks, which are now durable."""
        full = len(self._tail) // CHUNK_NUM_BYTES
        del self._tail[: full * CHUNK_NUM_BYTES]
        self.num_written += full


class DatabaseBlobs:
    """Reads and writes blobs through the same transactions as everything else."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        # Nothing of a blob changes after it is written, and the clients of a round pull the same model all at once.
        self._kept_chunk = alru_cache(maxsize=CHUNKS_KEPT)(self._chunk)

    async def flush(self, upload: BlobUpload) -> None:
        """Makes the full chunks of an upload durable."""
        await self._transactions.write("store_chunks", lambda tx: _write_ahead(tx, upload))
        upload.written()

    def flush_blocking(self, upload: BlobUpload) -> None:
        """Does the same from a worker thread."""
        self._transactions.write_blocking("store_chunks", lambda tx: _write_ahead(tx, upload))
        upload.written()

    async def discard(self, upload: BlobUpload) -> None:
        """Removes what was written of an upload that nothing will name."""
        if upload.num_written:
            await self._transactions.write("discard_blob", lambda tx: _delete(tx, upload.blob_id))

    def discard_blocking(self, upload: BlobUpload) -> None:
        """Does the same from a worker thread."""
        if upload.num_written:
            self._transactions.write_blocking("discard_blob", lambda tx: _delete(tx, upload.blob_id))

    @staticmethod
    def seal(tx: WriteTx, *uploads: BlobUpload) -> None:
        """Writes the rest of uploads and makes each a blob, in the transaction that names them."""
        fresh = [upload for upload in uploads if upload.num_written == 0]
        if fresh:
            _insert_blobs(tx, fresh, sealed=True)
        for upload in uploads:
            if upload.num_written:
                tx.connection.execute(_SEAL, {"of_blob": upload.blob_id, "total": upload.num_bytes})
        _insert_chunks(tx, uploads, last=True)

    @staticmethod
    def read_in(tx: ReadTx, blob_id: str, begin: int, end: int) -> bytes:
        """Gives the bytes [begin, end) within a transaction, which may have sealed the blob itself."""
        chunks = _read(tx, blob_id=blob_id, numbers=_chunk_range(begin, end))
        return _cut(chunks, begin, end, blob_id=blob_id)

    async def read(self, blob_id: str, begin: int, end: int) -> bytes:
        """Gives the bytes [begin, end); raises BlobCorruptError when they are not what was written.

        Chunks that were read last stay in memory, 16 MiB of them; who asks for one that is being read waits for it.
        """
        chunks = [await self._kept_chunk(blob_id, number) for number in _chunk_range(begin, end)]
        return _cut(chunks, begin, end, blob_id=blob_id)

    def read_blocking(self, blob_id: str, begin: int, end: int) -> bytes:
        """Does the same from a worker thread, for bytes that are read once: it keeps none."""
        body = partial(_read, blob_id=blob_id, numbers=_chunk_range(begin, end))
        return _cut(self._transactions.read_one_blocking("read_blob", body), begin, end, blob_id=blob_id)

    async def _chunk(self, blob_id: str, number: int) -> bytes:
        body = partial(_read, blob_id=blob_id, numbers=range(number, number + 1))
        return (await self._transactions.read_one("read_blob", body))[0]

    async def sweep(self, older_than: datetime) -> int:
        """Removes blobs that were never sealed and were begun before a given instant; gives their number."""
        return await self._transactions.write("sweep_blobs", lambda tx: _sweep(tx, older_than))


def _write_ahead(tx: WriteTx, upload: BlobUpload) -> None:
    if upload.num_written == 0:
        _insert_blobs(tx, [upload], sealed=False)
    _insert_chunks(tx, [upload], last=False)


def _insert_blobs(tx: WriteTx, uploads: Sequence[BlobUpload], *, sealed: bool) -> None:
    values = [
        {
            "blob_id": upload.blob_id,
            "num_bytes": upload.num_bytes if sealed else 0,
            "chunk_num_bytes": CHUNK_NUM_BYTES,
            "sealed": sealed,
            "created_at": tx.now(),
        }
        for upload in uploads
    ]
    tx.connection.execute(_INSERT_BLOB, values)


def _insert_chunks(tx: WriteTx, uploads: Sequence[BlobUpload], *, last: bool) -> None:
    """Writes chunks, at most 4 MiB of them a statement: drivers hold several copies of what a statement carries."""
    values: list[dict[str, Any]] = []
    room = CHUNKS_A_WRITE * CHUNK_NUM_BYTES
    for upload in uploads:
        for number, data in upload.pieces(last=last):
            if values and room < len(data):
                tx.connection.execute(_INSERT_CHUNK, values)
                values, room = [], CHUNKS_A_WRITE * CHUNK_NUM_BYTES
            values.append({"blob_id": upload.blob_id, "number": number, "checksum": zlib.crc32(data), "data": data})
            room -= len(data)
    if values:
        tx.connection.execute(_INSERT_CHUNK, values)


def _delete(tx: WriteTx, blob_id: str) -> None:
    tx.connection.execute(sa.delete(blobs).where(blobs.c.blob_id == blob_id, blobs.c.sealed.is_(False)))


def _sweep(tx: WriteTx, older_than: datetime) -> int:
    orphans = sa.select(blobs.c.blob_id).where(blobs.c.sealed.is_(False), blobs.c.created_at < older_than).limit(100)
    found = tx.connection.execute(orphans).scalars().all()
    for blob_id in found:
        _delete(tx, blob_id)
    return len(found)


def _chunk_range(begin: int, end: int) -> range:
    """Gives the numbers of the chunks that hold the bytes [begin, end)."""
    return range(begin // CHUNK_NUM_BYTES, (end - 1) // CHUNK_NUM_BYTES + 1) if begin < end else range(0)


def _read(tx: ReadTx, *, blob_id: str, numbers: range) -> list[bytes]:
    """Reads whole chunks and checks each."""
    if not numbers:
        return []
    rows = tx.connection.execute(_READ, {"blob_id": blob_id, "first": numbers[0], "last": numbers[-1]}).all()
    found = {row.number: row.data for row in rows if zlib.crc32(row.data) == row.checksum}
    for number in numbers:
        if number not in found:
            raise BlobCorruptError(f"chunk {number} of blob {blob_id} is not what was written")
    return [found[number] for number in numbers]


def _cut(chunks: Sequence[bytes], begin: int, end: int, *, blob_id: str) -> bytes:
    """Gives the bytes [begin, end) of a blob from the chunks that hold them."""
    if not chunks:
        return b""
    first, last = begin % CHUNK_NUM_BYTES, (end - 1) % CHUNK_NUM_BYTES + 1
    if len(chunks) == 1:
        data = chunks[0][first:last]
    else:
        data = b"".join([memoryview(chunks[0])[first:], *chunks[1:-1], memoryview(chunks[-1])[:last]])
    if len(data) != end - begin:
        raise BlobCorruptError(f"blob {blob_id} holds {len(data)} of the {end - begin} bytes from {begin}")
    return data
