"""Uploads that go on after a cut: created, appended to, asked about and removed; the offset that is told is durable.

The part of a body is a row and a blob for each append. A checkpoint makes the blob's bytes durable first, and then the
row says how many they are, unless somebody has taken over meanwhile: an append that was believed dead writes into its
own blob and can neither change nor add a byte.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from aggregator_service import failpoints
from aggregator_service.domain.records import ModelRecord
from aggregator_service.domain.tally import Accepted
from aggregator_service.domain.uploads import (
    LIFETIME,
    MAX_SEGMENTS,
    ModelTarget,
    Segment,
    UpdateTarget,
    UploadRecord,
    check_append,
    check_owner,
)
from aggregator_service.flow import initial_model, intake
from aggregator_service.flow.appending import Append, Appending, Checks, Completed, taken_over
from aggregator_service.flow.context import Flow
from aggregator_service.flow.initial_model import StoredModel
from aggregator_service.flow.reception import Body, ContentCoding
from aggregator_service.storage import asks, uploads
from aggregator_service.storage.blobs import BlobCorruptError, BlobUpload
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.problems import RETRYABLE, ProblemError, ProblemType

_PIECE_NUM_BYTES: Final = 2 << 20
_KEEP: Final = RETRYABLE - {ProblemType.DIGEST_MISMATCH}
"""Refusals of a whole body after which its bytes are still good."""


@dataclass(frozen=True, slots=True)
class Announced:
    """What a body will be: its length on the wire, its coding, and the digest of what it decodes to."""

    num_bytes: int
    coding: ContentCoding
    digest: str | None


@dataclass(frozen=True, slots=True)
class Partial:
    """More bytes are stored, and more are to come."""

    num_stored: int


async def create(flow: Flow, target: UpdateTarget | ModelTarget, announced: Announced) -> UploadRecord:
    """Begins an upload in place of the one before for the same target."""
    earlier = await flow.transactions.read_one("find_upload", lambda tx: uploads.of_target(tx, target))
    upload_id = flow.new_id("upload")

    def body(tx: WriteTx) -> UploadRecord:
        now = tx.now()
        made = UploadRecord(
            upload_id=upload_id,
            target=target,
            num_bytes=announced.num_bytes,
            coding=announced.coding.value,
            digest=announced.digest,
            num_stored=0,
            append_epoch=0,
            completed=False,
            created_at=now,
            expires_at=now + LIFETIME,
        )
        if (before := uploads.of_target(tx, target)) is not None:
            uploads.remove(tx, before.upload_id)
        uploads.insert(tx, made)
        return made

    if earlier is None:
        return await flow.transactions.write("create_upload", body)
    async with flow.appends.only(earlier.upload_id):
        return await flow.transactions.write("create_upload", body)


async def look(flow: Flow, upload_id: str, *, client_id: str | None) -> UploadRecord:
    """Tells how much is stored, once nobody can add to it any more but whoever appends next."""

    def body(tx: WriteTx) -> UploadRecord:
        record = _locked(tx, upload_id, client_id=client_id)
        return uploads.take_over(tx, record, expires_at=tx.now() + LIFETIME)

    async with flow.appends.only(upload_id):
        return await flow.transactions.write("look_at_upload", body)


async def remove(flow: Flow, upload_id: str, *, client_id: str | None) -> None:
    """Removes an upload with its bytes."""

    def body(tx: WriteTx) -> None:
        _locked(tx, upload_id, client_id=client_id)
        uploads.remove(tx, upload_id)

    async with flow.appends.only(upload_id):
        await flow.transactions.write("remove_upload", body)


async def forget_vain(flow: Flow) -> int:
    """Removes uploads that have waited too long, or whose body nobody would take any more; gives how many."""
    total = 0
    while removed := await flow.transactions.write("forget_uploads", uploads.remove_vain):
        total += removed
    return total


async def append(flow: Flow, upload_id: str, request: Append, *, client_id: str | None) -> Partial | Completed:
    """Stores what follows; the last bytes are answered as the PUT of the whole body is.

    Raises `mismatching-upload-offset`, `completed-upload`, and what the PUT raises: then the part is removed, unless
    the same bytes may be taken later. Whatever arrived of a body that breaks off is stored.
    """
    async with flow.appends.only(upload_id) as running:
        record, stored = await _claim(flow, upload_id, request, client_id=client_id)
        if record.completed:
            return await _outcome(flow, record)
        appending = Appending(flow, record, stored, await _checks(flow, record, request, stored))
        try:
            num_stored = await appending.store(request, running)
            completed = await appending.commit()
        except ProblemError as refusal:
            if appending.is_judged:
                await _drop_if_refused(flow, upload_id, refusal)
            raise
    if completed is not None:
        return await _ended(flow, upload_id, completed)
    if request.is_last:
        return await flow.completions.run(upload_id, lambda: _complete(flow, upload_id))
    return Partial(num_stored)


async def _ended(flow: Flow, upload_id: str, completed: Completed) -> Completed:
    """Removes the part of a body that was taken in, unless what was taken in is the part itself."""
    failpoints.reach("uploads.taken")
    if not completed.is_new:
        await flow.transactions.write("complete_upload", lambda tx: uploads.complete(tx, upload_id))
    return completed


async def _claim(
    flow: Flow, upload_id: str, request: Append, *, client_id: str | None
) -> tuple[UploadRecord, BlobUpload]:
    """Takes an upload over from whoever appended before, and begins the blob of this append."""
    blob_id = flow.new_id("blob")

    def body(tx: WriteTx) -> tuple[UploadRecord, BlobUpload]:
        record = _locked(tx, upload_id, client_id=client_id)
        check_append(record, offset=request.offset, num_bytes=request.num_bytes, is_last=request.is_last)
        upload = BlobUpload(blob_id)
        if record.completed:
            return record, upload
        mine = uploads.take_over(tx, record, expires_at=tx.now() + LIFETIME)
        if record.num_stored < record.num_bytes:
            _check_num_segments(tx, upload_id)
            flow.blobs.reserve(tx, upload)
            uploads.add_segment(tx, upload_id, Segment(record.num_stored, blob_id))
        return mine, upload

    return await flow.transactions.write("claim_upload", body)


def _locked(tx: WriteTx, upload_id: str, *, client_id: str | None) -> UploadRecord:
    return check_owner(uploads.lock(tx, upload_id), upload_id=upload_id, client_id=client_id, now=tx.now())


def _check_num_segments(tx: ReadTx, upload_id: str) -> None:
    if uploads.num_segments(tx, upload_id) >= MAX_SEGMENTS:
        raise ProblemError(
            ProblemType.STATE_CONFLICT,
            f"the upload is made of {MAX_SEGMENTS} appends already; begin a new one and append more at a time",
        )


async def _checks(flow: Flow, record: UploadRecord, request: Append, upload: BlobUpload) -> Checks | None:
    """Gives what checks a body that comes whole; None for one in several appends, or that must be decompressed.

    Refuses more bytes of a body that would be refused when it is whole, and removes what there is of it.
    """
    try:
        checks = await _wanted(flow, record, upload)
    except ProblemError as refusal:
        await _drop_if_refused(flow, record.upload_id, refusal)
        raise
    is_plain = record.coding == ContentCoding.IDENTITY.value
    return checks if is_plain and request.is_last and request.offset == 0 else None


async def _wanted(flow: Flow, record: UploadRecord, upload: BlobUpload) -> Checks | None:
    if isinstance(record.target, UpdateTarget):
        ask = await _asked(flow, record.target)
        return None if ask.accepted is not None else intake.UpdateInParts(flow, ask, upload)
    run, earlier = await initial_model.look_up(flow, record.target.run_id)
    return None if earlier is not None else initial_model.ModelInParts(flow, run, upload)


async def _asked(flow: Flow, target: UpdateTarget) -> intake.Ask:
    found = await flow.transactions.read("find_ask", lambda tx: asks.of_task(tx, target.task_id))
    return await intake.look_up(flow, found, task_id=target.task_id, client_id=target.client_id)


async def _drop_if_refused(flow: Flow, upload_id: str, refusal: ProblemError) -> None:
    if refusal.problem_type not in _KEEP:
        await flow.transactions.write("drop_upload", lambda tx: uploads.remove(tx, upload_id))


async def _complete(flow: Flow, upload_id: str) -> Completed:
    """Hands a body that is whole to those who take the PUT's, and then removes the part."""
    record = await flow.transactions.read_one("get_upload", lambda tx: uploads.get(tx, upload_id))
    if record is None:
        raise taken_over()
    if record.completed:
        return await _outcome(flow, record)
    failpoints.reach("uploads.completing")
    try:
        completed = await _take(flow, record)
    except BlobCorruptError as damage:
        raise await _damaged(flow, upload_id, damage) from damage
    except ProblemError as refusal:
        await _drop_if_refused(flow, upload_id, refusal)
        raise
    failpoints.reach("uploads.taken")
    await flow.transactions.write("complete_upload", lambda tx: uploads.complete(tx, upload_id))
    return completed


