"""Blobs: what was written comes back, whatever is not that is noticed, and what was never finished is swept."""

import itertools
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anyio
import obstore
import pytest
import sqlalchemy as sa
from obstore.store import from_url

from aggregator_service.storage.blobs import (
    CHUNK_NUM_BYTES,
    BlobCorruptError,
    Blobs,
    BlobUpload,
    one_of_many,
    open_store,
    remove_blobs,
)
from aggregator_service.storage.blobs.blobs import PIECE_NUM_BYTES, PIECES_KEPT
from aggregator_service.storage.rows import StaleRowError
from aggregator_service.storage.tables import blob_chunks, blob_deletions, blobs
from aggregator_service.storage.transactions import WriteTx
from tests.support.object_server import BUCKET
from tests.support.records import later
from tests.support.store import Store

SMALL_CHUNK = 64 << 10
PIECES = [(begin, min(begin + CHUNK_NUM_BYTES, 5 * CHUNK_NUM_BYTES + 7)) for begin in range(0, 6 << 20, 1 << 20)]
SIZES = [0, 1, CHUNK_NUM_BYTES - 1, CHUNK_NUM_BYTES, CHUNK_NUM_BYTES + 1, 5 * CHUNK_NUM_BYTES + 7]

pytestmark = pytest.mark.parametrize(
    ("database_url", "place"),
    [
        ("sqlite", "database"),
        ("postgres", "database"),
        ("sqlite", "file"),
        pytest.param("sqlite", "s3", marks=pytest.mark.soak),
    ],
    indirect=True,
)


class Outside(Protocol):
    """Bytes outside the database, as somebody with access to the store itself sees and harms them."""

    url: str

    def names(self) -> list[str]:
        """Names every file or object."""

    def change(self, how: Callable[[bytes], bytes]) -> None:
        """Changes the bytes of the only one."""


class Files:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"file://{folder}"

    def names(self) -> list[str]:
        return [str(path) for path in self.folder.rglob("*") if path.is_file()]

    def change(self, how: Callable[[bytes], bytes]) -> None:
        (name,) = self.names()
        Path(name).write_bytes(how(Path(name).read_bytes()))


