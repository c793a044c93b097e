"""A blob that is written while it is computed: whole, in order, durable once finished, and gone if a write fails."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from aggregator_service.flow.context import Flow
from aggregator_service.flow.hashed_uploads import HashedUpload
from aggregator_service.storage.blobs import Blobs, open_store
from fl_protocol.problems import ProblemError
from tests.support.store import Store, flow_on

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

DATA = bytes(range(251)) * 40_000
"""10 MB."""


@pytest.fixture
def on_files(store: Store, tmp_path: Path) -> Iterator[Flow]:
    async def flow() -> Flow:
        return flow_on(store)

    place = open_store(f"file://{tmp_path / 'blobs'}")
    place.check()
    blobs = Blobs(store.transactions, place)
    yield replace(anyio.run(flow), blobs=blobs)
    blobs.close()


def write_all(written: HashedUpload, *, piece: int) -> None:
    for begin in range(0, len(DATA), piece):
        written.write(DATA[begin : begin + piece])
    written.finish()


@pytest.mark.parametrize("piece", [100_003, 1 << 20, 3_000_000, len(DATA)])
def test_what_was_written_is_there_with_its_digest(on_files: Flow, store: Store, piece: int) -> None:
    written = HashedUpload(on_files)
    write_all(written, piece=piece)
    assert written.digest == f"sha256:{hashlib.sha256(DATA).hexdigest()}"
    assert written.upload.num_durable == len(DATA)
    store.write(lambda tx: on_files.blobs.seal(tx, written.upload))
    assert on_files.blobs.read_blocking(written.upload.blob_id, 0, len(DATA)) == DATA


def test_a_write_that_fails_is_told_at_the_latest_when_all_is_to_be_durable(
    on_files: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwritev", fail)
    written = HashedUpload(on_files)
    with pytest.raises(ProblemError):
        write_all(written, piece=1 << 20)
    written.close()
    on_files.blobs.discard_blocking(written.upload)
    monkeypatch.undo()
    anyio.run(on_files.blobs.remove_bytes)
    files = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert written.upload.blob_id not in {path.name for path in files}
    assert not any(path.stat().st_size for path in files)
