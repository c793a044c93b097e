"""The renditions table: found again by their key, one of each, and forgotten once they are old and not the newest's."""

import pytest
import sqlalchemy as sa

from aggregator_service.domain.records import RenditionKey, RenditionKind, RenditionRecord, TensorFile
from aggregator_service.storage import models, renditions, runs
from aggregator_service.storage.tables import blobs
from aggregator_service.storage.transactions import WriteTx
from tests.support.records import DIGEST, NOON, later, model_record, store_blob, store_ground
from tests.support.store import REFUSED, Store

ZSTD = RenditionKey("run_1", 0, RenditionKind.ZSTD)
DELTA = RenditionKey("run_1", 1, RenditionKind.DELTA, 0)


@pytest.fixture(autouse=True)
def versions(store: Store) -> None:
    def body(tx: WriteTx) -> None:
        store_ground(tx)
        for version in range(3):
            models.insert(tx, model_record(version))
        runs.set_progress(tx, "run_1", current_round=2, latest_version=2)

    store.write(body)


def _made(key: RenditionKey, blob_id: str | None, *, at: float = 0.0) -> RenditionRecord:
    file = None if blob_id is None else TensorFile(blob_id, DIGEST, 2**40)
    return RenditionRecord(key, file, later(at))


def _insert(store: Store, *made: RenditionRecord) -> None:
    def body(tx: WriteTx) -> None:
        for rendition in made:
            if rendition.file is not None:
                store_blob(tx, rendition.file.blob_id)
            renditions.insert(tx, rendition)

    store.write(body)


def test_a_rendition_is_found_by_its_whole_key_and_is_the_only_one(store: Store) -> None:
    made = [_made(ZSTD, "coded"), _made(DELTA, None)]
    _insert(store, *made)
    for one in made:
        assert store.read(lambda tx, one=one: renditions.get(tx, one.key)) == one  # type: ignore[misc]
        assert store.write(lambda tx, one=one: renditions.lock(tx, one.key)) == one  # type: ignore[misc]
    with pytest.raises(REFUSED):
        store.write(lambda tx: renditions.insert(tx, made[1]))
    for other in (RenditionKey("run_1", 1, RenditionKind.ZSTD), RenditionKey("run_1", 1, RenditionKind.DELTA, 1)):
        assert store.read(lambda tx, key=other: renditions.get(tx, key)) is None  # type: ignore[misc]


def test_old_renditions_go_with_their_bytes_except_the_newest_versions(store: Store) -> None:
    newest = RenditionKey("run_1", 2, RenditionKind.DELTA, 1)
    young = RenditionKey("run_1", 0, RenditionKind.CONTROL_ZSTD)
    _insert(store, _made(ZSTD, "old"), _made(DELTA, None), _made(newest, "newest"), _made(young, "young", at=9))
    assert store.write(lambda tx: renditions.remove_old(tx, made_before=NOON)) == 0
    assert store.write(lambda tx: renditions.remove_old(tx, made_before=later(5))) == 2
    kept = [key for key in (ZSTD, DELTA, newest, young) if store.read(lambda tx, key=key: renditions.get(tx, key))]  # type: ignore[misc]
    assert kept == [newest, young]
    left = store.read(lambda tx: tx.connection.execute(sa.select(blobs.c.blob_id)).scalars().all())
    assert {"newest", "young"} <= set(left)
    assert "old" not in left
