"""The tables of uploads that go on after a cut: one for each task, or for a run's initial model, and their segments."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.records import TaskState
from aggregator_service.domain.uploads import ModelTarget, Segment, UpdateTarget, UploadRecord
from aggregator_service.storage.blobs import remove_blobs
from aggregator_service.storage.rows import change_one
from aggregator_service.storage.tables import rounds, runs, tasks
from aggregator_service.storage.transactions import ReadTx, WriteTx
from aggregator_service.storage.upload_tables import upload_segments, uploads
from fl_protocol.rounds import RoundKind, RoundState
from fl_protocol.runs import FINISHED_RUN_STATES

Target = UpdateTarget | ModelTarget

_GET: Final = sa.select(uploads).where(uploads.c.upload_id == sa.bindparam("upload_id"))
_SEGMENTS: Final = (
    sa.select(upload_segments)
    .where(upload_segments.c.upload_id == sa.bindparam("upload_id"))
    .order_by(upload_segments.c.begins_at)
)

# Somebody may be appending at this moment, and has then locked the row or just put its end off.
_VAIN: Final = (
    sa.select(uploads.c.upload_id)
    .select_from(
        uploads.outerjoin(tasks, tasks.c.task_id == uploads.c.task_id)
        .outerjoin(rounds, rounds.c.round_id == tasks.c.round_id)
        .outerjoin(runs, runs.c.run_id == tasks.c.run_id)
    )
    .limit(100)
    .with_for_update(skip_locked=True, of=uploads)
)


def insert(tx: WriteTx, upload: UploadRecord) -> None:
    """Adds an upload; the database itself refuses a second one for the same target."""
    target: dict[str, str] = (
        {"task_id": upload.target.task_id, "client_id": upload.target.client_id}
        if isinstance(upload.target, UpdateTarget)
        else {"run_id": upload.target.run_id}
    )
    tx.connection.execute(
        sa.insert(uploads).values(
            **target,
            upload_id=upload.upload_id,
            num_bytes=upload.num_bytes,
            coding=upload.coding,
            digest=upload.digest,
            num_stored=upload.num_stored,
            append_epoch=upload.append_epoch,
            completed=upload.completed,
            created_at=upload.created_at,
            expires_at=upload.expires_at,
        )
    )


def get(tx: ReadTx, upload_id: str) -> UploadRecord | None:
    """Gives an upload."""
    row = tx.connection.execute(_GET, {"upload_id": upload_id}).one_or_none()
    return None if row is None else _record(row)


def lock(tx: WriteTx, upload_id: str) -> UploadRecord | None:
    """Does the same, and keeps others from changing it until the transaction ends."""
    row = tx.connection.execute(_GET.with_for_update(), {"upload_id": upload_id}).one_or_none()
    return None if row is None else _record(row)


def of_target(tx: ReadTx, target: Target) -> UploadRecord | None:
    """Gives the upload for a task or a run's initial model."""
    chosen = (
        uploads.c.task_id == target.task_id if isinstance(target, UpdateTarget) else uploads.c.run_id == target.run_id
    )
    row = tx.connection.execute(sa.select(uploads).where(chosen)).one_or_none()
    return None if row is None else _record(row)


def take_over(tx: WriteTx, upload: UploadRecord, *, expires_at: datetime) -> UploadRecord:
    """Lets nobody who came before write any more; the upload's row must be locked."""
    epoch = upload.append_epoch + 1
    tx.connection.execute(
        sa.update(uploads)
        .where(uploads.c.upload_id == upload.upload_id)
        .values(append_epoch=epoch, expires_at=expires_at)
    )
    return replace(upload, append_epoch=epoch, expires_at=expires_at)


def advance(tx: WriteTx, upload: UploadRecord, *, num_stored: int, expires_at: datetime) -> None:
    """Notes how many bytes are durable; raises StaleRowError if somebody has taken over from who writes."""
    change_one(
        tx,
        sa.update(uploads)
        .where(
            uploads.c.upload_id == upload.upload_id,
            uploads.c.append_epoch == upload.append_epoch,
            uploads.c.num_stored <= num_stored,
        )
        .values(num_stored=num_stored, expires_at=expires_at),
    )


