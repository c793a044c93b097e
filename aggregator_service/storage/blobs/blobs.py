"""Writes and reads blobs wherever they are: chunks in the database, files or objects.

A row of `blobs` exists before the first byte of a file or an object does, and is an orphan until a transaction seals
it: whatever a killed process leaves behind is found by its row, without listing a folder or a bucket.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Final, ParamSpec, TypeVar

import structlog
from async_lru import alru_cache
from xxhash import xxh3_64

from aggregator_service import failpoints
from aggregator_service.storage.blobs import chunks, removals
from aggregator_service.storage.blobs.chunks import DATABASE, REMOVED, Place, Stretch
from aggregator_service.storage.blobs.files import FileStore
from aggregator_service.storage.blobs.ready import ROWS_AHEAD, ReadyRows
from aggregator_service.storage.blobs.removals import Deletion
from aggregator_service.storage.blobs.stores import BlobStoreError, ByteStore, open_store, unavailable
from aggregator_service.storage.blobs.uploads import BlobCorruptError, BlobUpload
from aggregator_service.storage.failures import as_problem
from aggregator_service.storage.transactions import ReadTx, Transactions, WriteTx

PIECE_NUM_BYTES: Final = 1 << 20
"""Of a blob that many pull at once so much stays in memory together, whatever its chunks are."""
PIECES_KEPT: Final = 16
PLACES_KEPT: Final = 1024
_NUM_THREADS: Final = 16
CHECKSUM_NUM_BYTES: Final = 8

P = ParamSpec("P")
T = TypeVar("T")
_Found = Stretch | Place
_Look = Callable[[Callable[[ReadTx], _Found]], _Found]
_log = structlog.get_logger()


class Blobs:
    """Writes new blobs to one store (`None`: the database) and reads every blob from the one that its row names."""

    def __init__(
        self, transactions: Transactions, store: ByteStore | None = None, *, rows_ahead: int = ROWS_AHEAD
    ) -> None:
        self._transactions = transactions
        self._rows_ahead = rows_ahead
        self._store = store
        self._stores = {} if store is None else {store.url: store}
        self._ready: dict[str, ReadyRows] = {}
        self._places: OrderedDict[str, Place] = OrderedDict()
        self._lock = threading.Lock()
        # Threads of their own: whoever waits for a disk here must not keep others from hashing what they receive.
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="blobs")
        # Nothing of a blob changes after it is written, and the clients of a round pull the same model all at once.
        self._kept_piece = alru_cache(maxsize=PIECES_KEPT)(self._piece)

    def close(self) -> None:
        """Waits for the reads and writes under way."""
        self._threads.shutdown(wait=True)

    async def flush(self, upload: BlobUpload) -> None:
        """Makes the full chunks of an upload durable; raises StaleRowError if the database has lost a reserved one."""
        if (store := self._store_of(upload)) is None:
            upload.store = DATABASE
            await self._transactions.write_grouped("store_chunks", upload, _write_ahead)
            upload.written()
        elif upload.num_collected(last=False, unit=_unit(store, upload)):
            await self.threaded(self._write, store, upload, last=False)

    def flush_blocking(self, upload: BlobUpload) -> None:
        """Does the same from a worker thread."""
        if (store := self._store_of(upload)) is None:
            upload.store = DATABASE
            self._transactions.write_blocking("store_chunks", lambda tx: _write_ahead(tx, [upload]))
            upload.written()
        elif upload.num_collected(last=False, unit=_unit(store, upload)):
            self._write(store, upload, last=False)

    async def finish(self, upload: BlobUpload) -> None:
        """Makes all of an upload durable unless the database holds it; comes before the transaction that seals it."""
        if self.waits_for_disk(upload):
            await self.threaded(self.finish_blocking, upload)

    def waits_for_disk(self, upload: BlobUpload) -> bool:
        """Tells whether the end of an upload is written before the transaction that seals it, not in it."""
        return self._store_of(upload) is not None

    def finish_blocking(self, upload: BlobUpload) -> None:
        """Does the same from a worker thread."""
        if (store := self._store_of(upload)) is not None:
            self._write(store, upload, last=True)

    async def discard(self, upload: BlobUpload) -> None:
        """Removes what was written of an upload that nothing will name."""
        if upload.is_begun:
            await self.threaded(self.discard_blocking, upload)

    def discard_blocking(self, upload: BlobUpload) -> None:
        """Does the same from a worker thread."""
        if not upload.is_begun:
            return
        # A write that is under way ends first: it would make the file anew.
        with upload.lock:
            upload.is_discarded = True
        # Whether the transaction that was to seal it has committed after all, only the row can tell.
        self._transactions.write_blocking("discard_blob", lambda tx: removals.remove_unsealed(tx, upload.blob_id))

    def seal(self, tx: WriteTx, *uploads: BlobUpload) -> None:
        """Makes uploads blobs, in the transaction that names them, and writes the rest of those in the database."""
        in_database = [upload for upload in uploads if self._store_of(upload) is None]
        outside = [upload for upload in uploads if upload not in in_database]
        for upload in outside:
            if not upload.is_begun or upload.num_durable != upload.num_bytes:
                raise ValueError(f"blob {upload.blob_id} is sealed before it was finished")
        fresh = [upload for upload in in_database if upload.num_written == 0 and not upload.is_resumable]
        if fresh:
            chunks.insert(tx, fresh, store=DATABASE, sealed=True)
        chunks.mark_sealed(tx, [upload for upload in uploads if upload not in fresh])
        chunks.write(tx, in_database, last=True)

    def note_sealed(self, upload: BlobUpload) -> None:
        """Keeps in mind where a blob is that a committed transaction has sealed: who reads it looks up no row."""
        if self.waits_for_disk(upload):
            self._remember(upload.blob_id, chunks.place_of(upload))

    def reserve(self, tx: WriteTx, upload: BlobUpload) -> None:
        """Begins a blob whose bytes count before it is sealed, in the transaction that names it.

        It is never swept: whoever names it removes it. Its bytes are read by `read_blocking` alone.
        """
        upload.is_resumable = True
        store = self._store_of(upload)
        upload.store = DATABASE if store is None else store.url
        chunks.insert(tx, [upload], store=upload.store)

    async def checkpoint(self, upload: BlobUpload, note: Callable[[WriteTx], None]) -> None:
        """Makes everything appended to a reserved blob durable, and notes how much that is.

        `note` runs first in the same transaction: where it raises, nothing is noted.
        """
        store = self._store_of(upload)
        if store is not None:
            await self.threaded(self.finish_blocking, upload)

        def body(tx: WriteTx) -> None:
            note(tx)
            if store is None:
                chunks.write(tx, [upload], last=True)
            chunks.note_durable(tx, upload)

        await self._transactions.write("checkpoint_blob", body)
        upload.num_durable = upload.num_bytes
        if store is None:
            upload.written()

    async def leave(self, upload: BlobUpload) -> None:
        """Ends the writing of a reserved blob that somebody else may have removed: nothing stays of what is gone."""
        with upload.lock:
            upload.is_discarded = True
        if (store := self._store_of(upload)) is not None:
            remove = partial(removals.remove_strays, blob_id=upload.blob_id, store=store.url)
            await self._transactions.write("leave_blob", remove)

    def read_in(self, tx: ReadTx, blob_id: str, begin: int, end: int) -> bytes:
        """Gives the bytes [begin, end) within a transaction, which may have sealed the blob itself."""
        return self._read(lambda body: body(tx), blob_id, begin, end)

    async def read(self, blob_id: str, begin: int, end: int) -> bytes:
        """Gives the bytes [begin, end); raises BlobCorruptError when they are not what was written.

        Pieces that were read last stay in memory, 16 MiB of them; who asks for one that is being read waits for it.
        """
        numbers = chunks.parts(begin, end, size=PIECE_NUM_BYTES)
        found = [await self._kept_piece(blob_id, number) for number in numbers]
        if not found:
            return b""
        return chunks.cut(Stretch(numbers.start * PIECE_NUM_BYTES, found), begin, end, blob_id=blob_id)

    def read_blocking(self, blob_id: str, begin: int, end: int) -> bytes:
        """Does the same from a worker thread, for bytes that are read once: it keeps none."""
        return self._read(partial(self._transactions.read_one_blocking, "read_blob"), blob_id, begin, end)

    def open_local_blocking(self, blob_id: str) -> int | None:
        """Opens the file that holds a sealed blob and nothing else, if one does; gives its descriptor, to be closed.

        Its size is what was written; whether its bytes are, only `read` and its kin tell. Raises BlobCorruptError.
        """
        place = self._places.get(blob_id)
        if place is None:
            place = self._transactions.read_one_blocking("find_blob", lambda tx: chunks.place(tx, blob_id))
        if place is None or not place.sealed or place.store in (DATABASE, REMOVED):
            return None
        # Clients pull the same model one after the other.
        self._remember(blob_id, place)
        store = self._opened(place.store)
        return store.open(blob_id, place.num_bytes) if isinstance(store, FileStore) else None

    async def open_local(self, blob_id: str) -> int | None:
        """Does the same from a coroutine."""
        return await self.threaded(self.open_local_blocking, blob_id)

    async def sweep(self, older_than: datetime) -> int:
        """Removes blobs that were never sealed and were begun before a given instant; gives their number."""

        def body(tx: WriteTx) -> int:
            found = chunks.orphans(tx, older_than)
            removals.remove_blobs(tx, *found)
            return len(found)

        return await self._transactions.write("sweep_blobs", body)

    async def remove_bytes(self) -> int:
        """Removes the files and objects of blobs that are gone from the database; gives how many."""
        total, behind = 0, ""
        while found := await self._transactions.read_one("find_removals", partial(removals.pending, behind=behind)):
            removed = await self.threaded(self._remove_all, found)
            failpoints.reach("blobs.bytes_removed")
            if removed:
                await self._transactions.write("note_removals", partial(removals.done, blob_ids=removed))
            total, behind = total + len(removed), found[-1].blob_id
        return total

    def _remove_all(self, deletions: Sequence[Deletion]) -> list[str]:
        return [one.blob_id for one in deletions if self._is_removed(one)]

    def _is_removed(self, deletion: Deletion) -> bool:
        """Removes bytes that nobody reads any more; what cannot be removed now is tried again later."""
        try:
            self._opened(deletion.store).remove(deletion.blob_id)
        except (OSError, BlobStoreError) as error:
            _log.warning("bytes_not_removed", blob_id=deletion.blob_id, store=deletion.store, reason=str(error))
            return False
        return True

    def _write(self, store: ByteStore, upload: BlobUpload, *, last: bool) -> None:
        """Writes what was collected; the blob's row is there before its first byte."""
        if not upload.is_begun:
            self._begin(store, upload)
            failpoints.reach("blobs.begun")
        with upload.lock:
            if upload.is_discarded:
                return
            _write_collected(store, upload, last=last)
        failpoints.reach("blobs.bytes_written")

    def _begin(self, store: ByteStore, upload: BlobUpload) -> None:
        """Gives an upload the identifier of a row that stands before the first byte is written."""
        with self._lock:
            if store.url not in self._ready:
                self._ready[store.url] = ReadyRows(self._transactions, store, rows_ahead=self._rows_ahead)
            ready = self._ready[store.url]
        with _failing(store, upload):
            upload.blob_id = ready.take(upload.blob_id)
        upload.store = store.url

    def _read(self, look: _Look, blob_id: str, begin: int, end: int) -> bytes:
        if begin >= end:
            return b""
        place = self._places.get(blob_id)
        found = place or look(partial(chunks.read, blob_id=blob_id, begin=begin, end=end))
        if isinstance(found, Place):
            found = self._bytes_of(blob_id, found, begin, end)
        return chunks.cut(found, begin, end, blob_id=blob_id)

    async def _piece(self, blob_id: str, number: int) -> bytes:
        begin, end = number * PIECE_NUM_BYTES, (number + 1) * PIECE_NUM_BYTES
        found: _Found | None = self._places.get(blob_id)
        if found is None:
            body = partial(chunks.read, blob_id=blob_id, begin=begin, end=end)
            found = await self._transactions.read_one("read_blob", body)
        if isinstance(found, Place):
            found = await self.threaded(self._bytes_of, blob_id, found, begin, end)
        return b"".join(found.chunks)

    def _bytes_of(self, blob_id: str, place: Place, begin: int, end: int) -> Stretch:
        """Reads the chunks that hold the bytes [begin, end) from a store, all in one, and checks each."""
        self._remember(blob_id, place)
        numbers, size = place.numbers(begin, end), place.chunk_num_bytes
        begin, end = numbers.start * size, min(numbers.stop * size, place.num_bytes)
        if begin >= end:
            raise BlobCorruptError(f"blob {blob_id} ends before byte {begin}")
        try:
            data = self._opened(place.store).read(blob_id, begin, end)
        except (OSError, BlobStoreError) as error:
            _log.error("blob_store_failed", store=place.store, blob_id=blob_id, reason=str(error))
            raise unavailable() from error
        for number, chunk in zip(numbers, _chunks(memoryview(data), size), strict=False):
            at = number * CHECKSUM_NUM_BYTES
            if _checksum([chunk]) != place.checksums[at : at + CHECKSUM_NUM_BYTES]:
                raise chunks.not_as_written(blob_id, number)
        return Stretch(begin, [data])

    def _remember(self, blob_id: str, place: Place) -> None:
        if not place.sealed:
            return
        with self._lock:
            self._places[blob_id] = place
            while len(self._places) > PLACES_KEPT:
                self._places.popitem(last=False)

    def _store_of(self, upload: BlobUpload) -> ByteStore | None:
        """Gives where an upload goes, or has begun to; None for the database."""
        if upload.store is None:
            return self._store
        return None if upload.store == DATABASE else self._opened(upload.store)

    def _opened(self, url: str) -> ByteStore:
        """Gives the store of a URL: the one that is set, or one that was before."""
        with self._lock:
            if url not in self._stores:
                self._stores[url] = open_store(url)
            return self._stores[url]

    async def threaded(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls what may wait for a disk."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args, **kwargs))


def _write_ahead(tx: WriteTx, uploads: Sequence[BlobUpload]) -> Sequence[None]:
    for upload in uploads:
        if upload.is_resumable:
            chunks.lock_reserved(tx, upload)
    begun = [upload for upload in uploads if upload.num_written == 0 and not upload.is_resumable]
    if begun:
        chunks.insert(tx, begun, store=DATABASE)
    chunks.write(tx, uploads, last=False)
    return [None] * len(uploads)


def _unit(store: ByteStore | None, upload: BlobUpload) -> int:
    """Gives of how many bytes every write of an upload but its last is a multiple."""
    return upload.chunk_num_bytes if store is None else max(store.unit, upload.chunk_num_bytes)


@contextmanager
def _failing(store: ByteStore, upload: BlobUpload) -> Iterator[None]:
    """Logs why a store could not be written, and tells the sender that it should try again."""
    try:
        yield
    except OSError as error:
        _log.error("blob_store_failed", store=store.url, blob_id=upload.blob_id, reason=str(error))
        raise (as_problem(error) or unavailable()) from error


def _write_collected(store: ByteStore, upload: BlobUpload, *, last: bool) -> None:
    unit, size = _unit(store, upload), upload.chunk_num_bytes
    end, full = upload.num_collected(last=last, unit=unit), upload.num_collected(last=False, unit=unit)
    with _failing(store, upload):
        if end:
            store.write(upload.blob_id, upload.num_written * size, upload.collected(0, end))
        upload.checksums += b"".join(_checksum(upload.collected(at, at + size)) for at in range(0, full, size))
        rest = (upload.collected(at, min(at + size, end)) for at in range(full, end, size))
        upload.last_checksums = b"".join(_checksum(each) for each in rest)
    upload.written(unit=unit)
    if last:
        upload.num_durable = upload.num_bytes


def _checksum(parts: Sequence[memoryview]) -> bytes:
    """Gives a chunk's checksum; it finds damage, while who needs to trust bytes checks their SHA-256."""
    hasher = xxh3_64()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def _chunks(data: memoryview, size: int) -> Iterator[memoryview]:
    for begin in range(0, len(data), size):
        yield data[begin : begin + size]
