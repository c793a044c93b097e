"""Blobs in files: private, synced before a row names them, read wherever the setting has moved, never a way out."""

import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest
import sqlalchemy as sa

from aggregator_service.storage.blobs import (
    CHUNK_NUM_BYTES,
    BlobCorruptError,
    Blobs,
    BlobStoreError,
    BlobUpload,
    check_location,
    open_store,
)
from aggregator_service.storage.blobs.ready import READY_SECONDS, ROWS_AHEAD, ReadyRows
from aggregator_service.storage.tables import blobs
from fl_protocol.problems import ProblemError, ProblemType
from tests.support.records import later
from tests.support.store import Store

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def held(store: Store, folder: Path) -> Iterator[Blobs]:
    """Blobs on files, as a server opens them."""
    place = open_store(f"file://{folder}")
    place.check()
    held = Blobs(store.transactions, place)
    yield held
    held.close()


def put(store: Store, held: Blobs, data: bytes, blob_id: str = "blob_1") -> None:
    upload = BlobUpload(blob_id)
    upload.append(data)
    held.finish_blocking(upload)
    store.write(lambda tx: held.seal(tx, upload))


def test_files_and_folders_are_their_owners_alone(store: Store, held: Blobs, folder: Path) -> None:
    put(store, held, b"private")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, files[0].parent)} == {0o700}


