"""The blobs table, and blobs as chunks in the database, each blob's of one size.

A blob of one write is written in the very transaction that names it. A larger one is written ahead, some chunks a
transaction, and is an orphan until a transaction seals it; orphans are swept.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.storage.blobs.uploads import BlobCorruptError, BlobUpload
from aggregator_service.storage.rows import StaleRowError, change_one
from aggregator_service.storage.tables import blob_chunks, blobs
from aggregator_service.storage.transactions import ReadTx, WriteTx

DATABASE: Final = "database"
"""What a blob's row says where its bytes are chunks in the database; else it says the URL of a store."""

REMOVED: Final = "removed"
"""What it says once its bytes are gone, and rows go on naming it."""

_STATEMENT_NUM_BYTES: Final = 1 << 20

_INSERT_BLOB: Final = sa.insert(blobs)
_INSERT_CHUNK: Final = sa.insert(blob_chunks)
_SEAL: Final = (
    sa.update(blobs)
    .where(blobs.c.blob_id == sa.bindparam("of_blob"))
    .values(
        sealed=True,
        resumable=False,
        num_bytes=sa.bindparam("total"),
        chunk_num_bytes=sa.bindparam("size"),
        checksums=sa.bindparam("sums"),
    )
)
_FORGET_CHUNKS: Final = sa.delete(blob_chunks).where(
    blob_chunks.c.blob_id == sa.bindparam("of_blob"), blob_chunks.c.number >= sa.bindparam("first")
)
_PLACE: Final = sa.select(blobs.c.store, blobs.c.num_bytes, blobs.c.chunk_num_bytes, blobs.c.sealed, blobs.c.checksums)
_FIND: Final = _PLACE.where(blobs.c.blob_id == sa.bindparam("blob_id"))
_READ: Final = (
    _PLACE.add_columns(
        blob_chunks.c.number,
        blob_chunks.c.checksum,
        blob_chunks.c.data,
    )
    .select_from(
        blobs.outerjoin(
            blob_chunks,
            sa.and_(
                blob_chunks.c.blob_id == blobs.c.blob_id,
                blob_chunks.c.number.between(
                    sa.bindparam("first_byte", type_=sa.BigInteger) // blobs.c.chunk_num_bytes,
                    sa.bindparam("last_byte", type_=sa.BigInteger) // blobs.c.chunk_num_bytes,
                ),
            ),
        )
    )
    .where(blobs.c.blob_id == sa.bindparam("blob_id"))
    .order_by(blob_chunks.c.number)
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a blob's bytes are and how many are durable; `checksums`: 8 bytes for each chunk outside the database."""

    store: str
    num_bytes: int
    chunk_num_bytes: int
    sealed: bool
    checksums: bytes

    def numbers(self, begin: int, end: int) -> range:
        """Gives the numbers of the chunks that hold the bytes [begin, end), as far as a sealed blob goes."""
        return parts(begin, min(end, self.num_bytes) if self.sealed else end, size=self.chunk_num_bytes)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Whole chunks that follow each other, from byte `begin` of their blob on."""

    begin: int
    chunks: Sequence[bytes]


def insert(tx: WriteTx, uploads: Sequence[BlobUpload], *, store: str, sealed: bool = False) -> None:
    """Adds the rows of blobs that are begun, or of database blobs that are written whole."""
    values = [
        {
            "blob_id": upload.blob_id,
            "num_bytes": upload.num_bytes if sealed else 0,
            "chunk_num_bytes": upload.chunk_num_bytes,
            "sealed": sealed,
            "created_at": tx.now(),
            "store": store,
            "resumable": upload.is_resumable,
        }
        for upload in uploads
    ]
    tx.connection.execute(_INSERT_BLOB, values)


def mark_sealed(tx: WriteTx, uploads: Iterable[BlobUpload]) -> None:
    """Makes each begun upload a blob."""
    values = [
        {
            "of_blob": upload.blob_id,
            "total": upload.num_bytes,
            # The row of a file may have stood before anybody knew what it would hold.
            "size": upload.chunk_num_bytes,
            "sums": _checksums(upload),
        }
        for upload in uploads
    ]
    if values:
        tx.connection.execute(_SEAL, values)


def lock_reserved(tx: WriteTx, upload: BlobUpload) -> None:
    """Keeps a reserved blob from being removed until the transaction ends; raises StaleRowError if it was."""
    row = sa.select(blobs.c.blob_id).where(blobs.c.blob_id == upload.blob_id, blobs.c.sealed.is_(False))
    if tx.connection.execute(row.with_for_update()).first() is None:
        raise StaleRowError(f"blob {upload.blob_id} is gone")


def note_durable(tx: WriteTx, upload: BlobUpload) -> None:
    """Notes how many bytes of a resumable upload are durable, so that it can go on after a restart."""
    change_one(
        tx,
        sa.update(blobs)
        .where(blobs.c.blob_id == upload.blob_id, blobs.c.sealed.is_(False))
        .values(num_bytes=upload.num_bytes, checksums=_checksums(upload)),
    )


def _checksums(upload: BlobUpload) -> bytes | None:
    return bytes(upload.checksums) + upload.last_checksums or None


def write(tx: WriteTx, uploads: Sequence[BlobUpload], *, last: bool) -> None:
    """Writes chunks, at most 1 MiB of them a statement: drivers hold several copies of what a statement carries."""
    for upload in uploads:
        if upload.is_resumable:
            # The last chunk may have been written before it was full.
            tx.connection.execute(_FORGET_CHUNKS, {"of_blob": upload.blob_id, "first": upload.num_written})
    values: list[dict[str, Any]] = []
    room = _STATEMENT_NUM_BYTES
    for upload in uploads:
        for number, data in upload.pieces(last=last):
            if values and room < len(data):
                tx.connection.execute(_INSERT_CHUNK, values)
                values, room = [], _STATEMENT_NUM_BYTES
            values.append({"blob_id": upload.blob_id, "number": number, "checksum": zlib.crc32(data), "data": data})
            room -= len(data)
    if values:
        tx.connection.execute(_INSERT_CHUNK, values)


def orphans(tx: ReadTx, older_than: datetime) -> Sequence[str]:
    """Gives up to 100 blobs that were never sealed and were begun before a given instant."""
    query = (
        sa.select(blobs.c.blob_id)
        .where(blobs.c.sealed.is_(False), blobs.c.resumable.is_(False), blobs.c.created_at < older_than)
        .limit(100)
    )
    return tx.connection.execute(query).scalars().all()


def parts(begin: int, end: int, *, size: int) -> range:
    """Gives the numbers of the parts of such a size that hold the bytes [begin, end)."""
    return range(begin // size, (end - 1) // size + 1) if begin < end else range(0)


def place(tx: ReadTx, blob_id: str) -> Place | None:
    """Tells where a blob's bytes are; None if there is no such blob."""
    row = tx.connection.execute(_FIND, {"blob_id": blob_id}).first()
    return None if row is None else _place(row)


def place_of(upload: BlobUpload) -> Place:
    """Gives what `place` will tell once the transaction that seals an upload is committed."""
    return Place(
        upload.store or DATABASE,
        upload.num_bytes,
        upload.chunk_num_bytes,
        sealed=True,
        checksums=_checksums(upload) or b"",
    )


def _place(row: sa.Row[*tuple[Any, ...]]) -> Place:
    return Place(row.store, row.num_bytes, row.chunk_num_bytes, row.sealed, row.checksums or b"")


def read(tx: ReadTx, *, blob_id: str, begin: int, end: int) -> Stretch | Place:
    """Reads the chunks that hold the bytes [begin, end), as far as the blob goes, and checks each.

    Tells where they are if the database does not hold them.
    """
    rows = tx.connection.execute(_READ, {"blob_id": blob_id, "first_byte": begin, "last_byte": end - 1}).all()
    if not rows:
        raise BlobCorruptError(f"there is no blob {blob_id}")
    place = _place(rows[0])
    if place.store == REMOVED:
        raise BlobCorruptError(f"the bytes of blob {blob_id} were removed")
    if place.store != DATABASE:
        return place
    found = {row.number: row.data for row in rows if row.data is not None and zlib.crc32(row.data) == row.checksum}
    numbers = place.numbers(begin, end)
    if not numbers:
        raise BlobCorruptError(f"blob {blob_id} ends before byte {begin}")
    for number in numbers:
        if number not in found:
            raise not_as_written(blob_id, number)
    return Stretch(numbers.start * place.chunk_num_bytes, [found[number] for number in numbers])


def not_as_written(blob_id: str, number: int) -> BlobCorruptError:
    """Gives the error of a chunk that is missing or damaged."""
    return BlobCorruptError(f"chunk {number} of blob {blob_id} is not what was written")


def cut(found: Stretch, begin: int, end: int, *, blob_id: str) -> bytes:
    """Gives the bytes [begin, end) of a blob from the chunks that hold them."""
    if len(found.chunks) == 1:
        return part(found.chunks[0], found.begin, begin, end, blob_id=blob_id)
    *others, last = found.chunks
    last_begin = found.begin + sum(map(len, others))
    first = memoryview(others[0])[begin - found.begin :]
    data = b"".join([first, *others[1:], memoryview(last)[: end - last_begin]])
    return part(data, begin, begin, end, blob_id=blob_id)


def part(data: bytes, at: int, begin: int, end: int, *, blob_id: str) -> bytes:
    """Gives the bytes [begin, end) of a blob from those from `at` on; raises BlobCorruptError if some are missing."""
    data = data[begin - at : end - at]
    if len(data) != end - begin:
        raise BlobCorruptError(f"blob {blob_id} holds {len(data)} of the {end - begin} bytes from {begin}")
    return data
