"""The tables of uploads that go on after a cut, on both databases."""

from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from aggregator_service.domain.records import TaskState
from aggregator_service.domain.uploads import ModelTarget, Segment, UpdateTarget, UploadRecord
from aggregator_service.storage import rounds, runs, tasks, uploads
from aggregator_service.storage.rows import StaleRowError
from aggregator_service.storage.tables import blobs
from fl_protocol.rounds import RoundState
from fl_protocol.runs import RunState
from tests.support.records import DIGEST, NOON, later, round_record, run_record, store_blob, store_ground, task_record
from tests.support.store import REFUSED, Store

LATER = later(2**33)
"""Behind the clock of any database."""


def upload_record(upload_id: str = "upload_1", **changes: Any) -> UploadRecord:
    """Makes an upload of an update that has just begun."""
    record = UploadRecord(
        upload_id=upload_id,
        target=UpdateTarget("task_1", "client_1"),
        num_bytes=2**40,
        coding="byte-shuffle, zstd",
        digest=DIGEST,
        num_stored=0,
        append_epoch=0,
        completed=False,
        created_at=NOON,
        expires_at=LATER,
    )
    return replace(record, **changes)


def found(store: Store, upload_id: str = "upload_1") -> UploadRecord | None:
    return store.read(lambda tx: uploads.get(tx, upload_id))


def blob_ids(store: Store) -> set[str]:
    return set(store.read(lambda tx: tx.connection.execute(sa.select(blobs.c.blob_id)).scalars().all()))


def add_segment(store: Store, begins_at: int, blob_id: str) -> None:
    """Names the blob of an append to the first upload."""
    store.write(lambda tx: store_blob(tx, blob_id))
    store.write(lambda tx: uploads.add_segment(tx, "upload_1", Segment(begins_at, blob_id)))


@pytest.fixture(autouse=True)
def _ground(store: Store) -> None:
    store.write(lambda tx: store_ground(tx, num_clients=3))
    store.write(lambda tx: uploads.insert(tx, upload_record()))


def test_an_upload_comes_back_as_it_was_inserted(store: Store) -> None:
    of_model = upload_record("upload_2", target=ModelTarget("run_1"), digest=None, coding="identity")
    store.write(lambda tx: uploads.insert(tx, of_model))
    assert found(store) == upload_record()
    assert found(store, "upload_2") == of_model
    assert found(store, "upload_3") is None
    assert store.read(lambda tx: uploads.of_target(tx, upload_record().target)) == upload_record()
    assert store.read(lambda tx: uploads.of_target(tx, of_model.target)) == of_model
    assert store.read(lambda tx: uploads.of_target(tx, UpdateTarget("task_2", "client_2"))) is None


@pytest.mark.parametrize("target", [UpdateTarget("task_1", "client_1"), ModelTarget("run_1")])
def test_a_target_has_one_upload(store: Store, target: UpdateTarget | ModelTarget) -> None:
    if isinstance(target, ModelTarget):
        store.write(lambda tx: uploads.insert(tx, upload_record("upload_2", target=target)))
    with pytest.raises(REFUSED):
        store.write(lambda tx: uploads.insert(tx, upload_record("upload_3", target=target)))


def test_only_whoever_came_last_moves_the_offset_and_never_back(store: Store) -> None:
    first = store.write(lambda tx: uploads.take_over(tx, upload_record(), expires_at=later(1)))
    store.write(lambda tx: uploads.advance(tx, first, num_stored=10, expires_at=later(2)))
    second = store.write(lambda tx: uploads.take_over(tx, first, expires_at=later(3)))
    with pytest.raises(StaleRowError):
        store.write(lambda tx: uploads.advance(tx, first, num_stored=20, expires_at=later(4)))
    with pytest.raises(StaleRowError):
        store.write(lambda tx: uploads.advance(tx, second, num_stored=9, expires_at=later(4)))
    assert found(store) == upload_record(num_stored=10, append_epoch=2, expires_at=later(3))