@pytest.fixture
def durable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was synced, or written through a descriptor that syncs each write, in order."""
    noted: list[str] = []

    def name_of(descriptor: int) -> str:
        return Path(f"/proc/self/fd/{descriptor}").readlink().name

    def fsync(descriptor: int, sync: Callable[[int], None] = os.fsync) -> None:
        noted.append(name_of(descriptor))
        sync(descriptor)

    def pwritev(descriptor: int, parts: object, begin: int, write: Callable[..., int] = os.pwritev) -> int:
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DSYNC
        noted.append(name_of(descriptor))
        return write(descriptor, parts, begin)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "pwritev", pwritev)
    return noted


def test_a_blob_is_synced_with_its_folder_before_a_row_may_name_it(
    store: Store, held: Blobs, durable: list[str]
) -> None:
    upload = BlobUpload("blob_1a")
    for number in range(5):
        upload.append(bytes([number]) * CHUNK_NUM_BYTES)
        if upload.is_due:
            held.flush_blocking(upload)
    held.finish_blocking(upload)
    # The folder that holds the new folder, that which holds the file's name, the file, and what was added to it.
    assert durable == ["blobs", "1a", "blob_1a", "blob_1a"]


def test_files_that_are_made_ahead_share_the_sync_of_their_folder(
    store: Store, held: Blobs, durable: list[str]
) -> None:
    for number in range(3):
        put(store, held, b"data", f"blob_{number:04x}1a")
    assert len(durable) == 2 + 3
    assert durable.count("1a") == 1


def test_a_file_that_an_earlier_process_made_has_its_folder_synced_again(
    store: Store, held: Blobs, folder: Path, durable: list[str]
) -> None:
    """It may have died between the two, and a blob that is appended to over restarts keeps its name."""
    open_store(f"file://{folder}").make(["blob_1a"])
    durable.clear()
    open_store(f"file://{folder}").write("blob_1a", 0, [memoryview(b"data")])
    assert durable == ["1a", "blob_1a"]


def test_what_was_not_finished_cannot_be_sealed(store: Store, held: Blobs) -> None:
    upload = BlobUpload("blob_1")
    upload.append(b"x")
    with pytest.raises(ValueError, match="before it was finished"):
        store.write(lambda tx: held.seal(tx, upload))
    held.finish_blocking(upload)
    upload.append(b"more")
    with pytest.raises(ValueError, match="before it was finished"):
        store.write(lambda tx: held.seal(tx, upload))


def test_rows_stand_ahead_of_files_and_each_is_given_once(store: Store, held: Blobs, folder: Path) -> None:
    """Forty small files cost two commits before their first byte instead of forty, and what is left over is swept."""
    uploads = [BlobUpload(f"blob_{number:04x}00ff") for number in range(40)]
    commits: list[object] = []
    sa.event.listen(store.transactions.database.writer, "commit", commits.append)
    with ThreadPoolExecutor(8) as threads:
        for upload in uploads:
            upload.append(upload.blob_id.encode())
        list(threads.map(held.finish_blocking, uploads))
    assert len(commits) == 2
    store.write(lambda tx: held.seal(tx, *uploads))
    assert len({upload.blob_id for upload in uploads}) == 40
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {name for name, data in files.items() if data} == {upload.blob_id for upload in uploads}
    left = store.read(lambda tx: tx.connection.execute(sa.select(blobs.c.blob_id).where(~blobs.c.sealed)).all())
    assert len(left) == 1 + 2 * ROWS_AHEAD - 40
    assert files.keys() == {upload.blob_id for upload in uploads} | {row.blob_id for row in left}
    assert anyio.run(held.sweep, later(1)) == len(left)
    assert anyio.run(held.remove_bytes) == len(left)
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 40


def test_who_comes_while_more_rows_are_inserted_is_given_one_that_is_left(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, may_go_on, is_inserting = open_store(f"file://{folder}"), threading.Event(), threading.Event()
    place.check()
    ready = ReadyRows(store.transactions, place, rows_ahead=ROWS_AHEAD)
    given = [ready.take("blob_000000ff")]
    make = place.make

    def slow(blob_ids: Sequence[str]) -> None:
        is_inserting.set()
        assert may_go_on.wait(20)
        make(blob_ids)

    monkeypatch.setattr(place, "make", slow)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(lambda: [ready.take(f"blob_{number:04x}00ff") for number in range(1, 17)])
        assert is_inserting.wait(20)
        given += [ready.take(f"blob_{number:04x}00ff") for number in range(17, 32)]
        may_go_on.set()
        given += first.result(20)
    given += [ready.take(f"blob_{number:04x}00ff") for number in range(32, 40)]
    assert len(set(given)) == len(given) == 40


@pytest.mark.parametrize(
    "failure",
    [OSError(28, "No space left on device"), ProblemError(ProblemType.UNAVAILABLE, "the database is gone")],
    ids=["disk", "database"],
)
def test_what_keeps_rows_from_being_inserted_is_told_when_none_is_left(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    """Whoever tries to insert more while some are left still gets one of these; later everything is as before."""
    place = open_store(f"file://{folder}")
    place.check()
    ready = ReadyRows(store.transactions, place, rows_ahead=ROWS_AHEAD)

    def fail(_blob_ids: Sequence[str]) -> None:
        raise failure

    given = [ready.take("blob_000000ff")]
    with monkeypatch.context() as patch:
        patch.setattr(place, "make", fail)
        given += [ready.take(f"blob_{number:04x}00ff") for number in range(1, ROWS_AHEAD + 1)]
        with pytest.raises(type(failure)):
            ready.take("blob_f00000ff")
    given += [ready.take(f"blob_a{number:03x}00ff") for number in range(ROWS_AHEAD)]
    assert len(set(given)) == len(given) == 2 * ROWS_AHEAD + 1


def test_a_row_that_has_waited_too_long_is_left_to_the_sweep(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = open_store(f"file://{folder}")
    place.check()
    ready = ReadyRows(store.transactions, place, rows_ahead=ROWS_AHEAD)
    ready.take("blob_000000ff")
    now = time.monotonic() + READY_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert ready.take("blob_000100ff") == "blob_000100ff"


def test_a_full_disk_is_told_and_names_nothing(store: Store, held: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_given: object) -> int:
        raise OSError(28, "No space left on device")

    upload = BlobUpload("blob_1")
    upload.append(b"x")
    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(ProblemError) as refused:
        held.finish_blocking(upload)
    assert refused.value.problem_type is ProblemType.INSUFFICIENT_STORAGE
    with pytest.raises(ValueError, match="before it was finished"):
        store.write(lambda tx: held.seal(tx, upload))


def test_a_full_disk_that_lets_no_file_be_made_is_told(
    store: Store, held: Blobs, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    upload = BlobUpload("blob_1")
    upload.append(b"x")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ProblemError) as refused:
            held.finish_blocking(upload)
    assert refused.value.problem_type is ProblemType.INSUFFICIENT_STORAGE
    put(store, held, b"again", "blob_2")
    assert held.read_blocking("blob_2", 0, 5) == b"again"


def test_each_blob_is_read_from_where_its_row_says_it_is(store: Store, held: Blobs, tmp_path: Path) -> None:
    put(store, held, b"in the first folder")
    put(store, Blobs(store.transactions), b"in the database", "blob_2")
    moved = Blobs(store.transactions, open_store(f"file://{tmp_path / 'another'}"))
    assert moved.read_blocking("blob_1", 0, 19) == b"in the first folder"
    assert moved.read_blocking("blob_2", 0, 15) == b"in the database"
    assert Blobs(store.transactions).read_blocking("blob_1", 0, 8) == b"in the f"


def test_a_local_file_is_opened_only_if_it_is_as_long_as_it_was(store: Store, held: Blobs, folder: Path) -> None:
    put(store, held, b"0123456789")
    put(store, Blobs(store.transactions), b"chunks", "blob_2")
    descriptor = held.open_local_blocking("blob_1")
    assert descriptor is not None
    assert os.pread(descriptor, 4, 3) == b"3456"
    os.close(descriptor)
    assert held.open_local_blocking("blob_2") is None
    assert held.open_local_blocking("blob_3") is None
    os.truncate(folder / "_1" / "blob_1", 9)
    with pytest.raises(BlobCorruptError, match="9 bytes instead of 10"):
        held.open_local_blocking("blob_1")
    Path(folder / "_1" / "blob_1").unlink()
    with pytest.raises(BlobCorruptError, match="missing"):
        held.open_local_blocking("blob_1")


@pytest.mark.parametrize("blob_id", ["../outside", "a/b", "..", "a\0b", "", "A", "a.b", "blob_" + "0" * 60])
def test_only_identifiers_become_names(store: Store, held: Blobs, blob_id: str) -> None:
    with pytest.raises(ValueError, match="not the identifier of a blob"):
        open_store("file:///tmp").read(blob_id, 0, 1)


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BlobStoreError, match=r"file:///.*/file/blobs.*cannot be written"):
        open_store(f"file://{tmp_path}/file/blobs").check()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("file://host/folder", "file:///absolute/folder"),
        ("file:folder", "file:///absolute/folder"),
        ("file:///folder?x=1", "file:///absolute/folder"),
        ("ftp://host/folder", "is not known"),
        ("blobs", "is not known"),
        ("s3:///prefix", "s3://BUCKET/PREFIX"),
        ("s3://key:secret@bucket/prefix", "credentials come from outside"),
    ],
)
def test_a_url_that_names_no_store_is_told_what_would_be_right(store: Store, url: str, told: str) -> None:
    with pytest.raises(BlobStoreError, match=told):
        check_location(url)
