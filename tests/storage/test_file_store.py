"""Blobs in files: private, synced before a row names them, read wherever the setting has moved, never a way out."""

import os
import stat
from collections.abc import Iterator
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
from aggregator_service.storage.blobs.ready import ROWS_AHEAD
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
    (file,) = [path for path in folder.rglob("*") if path.is_file()]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, file.parent)} == {0o700}


def test_a_blob_is_synced_with_its_folder_before_a_row_may_name_it(
    store: Store, held: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    for name in ("fsync", "fdatasync"):
        sync = getattr(os, name)

        def noted(descriptor: int, sync: object = sync) -> None:
            synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
            sync(descriptor)  # type: ignore[operator]

        monkeypatch.setattr(os, name, noted)
    upload = BlobUpload("blob_1a")
    for number in range(5):
        upload.append(bytes([number]) * CHUNK_NUM_BYTES)
        if upload.is_due:
            held.flush_blocking(upload)
    held.finish_blocking(upload)
    # The folder that holds the new folder, the file, the folder that holds its name, and then what was added to it.
    assert synced == ["blobs", "blob_1a", "1a", "blob_1a"]


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
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {upload.blob_id for upload in uploads}
    left = store.read(lambda tx: tx.connection.execute(sa.select(blobs.c.blob_id).where(~blobs.c.sealed)).all())
    assert len(left) == 2 * (ROWS_AHEAD + 1) - 40
    assert anyio.run(held.sweep, later(1)) == len(left)


def test_a_full_disk_is_told_and_names_nothing(store: Store, held: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_given: object) -> int:
        raise OSError(28, "No space left on device")

    upload = BlobUpload("blob_1")
    upload.append(b"x")
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ProblemError) as refused:
        held.finish_blocking(upload)
    assert refused.value.problem_type is ProblemType.INSUFFICIENT_STORAGE
    with pytest.raises(ValueError, match="before it was finished"):
        store.write(lambda tx: held.seal(tx, upload))


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