async def _take(flow: Flow, record: UploadRecord) -> Completed:
    body = Body(chunks=_stored(flow, record), coding=ContentCoding(record.coding), digest=record.digest)
    if isinstance(record.target, ModelTarget):
        return await initial_model.store_initial_model(flow, record.target.run_id, body)
    return await intake.take_update(flow, await _asked(flow, record.target), body)


async def _damaged(flow: Flow, upload_id: str, damage: BlobCorruptError) -> ProblemError:
    """Removes a part that cannot be read any more, as it is when it was removed while it was read."""
    await flow.transactions.write("drop_upload", lambda tx: uploads.remove(tx, upload_id))
    return ProblemError(ProblemType.UNAVAILABLE, f"the stored part of the body is lost ({damage}); begin a new upload")


async def _stored(flow: Flow, record: UploadRecord) -> AsyncIterator[bytes]:
    """Yields a body from the blobs of its appends."""
    found = await flow.transactions.read_one("list_segments", lambda tx: uploads.segments(tx, record.upload_id))
    ends = [*(segment.begins_at for segment in found[1:]), record.num_bytes]
    for segment, end in zip(found, ends, strict=True):
        num_bytes = end - segment.begins_at
        for begin in range(0, num_bytes, _PIECE_NUM_BYTES):
            last = min(begin + _PIECE_NUM_BYTES, num_bytes)
            yield await flow.blobs.threaded(flow.blobs.read_blocking, segment.blob_id, begin, last)


async def _outcome(flow: Flow, record: UploadRecord) -> Completed:
    """Gives what was answered when the body was taken in."""
    target = record.target
    if isinstance(target, UpdateTarget):
        ask = await _asked(flow, target)
        if ask.accepted is not None:
            return Accepted(ask.accepted, ask.round, is_new=False)
    else:
        stored: ModelRecord | None = await initial_model.stored_model(flow, target.run_id)
        if stored is not None:
            return StoredModel(stored, is_new=False)
    raise ProblemError(ProblemType.COMPLETED_UPLOAD, "the upload is complete, and what it brought is gone")