def test_an_append_takes_the_place_of_one_that_has_stored_nothing(store: Store) -> None:
    add_segment(store, 0, "blob_a")
    add_segment(store, 7, "blob_b")
    add_segment(store, 7, "blob_c")
    segments = store.read(lambda tx: uploads.segments(tx, "upload_1"))
    assert segments == [Segment(0, "blob_a"), Segment(7, "blob_c")]
    assert store.read(lambda tx: uploads.num_segments(tx, "upload_1")) == 2
    assert blob_ids(store) == {"blob_1", "blob_a", "blob_c"}


def test_a_part_that_is_over_leaves_no_blob(store: Store) -> None:
    add_segment(store, 0, "blob_a")
    add_segment(store, 7, "blob_b")
    store.write(lambda tx: uploads.complete(tx, "upload_1"))
    assert blob_ids(store) == {"blob_1"}
    complete = upload_record(num_stored=2**40, append_epoch=1, completed=True)
    assert found(store) == complete
    store.write(lambda tx: uploads.remove(tx, "upload_1"))
    assert found(store) is None
    store.write(lambda tx: uploads.complete(tx, "upload_1"))
    store.write(lambda tx: uploads.remove(tx, "upload_1"))
    assert found(store) is None


def test_a_blob_that_is_handed_over_stays_and_only_whoever_came_last_hands_over(store: Store) -> None:
    add_segment(store, 0, "blob_a")
    newest = store.write(lambda tx: uploads.take_over(tx, upload_record(), expires_at=LATER))
    with pytest.raises(StaleRowError):
        store.write(lambda tx: uploads.hand_over(tx, upload_record()))
    store.write(lambda tx: uploads.hand_over(tx, newest))
    assert found(store) == replace(newest, completed=True, num_stored=newest.num_bytes)
    store.write(lambda tx: uploads.complete(tx, "upload_1"))
    store.write(lambda tx: uploads.remove(tx, "upload_1"))
    assert blob_ids(store) == {"blob_1", "blob_a"}


def test_uploads_are_removed_when_they_have_waited_too_long_or_in_vain(store: Store) -> None:
    def prepare(name: str, number: int) -> None:
        run_id, round_id, task_id = f"run_{name}", f"round_{name}", f"task_{name}"
        run_state = RunState.STOPPED if name == "stopped" else RunState.RUNNING
        round_state = RoundState.COMPLETED if name in ("closed", "answered") else RoundState.COLLECTING
        task_state = {"given_up": TaskState.GIVEN_UP, "answered": TaskState.DONE}.get(name, TaskState.OPEN)
        record = upload_record(
            f"upload_{name}",
            target=UpdateTarget(task_id, "client_1"),
            expires_at=NOON if name.startswith("old") else LATER,
            completed=name.endswith("complete"),
        )
        store.write(lambda tx: runs.insert(tx, run_record(run_id, state=run_state)))
        store.write(
            lambda tx: rounds.insert(tx, round_record(round_id, run_id=run_id, number=number, state=round_state))
        )
        task = task_record(task_id, run_id=run_id, round_id=round_id, state=task_state)
        store.write(lambda tx: tasks.insert(tx, task))
        store.write(lambda tx: uploads.insert(tx, record))

    names = ("open", "old", "old_complete", "complete", "stopped", "closed", "given_up", "answered")
    for number, name in enumerate(names, start=2):
        prepare(name, number)
    old_model = upload_record("upload_model", target=ModelTarget("run_1"), expires_at=NOON)
    store.write(lambda tx: uploads.insert(tx, old_model))
    add_segment(store, 0, "blob_a")
    assert store.write(uploads.remove_vain) == 6
    assert store.write(uploads.remove_vain) == 0
    left = {name for name in names if found(store, f"upload_{name}") is not None}
    assert left == {"open", "complete", "answered"}
    assert found(store, "upload_model") is None
    assert blob_ids(store) == {"blob_1", "blob_a"}
