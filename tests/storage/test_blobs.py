"""Blobs: what was written comes back, whatever is not that is noticed, and what was never finished is swept."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
import sqlalchemy as sa

from aggregator_service.storage.blobs import BlobCorruptError, BlobUpload, DatabaseBlobs
from aggregator_service.storage.blobs.database import CHUNK_NUM_BYTES, CHUNKS_KEPT
from aggregator_service.storage.tables import blob_chunks, blobs
from aggregator_service.storage.transactions import WriteTx
from tests.support.records import later
from tests.support.store import Store

PIECES = [(begin, min(begin + CHUNK_NUM_BYTES, 5 * CHUNK_NUM_BYTES + 7)) for begin in range(0, 6 << 20, 1 << 20)]
SIZES = [0, 1, CHUNK_NUM_BYTES - 1, CHUNK_NUM_BYTES, CHUNK_NUM_BYTES + 1, 5 * CHUNK_NUM_BYTES + 7]


def pattern(size: int) -> bytes:
    """Makes bytes in which every position is recognisable."""
    return b"".join(number.to_bytes(4, "little") for number in range(size // 4 + 1))[:size]


def write(store: Store, data: bytes, blob_id: str = "blob_1", *, piece: int = 1 << 19) -> DatabaseBlobs:
    """Writes a blob as an upload does: piece by piece, ahead of the transaction that names it."""
    held, upload = DatabaseBlobs(store.transactions), BlobUpload(blob_id)
    for begin in range(0, len(data), piece):
        upload.append(data[begin : begin + piece])
        if upload.is_due:
            held.flush_blocking(upload)
    store.write(lambda tx: held.seal(tx, upload))
    return held


def begin(store: Store, blob_id: str) -> tuple[DatabaseBlobs, BlobUpload]:
    """Writes the first chunks of a blob and stops there."""
    held, upload = DatabaseBlobs(store.transactions), BlobUpload(blob_id)
    upload.append(pattern(2 * CHUNK_NUM_BYTES))
    held.flush_blocking(upload)
    return held, upload


@contextmanager
def counted_reads(store: Store) -> Iterator[list[str]]:
    """Collects the statements that read chunks from the database."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "FROM blob_chunks" in statement:
            statements.append(statement)

    engine = store.transactions.database.readers
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def counts(store: Store) -> tuple[int, int]:
    """Counts blobs and chunks."""
    return store.read(
        lambda tx: (
            tx.connection.execute(sa.select(sa.func.count()).select_from(blobs)).scalar_one(),
            tx.connection.execute(sa.select(sa.func.count()).select_from(blob_chunks)).scalar_one(),
        )
    )


@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_comes_back(store: Store, size: int) -> None:
    data = pattern(size)
    held = write(store, data)
    assert held.read_blocking("blob_1", 0, size) == data


def test_any_part_comes_back(store: Store) -> None:
    data = pattern(SIZES[-1])
    held = write(store, data)
    cuts = [0, 1, CHUNK_NUM_BYTES - 1, CHUNK_NUM_BYTES, 2 * CHUNK_NUM_BYTES + 5, SIZES[-1]]
    for first in cuts:
        for last in cuts:
            assert held.read_blocking("blob_1", first, last) == data[first:last]


async def test_it_is_the_same_from_a_coroutine(store: Store) -> None:
    held, upload = DatabaseBlobs(store.transactions), BlobUpload("blob_1")
    upload.append(pattern(4 * CHUNK_NUM_BYTES))
    assert upload.is_due
    await held.flush(upload)
    await store.transactions.write("seal", lambda tx: held.seal(tx, upload))
    assert await held.read("blob_1", 5, 4 * CHUNK_NUM_BYTES) == pattern(4 * CHUNK_NUM_BYTES)[5:]
    await anyio.lowlevel.checkpoint()


async def test_clients_that_pull_together_cost_one_read(store: Store) -> None:
    held = write(store, pattern(SIZES[-1]))
    pulled: list[bytes] = []

    async def pull() -> None:
        pulled.append(b"".join([await held.read("blob_1", *piece) for piece in PIECES]))

    with counted_reads(store) as reads:
        async with anyio.create_task_group() as clients:
            for _ in range(8):
                clients.start_soon(pull)
    assert pulled == [pattern(SIZES[-1])] * 8
    assert len(reads) == len(PIECES)


async def test_a_client_that_hangs_up_does_not_disturb_those_who_wait_for_the_same_bytes(store: Store) -> None:
    held = write(store, pattern(100))
    pulled: list[bytes] = []

    async def pull() -> None:
        pulled.append(await held.read("blob_1", 0, 100))

    async with anyio.create_task_group() as clients:
        leaving = anyio.CancelScope()

        async def pull_and_leave() -> None:
            with leaving:
                await pull()

        clients.start_soon(pull_and_leave)
        clients.start_soon(pull)
        await anyio.lowlevel.checkpoint()
        leaving.cancel()
    assert pulled == [pattern(100)]