class Objects:
    """A prefix in a bucket."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._store = from_url(url, client_options={"allow_http": True})

    def names(self) -> list[str]:
        return [meta["path"] for listed in obstore.list(self._store) for meta in listed]

    def change(self, how: Callable[[bytes], bytes]) -> None:
        (name,) = self.names()
        data = how(bytes(obstore.get(self._store, name).bytes()))
        obstore.put(self._store, name, data, use_multipart=False)


@dataclass
class Held:
    """Blobs on one store, with the database that names them; `outside` is what lies outside it, if anything does."""

    store: Store
    blobs: Blobs
    outside: "Outside | None"

    def begin(self, blob_id: str) -> BlobUpload:
        """Writes the first chunks of a blob and stops there."""
        upload = BlobUpload(blob_id)
        upload.append(pattern(2 * CHUNK_NUM_BYTES))
        if self.outside is None:
            self.blobs.flush_blocking(upload)
        else:
            self.blobs.finish_blocking(upload)
        return upload

    def write(
        self, data: bytes, blob_id: str = "blob_1", *, piece: int = 1 << 19, upload: BlobUpload | None = None
    ) -> None:
        """Writes a blob as an upload does: piece by piece, ahead of the transaction that names it."""
        upload = upload or BlobUpload(blob_id)
        for begin in range(0, len(data), piece):
            upload.append(data[begin : begin + piece])
            if upload.is_due:
                self.blobs.flush_blocking(upload)
        self.blobs.finish_blocking(upload)
        self.store.write(lambda tx: self.blobs.seal(tx, upload))

    def counts(self) -> tuple[int, int]:
        """Counts blobs, and what holds their bytes: chunks, or files."""
        num_blobs = self.count(blobs)
        return num_blobs, self.count(blob_chunks) if self.outside is None else len(self.outside.names())

    def count(self, table: sa.Table) -> int:
        query = sa.select(sa.func.count()).select_from(table)
        return self.store.read(lambda tx: tx.connection.execute(query).scalar_one())

    def num_pieces(self, num_chunks: int) -> int:
        """Gives how many rows, files or objects hold a blob of so many chunks, of which there are at most 8."""
        return num_chunks if self.outside is None else 1


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Outside | None:
    """A store outside the database; None where the database holds the blobs."""
    if request.param == "database":
        return None
    if request.param == "file":
        return Files(tmp_path / "blobs")
    request.getfixturevalue("objects")
    return Objects(f"s3://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture
def held(store: Store, place: Outside | None) -> Iterator[Held]:
    """An empty store of each kind."""
    outside = None if place is None else open_store(place.url)
    if outside is not None:
        outside.check()
    blobs_ = Blobs(store.transactions, outside, rows_ahead=0)
    yield Held(store, blobs_, place)
    blobs_.close()


def pattern(size: int) -> bytes:
    """Makes bytes in which every position is recognisable."""
    return b"".join(number.to_bytes(4, "little") for number in range(size // 4 + 1))[:size]


@contextmanager
def counted_reads(held: Held) -> Iterator[list[str]]:
    """Collects the reads of a store: the statements that ask for chunks, and the reads of files."""
    reads: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "blob_chunks" in statement and held.outside is None:
            reads.append(statement)

    engine = held.store.transactions.database.readers
    sa.event.listen(engine, "before_cursor_execute", note)
    store = held.blobs._store
    with pytest.MonkeyPatch.context() as patch:
        if store is not None:
            read = store.read
            patch.setattr(store, "read", lambda *given: (reads.append(given[0]), read(*given))[1])
        try:
            yield reads
        finally:
            sa.event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_comes_back(held: Held, size: int) -> None:
    data = pattern(size)
    held.write(data)
    assert held.blobs.read_blocking("blob_1", 0, size) == data


def test_any_part_comes_back(held: Held) -> None:
    data = pattern(SIZES[-1])
    held.write(data)
    cuts = [0, 1, CHUNK_NUM_BYTES - 1, CHUNK_NUM_BYTES, 2 * CHUNK_NUM_BYTES + 5, SIZES[-1]]
    for first in cuts:
        for last in cuts:
            assert held.blobs.read_blocking("blob_1", first, last) == data[first:last]


@pytest.mark.parametrize("size", [1, SMALL_CHUNK, PIECE_NUM_BYTES + 3 * SMALL_CHUNK + 7])
async def test_one_of_many_has_chunks_of_its_own_size_and_any_part_of_it_comes_back(held: Held, size: int) -> None:
    data = pattern(size)
    held.write(data, upload=one_of_many("blob_1", num_bytes=size), piece=SMALL_CHUNK + 1)
    if held.outside is None:
        assert held.counts() == (1, -(-size // SMALL_CHUNK))
    cuts = [0, 1, SMALL_CHUNK, 2 * SMALL_CHUNK + 5, PIECE_NUM_BYTES - 1, PIECE_NUM_BYTES + SMALL_CHUNK, size]
    for first, last in itertools.combinations(sorted({min(cut, size) for cut in cuts}), 2):
        assert held.blobs.read_blocking("blob_1", first, last) == data[first:last]
        assert await held.blobs.read("blob_1", first, last) == data[first:last]
    for read_beyond in (size + 1, 2 * PIECE_NUM_BYTES):
        with pytest.raises(BlobCorruptError):
            await held.blobs.read("blob_1", size - 1, read_beyond)


async def test_a_small_chunk_that_is_not_what_was_written_is_noticed_and_no_other(held: Held) -> None:
    data = pattern(4 * SMALL_CHUNK)
    held.write(data, upload=one_of_many("blob_1", num_bytes=len(data)))
    spoil(held, "flipped", chunk_num_bytes=SMALL_CHUNK)
    for first, last in ((0, len(data)), (2 * SMALL_CHUNK, 2 * SMALL_CHUNK + 1)):
        with pytest.raises(BlobCorruptError, match="chunk 2 of blob blob_1"):
            held.blobs.read_blocking("blob_1", first, last)
    assert held.blobs.read_blocking("blob_1", SMALL_CHUNK, 2 * SMALL_CHUNK) == data[SMALL_CHUNK : 2 * SMALL_CHUNK]
    with pytest.raises(BlobCorruptError, match="chunk 2 of blob blob_1"):
        await held.blobs.read("blob_1", 0, 1)


async def test_it_is_the_same_from_a_coroutine(held: Held) -> None:
    upload = BlobUpload("blob_1")
    upload.append(pattern(4 * CHUNK_NUM_BYTES))
    assert upload.is_due
    await held.blobs.flush(upload)
    await held.blobs.finish(upload)
    await held.store.transactions.write("seal", lambda tx: held.blobs.seal(tx, upload))
    assert await held.blobs.read("blob_1", 5, 4 * CHUNK_NUM_BYTES) == pattern(4 * CHUNK_NUM_BYTES)[5:]
    await anyio.lowlevel.checkpoint()


async def test_clients_that_pull_together_cost_one_read(held: Held) -> None:
    held.write(pattern(SIZES[-1]))
    pulled: list[bytes] = []

    async def pull() -> None:
        pulled.append(b"".join([await held.blobs.read("blob_1", *piece) for piece in PIECES]))

    with counted_reads(held) as reads:
        async with anyio.create_task_group() as clients:
            for _ in range(8):
                clients.start_soon(pull)
    assert pulled == [pattern(SIZES[-1])] * 8
    assert len(reads) == len(PIECES)


async def test_a_client_that_hangs_up_does_not_disturb_those_who_wait_for_the_same_bytes(held: Held) -> None:
    held.write(pattern(100))
    pulled: list[bytes] = []

    async def pull() -> None:
        pulled.append(await held.blobs.read("blob_1", 0, 100))

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


async def test_what_stays_in_memory_is_bounded(held: Held) -> None:
    # The last chunks stay, whatever was read before them; one more is read again.
    for number in range(PIECES_KEPT + 1):
        held.write(bytes([number]), f"blob_{number}")
        await held.blobs.read(f"blob_{number}", 0, 1)
    with counted_reads(held) as reads:
        for number in range(PIECES_KEPT, 0, -1):
            assert await held.blobs.read(f"blob_{number}", 0, 1) == bytes([number])
        assert reads == []
        assert await held.blobs.read("blob_0", 0, 1) == b"\0"
        assert len(reads) == 1


async def test_bytes_that_could_not_be_read_are_not_remembered(held: Held) -> None:
    with pytest.raises(BlobCorruptError, match="blob_1"):
        await held.blobs.read("blob_1", 0, 1)
    held.write(b"x")
    assert await held.blobs.read("blob_1", 0, 1) == b"x"


def spoil(held: Held, harm: str, *, chunk_num_bytes: int = CHUNK_NUM_BYTES) -> None:
    """Harms chunk 2 of a blob."""
    if held.outside is not None:
        held.outside.change(lambda data: harmed(data, harm, chunk_num_bytes))
        return
    of_chunk = sa.and_(blob_chunks.c.blob_id == "blob_1", blob_chunks.c.number == 2)

    def body(tx: WriteTx) -> None:
        if harm == "missing":
            tx.connection.execute(sa.delete(blob_chunks).where(of_chunk))
            return
        data = tx.connection.execute(sa.select(blob_chunks.c.data).where(of_chunk)).scalar_one()
        tx.connection.execute(sa.update(blob_chunks).where(of_chunk).values(data=spoiled(bytes(data), harm)))

    held.store.write(body)


def spoiled(data: bytes, harm: str) -> bytes:
    """Gives a chunk that was harmed."""
    flipped = data[:12345] + bytes([data[12345] ^ 1]) + data[12346:]
    return {"flipped": flipped, "shortened": data[:-1], "lengthened": b"x" + data}[harm]


def harmed(data: bytes, harm: str, chunk_num_bytes: int) -> bytes:
    """Gives a whole blob whose chunk 2 was harmed, in a file that was cut off or that a power cut left empty."""
    at, end = 2 * chunk_num_bytes, 3 * chunk_num_bytes
    if harm == "shortened":
        return data[: at + 5]
    chunk = bytes(chunk_num_bytes) if harm == "missing" else spoiled(data[at:end], harm)
    return data[:at] + chunk + data[end:]


@pytest.mark.parametrize("harm", ["flipped", "shortened", "missing", "lengthened"])
def test_bytes_that_are_not_what_was_written_are_noticed(held: Held, harm: str) -> None:
    held.write(pattern(SIZES[-1]))
    spoil(held, harm)
    for first, last in ((0, SIZES[-1]), (2 * CHUNK_NUM_BYTES, 2 * CHUNK_NUM_BYTES + 1)):
        with pytest.raises(BlobCorruptError, match="blob_1"):
            held.blobs.read_blocking("blob_1", first, last)
    # The other chunks are as good as they were.
    assert held.blobs.read_blocking("blob_1", 0, 100) == pattern(100)


def test_reading_behind_the_end_or_of_nothing_is_noticed(held: Held) -> None:
    held.write(pattern(10))
    with pytest.raises(BlobCorruptError):
        held.blobs.read_blocking("blob_1", 0, 11)
    with pytest.raises(BlobCorruptError):
        held.blobs.read_blocking("blob_2", 0, 1)


async def test_a_discarded_upload_leaves_nothing(held: Held) -> None:
    upload = held.begin("blob_1")
    assert held.counts() == (1, held.num_pieces(2))
    await held.blobs.discard(upload)
    await held.blobs.remove_bytes()
    assert held.counts() == (0, 0)
    # What was still on its way to the disk comes too late.
    upload.append(bytes(CHUNK_NUM_BYTES))
    if held.outside is not None:
        await held.blobs.flush(upload)
    assert held.counts() == (0, 0)
    assert held.count(blob_deletions) == 0


async def test_removed_blobs_leave_nothing_even_if_the_process_dies_before_their_bytes_go(held: Held) -> None:
    for number in range(3):
        held.write(pattern(CHUNK_NUM_BYTES + 1), f"blob_{number}")
    held.store.write(lambda tx: remove_blobs(tx, "blob_0", "blob_2"))
    with pytest.raises(BlobCorruptError):
        Blobs(held.store.transactions, held.blobs._store).read_blocking("blob_0", 0, 1)
    later_process = Blobs(held.store.transactions, held.blobs._store)
    await later_process.remove_bytes()
    later_process.close()
    assert held.counts() == (1, held.num_pieces(2))
    assert held.count(blob_deletions) == 0
    assert held.blobs.read_blocking("blob_1", 0, CHUNK_NUM_BYTES + 1) == pattern(CHUNK_NUM_BYTES + 1)


async def test_a_blob_can_be_read_as_far_as_its_last_checkpoint_and_stays_so(held: Held) -> None:
    data, upload = pattern(7 * CHUNK_NUM_BYTES + 7), BlobUpload("blob_1")
    held.store.write(lambda tx: held.blobs.reserve(tx, upload))
    begin = 0
    for end in (100, CHUNK_NUM_BYTES, 6 * CHUNK_NUM_BYTES + 9, len(data)):
        upload.append(data[begin:end])
        if upload.is_due:
            await held.blobs.flush(upload)
            # What is written and not noted changes nothing of what is.
            assert held.blobs.read_blocking("blob_1", 0, begin) == data[:begin]
        await held.blobs.checkpoint(upload, lambda _tx: None)
        # As after a restart: nothing is known but what the database says.
        restarted = Blobs(held.store.transactions, held.blobs._store)
        assert restarted.read_blocking("blob_1", 0, end) == data[:end]
        restarted.close()
        begin = end
    assert await held.blobs.sweep(later(2**32)) == 0
    held.store.write(lambda tx: remove_blobs(tx, "blob_1"))
    await held.blobs.remove_bytes()
    assert held.counts() == (0, 0)


async def test_a_checkpoint_that_is_refused_notes_nothing(held: Held) -> None:
    data, upload = pattern(2 * CHUNK_NUM_BYTES + 7), BlobUpload("blob_1")
    held.store.write(lambda tx: held.blobs.reserve(tx, upload))
    upload.append(data[:100])
    await held.blobs.checkpoint(upload, lambda _tx: None)
    upload.append(data[100:])

    def refuse(_tx: WriteTx) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await held.blobs.checkpoint(upload, refuse)
    noted = held.store.read(lambda tx: tx.connection.execute(sa.select(blobs.c.num_bytes)).scalar_one())
    assert noted == 100
    assert held.blobs.read_blocking("blob_1", 0, 100) == data[:100]


async def test_who_writes_to_a_blob_that_was_removed_leaves_nothing(held: Held) -> None:
    data, upload = pattern(CHUNK_NUM_BYTES + 7), BlobUpload("blob_1")
    held.store.write(lambda tx: held.blobs.reserve(tx, upload))
    held.store.write(lambda tx: remove_blobs(tx, "blob_1"))
    await held.blobs.remove_bytes()
    upload.append(data)
    with pytest.raises(StaleRowError):
        await held.blobs.checkpoint(upload, _taken_over)
    await held.blobs.leave(upload)
    await held.blobs.remove_bytes()
    assert held.counts() == (0, 0)
    assert held.count(blob_deletions) == 0


async def test_a_blob_of_the_database_that_was_removed_cannot_be_written(held: Held) -> None:
    if held.outside is not None:
        return
    upload = BlobUpload("blob_1")
    held.store.write(lambda tx: held.blobs.reserve(tx, upload))
    held.store.write(lambda tx: remove_blobs(tx, "blob_1"))
    upload.append(pattern(5 * CHUNK_NUM_BYTES))
    with pytest.raises(StaleRowError):
        await held.blobs.flush(upload)
    assert held.counts() == (0, 0)


async def test_who_leaves_a_blob_that_others_name_removes_nothing(held: Held) -> None:
    data, upload = pattern(CHUNK_NUM_BYTES + 7), BlobUpload("blob_1")
    held.store.write(lambda tx: held.blobs.reserve(tx, upload))
    upload.append(data)
    await held.blobs.checkpoint(upload, lambda _tx: None)
    await held.blobs.leave(upload)
    await held.blobs.remove_bytes()
    assert held.blobs.read_blocking("blob_1", 0, len(data)) == data


def _taken_over(_tx: WriteTx) -> None:
    raise StaleRowError


async def test_sweeping_removes_what_was_never_finished_and_is_old(held: Held) -> None:
    held.write(pattern(SIZES[-1]), "sealed")
    for number in range(3):
        held.begin(f"orphan_{number}")
    held.store.write(
        lambda tx: tx.connection.execute(
            sa.update(blobs).where(blobs.c.blob_id == "orphan_2").values(created_at=later(2**33))
        )
    )
    assert await held.blobs.sweep(later(2**32)) == 2
    assert await held.blobs.sweep(later(2**32)) == 0
    await held.blobs.remove_bytes()
    assert held.counts() == (2, held.num_pieces(6) + held.num_pieces(2))
    assert held.blobs.read_blocking("sealed", 0, SIZES[-1]) == pattern(SIZES[-1])


async def test_discarding_a_blob_that_a_row_names_changes_nothing(held: Held) -> None:
    # As when a commit went through and the news of it was lost.
    upload = held.begin("blob_1")
    await held.blobs.finish(upload)
    held.store.write(lambda tx: held.blobs.seal(tx, upload))
    await held.blobs.discard(upload)
    await held.blobs.remove_bytes()
    assert held.blobs.read_blocking("blob_1", 0, 2 * CHUNK_NUM_BYTES) == pattern(2 * CHUNK_NUM_BYTES)


def test_a_seal_that_is_not_committed_names_nothing_and_can_be_repeated(held: Held) -> None:
    upload = BlobUpload("blob_1")
    upload.append(b"small")
    held.blobs.finish_blocking(upload)

    def fails(tx: WriteTx) -> None:
        held.blobs.seal(tx, upload)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        held.store.write(fails)
    with pytest.raises(BlobCorruptError):
        held.blobs.read_blocking("blob_2", 0, 1)
    held.store.write(lambda tx: held.blobs.seal(tx, upload))
    assert held.blobs.read_blocking("blob_1", 0, 5) == b"small"