def add_segment(tx: WriteTx, upload_id: str, segment: Segment) -> None:
    """Names the blob of an append, in place of one that has begun there and of which no byte was stored."""
    _remove_segments(
        tx, sa.and_(upload_segments.c.upload_id == upload_id, upload_segments.c.begins_at >= segment.begins_at)
    )
    tx.connection.execute(
        sa.insert(upload_segments).values(upload_id=upload_id, begins_at=segment.begins_at, blob_id=segment.blob_id)
    )


def num_segments(tx: ReadTx, upload_id: str) -> int:
    """Counts the segments of an upload."""
    counted = sa.select(sa.func.count()).where(upload_segments.c.upload_id == upload_id)
    number: int = tx.connection.execute(counted).scalar_one()
    return number


def segments(tx: ReadTx, upload_id: str) -> Sequence[Segment]:
    """Lists the segments of an upload in their order."""
    found = tx.connection.execute(_SEGMENTS, {"upload_id": upload_id})
    return [Segment(row.begins_at, row.blob_id) for row in found]


def hand_over(tx: WriteTx, upload: UploadRecord) -> None:
    """Ends an upload whose only blob somebody else names from now on; raises StaleRowError if it was taken over."""
    change_one(
        tx,
        sa.update(uploads)
        .where(uploads.c.upload_id == upload.upload_id, uploads.c.append_epoch == upload.append_epoch)
        .values(completed=True, num_stored=uploads.c.num_bytes),
    )
    tx.connection.execute(sa.delete(upload_segments).where(upload_segments.c.upload_id == upload.upload_id))


def complete(tx: WriteTx, upload_id: str) -> None:
    """Notes that a body was taken in, and removes its part; nothing happens if the upload is gone."""
    _remove_segments(tx, upload_segments.c.upload_id == upload_id)
    tx.connection.execute(
        sa.update(uploads)
        .where(uploads.c.upload_id == upload_id)
        .values(completed=True, num_stored=uploads.c.num_bytes, append_epoch=uploads.c.append_epoch + 1)
    )


def remove(tx: WriteTx, upload_id: str) -> None:
    """Removes an upload with its bytes, if it is there."""
    _remove_segments(tx, upload_segments.c.upload_id == upload_id)
    tx.connection.execute(sa.delete(uploads).where(uploads.c.upload_id == upload_id))


def remove_vain(tx: WriteTx) -> int:
    """Removes up to 100 uploads that have waited too long, or whose body nobody would take any more; gives how many."""
    found = tx.connection.execute(_VAIN.where(_is_vain(tx.now()))).scalars().all()
    for upload_id in found:
        remove(tx, upload_id)
    return len(found)


def _is_vain(now: datetime) -> sa.ColumnElement[bool]:
    finished = [state.value for state in FINISHED_RUN_STATES]
    is_late = sa.and_(
        tasks.c.state == TaskState.OPEN.value,
        sa.or_(
            runs.c.state.in_(finished),
            sa.and_(rounds.c.kind == RoundKind.SYNCHRONOUS.value, rounds.c.state != RoundState.COLLECTING.value),
        ),
    )
    is_unwanted = sa.or_(is_late, tasks.c.state == TaskState.GIVEN_UP.value)
    return sa.or_(uploads.c.expires_at <= now, sa.and_(uploads.c.completed.is_(False), is_unwanted))


def _remove_segments(tx: WriteTx, chosen: sa.ColumnElement[bool]) -> None:
    found = tx.connection.execute(sa.select(upload_segments.c.blob_id).where(chosen)).scalars().all()
    if found:
        tx.connection.execute(sa.delete(upload_segments).where(chosen))
        remove_blobs(tx, *found)


def _record(row: sa.Row[Any]) -> UploadRecord:
    target: Target = ModelTarget(row.run_id) if row.task_id is None else UpdateTarget(row.task_id, row.client_id)
    return UploadRecord(
        upload_id=row.upload_id,
        target=target,
        num_bytes=row.num_bytes,
        coding=row.coding,
        digest=row.digest,
        num_stored=row.num_stored,
        append_epoch=row.append_epoch,
        completed=row.completed,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