async def test_what_stays_in_memory_is_bounded(store: Store) -> None:
    # The last chunks stay, whatever was read before them; one more is read again.
    held = DatabaseBlobs(store.transactions)
    for number in range(CHUNKS_KEPT + 1):
        write(store, bytes([number]), f"blob_{number}")
        await held.read(f"blob_{number}", 0, 1)
    with counted_reads(store) as reads:
        for number in range(CHUNKS_KEPT, 0, -1):
            assert await held.read(f"blob_{number}", 0, 1) == bytes([number])
        assert reads == []
        assert await held.read("blob_0", 0, 1) == b"\0"
        assert len(reads) == 1


async def test_bytes_that_could_not_be_read_are_not_remembered(store: Store) -> None:
    held = DatabaseBlobs(store.transactions)
    with pytest.raises(BlobCorruptError, match="blob_1"):
        await held.read("blob_1", 0, 1)
    write(store, b"x")
    assert await held.read("blob_1", 0, 1) == b"x"


@pytest.mark.parametrize("harm", ["flipped", "shortened", "missing", "lengthened"])
def test_bytes_that_are_not_what_was_written_are_noticed(store: Store, harm: str) -> None:
    held = write(store, pattern(SIZES[-1]))
    of_chunk = sa.and_(blob_chunks.c.blob_id == "blob_1", blob_chunks.c.number == 2)

    def spoil(tx: WriteTx) -> None:
        data = bytearray(tx.connection.execute(sa.select(blob_chunks.c.data).where(of_chunk)).scalar_one())
        if harm == "missing":
            tx.connection.execute(sa.delete(blob_chunks).where(of_chunk))
            return
        if harm == "flipped":
            data[12345] ^= 1
        spoiled = {"flipped": data, "shortened": data[:-1], "lengthened": data + b"x"}[harm]
        tx.connection.execute(sa.update(blob_chunks).where(of_chunk).values(data=bytes(spoiled)))

    store.write(spoil)
    for first, last in ((0, SIZES[-1]), (2 * CHUNK_NUM_BYTES, 2 * CHUNK_NUM_BYTES + 1)):
        with pytest.raises(BlobCorruptError, match="blob_1"):
            held.read_blocking("blob_1", first, last)
    # The other chunks are as good as they were.
    assert held.read_blocking("blob_1", 0, 100) == pattern(100)


def test_reading_behind_the_end_or_of_nothing_is_noticed(store: Store) -> None:
    held = write(store, pattern(10))
    with pytest.raises(BlobCorruptError):
        held.read_blocking("blob_1", 0, 11)
    with pytest.raises(BlobCorruptError):
        held.read_blocking("blob_2", 0, 1)


def test_a_discarded_upload_leaves_nothing(store: Store) -> None:
    held, upload = begin(store, "blob_1")
    assert counts(store) == (1, 2)
    held.discard_blocking(upload)
    assert counts(store) == (0, 0)


async def test_sweeping_removes_what_was_never_finished_and_is_old(store: Store) -> None:
    held = write(store, pattern(SIZES[-1]), "sealed")
    for number in range(3):
        begin(store, f"orphan_{number}")
    old = store.read(lambda tx: tx.connection.execute(sa.select(sa.func.max(blobs.c.created_at))).scalar_one())
    store.write(
        lambda tx: tx.connection.execute(
            sa.update(blobs).where(blobs.c.blob_id == "orphan_2").values(created_at=later(2**33))
        )
    )
    assert old is not None
    assert await held.sweep(later(2**32)) == 2
    assert await held.sweep(later(2**32)) == 0
    assert counts(store) == (2, 6 + 2)
    assert held.read_blocking("sealed", 0, SIZES[-1]) == pattern(SIZES[-1])


def test_discarding_a_blob_that_a_row_names_changes_nothing(store: Store) -> None:
    held, upload = begin(store, "blob_1")
    store.write(lambda tx: held.seal(tx, upload))
    held.discard_blocking(upload)
    assert held.read_blocking("blob_1", 0, 2 * CHUNK_NUM_BYTES) == pattern(2 * CHUNK_NUM_BYTES)


def test_a_seal_that_is_not_committed_names_nothing_and_can_be_repeated(store: Store) -> None:
    held, upload = DatabaseBlobs(store.transactions), BlobUpload("blob_1")
    upload.append(b"small")

    def fails(tx: WriteTx) -> None:
        held.seal(tx, upload)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.write(fails)
    assert counts(store) == (0, 0)
    store.write(lambda tx: held.seal(tx, upload))
    assert held.read_blocking("blob_1", 0, 5) == b"small"
