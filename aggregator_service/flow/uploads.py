"""Uploads that go on after a cut: created, appended to, asked about and removed; the offset that is told is durable.

The part of a body is a row and a blob for each append. A checkpoint makes the blob's bytes durable first, and then the
row says how many they are, unless somebody has taken over meanwhile: an append that was believed dead writes into its
own blob and can neither change nor add a byte.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
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
    check_end,
    check_owner,
)
from aggregator_service.flow import initial_model, intake
from aggregator_service.flow.appends import RunningAppend
from aggregator_service.flow.context import Flow
from aggregator_service.flow.initial_model import StoredModel
from aggregator_service.flow.reception import Body, ContentCoding
from aggregator_service.storage import asks, uploads
from aggregator_service.storage.blobs import BlobCorruptError, BlobUpload
from aggregator_service.storage.rows import StaleRowError
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.problems import RETRYABLE, ProblemError, ProblemType

_CHECKPOINT_NUM_BYTES: Final = 64 << 20
"""How much of an append a killed process may lose; none of it was ever told to be stored."""
_PIECE_NUM_BYTES: Final = 4 << 20
_KEEP: Final = RETRYABLE - {ProblemType.DIGEST_MISMATCH}
"""Refusals of a whole body after which its bytes are still good."""


@dataclass(frozen=True, slots=True)
class Announced:
    """What a body will be: its length on the wire, its coding, and the digest of what it decodes to."""

    num_bytes: int
    coding: ContentCoding
    digest: str | None


@dataclass(frozen=True, slots=True)
class Append:
    """A request's bytes and where they belong; `num_bytes` is what it announces of itself, if it does."""

    offset: int
    is_last: bool
    num_bytes: int | None
    chunks: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Partial:
    """More bytes are stored, and more are to come."""

    num_stored: int


Completed = Accepted | StoredModel


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
        record = check_owner(uploads.lock(tx, upload_id), upload_id=upload_id, client_id=client_id)
        uploads.take_over(tx, record)
        return record

    async with flow.appends.only(upload_id):
        return await flow.transactions.write("look_at_upload", body)


async def remove(flow: Flow, upload_id: str, *, client_id: str | None) -> None:
    """Removes an upload with its bytes."""

    def body(tx: WriteTx) -> None:
        check_owner(uploads.lock(tx, upload_id), upload_id=upload_id, client_id=client_id)
        uploads.remove(tx, upload_id)

    async with flow.appends.only(upload_id):
        await flow.transactions.write("remove_upload", body)


async def append(flow: Flow, upload_id: str, request: Append, *, client_id: str | None) -> Partial | Completed:
    """Stores what follows; the last bytes are answered as the PUT of the whole body is.

    Raises `mismatching-upload-offset`, `completed-upload`, and what the PUT raises: then the part is removed, unless
    the same bytes may be taken later. Whatever arrived of a body that breaks off is stored.
    """
    async with flow.appends.only(upload_id) as running:
        record, stored = await _claim(flow, upload_id, request, client_id=client_id)
        if record.completed:
            return await _outcome(flow, record)
        await _check_wanted(flow, record)
        num_stored = await _Appending(flow, record, stored).store(request, running)
    if request.is_last:
        return await flow.completions.run(upload_id, lambda: _complete(flow, upload_id))
    return Partial(num_stored)


async def _claim(
    flow: Flow, upload_id: str, request: Append, *, client_id: str | None
) -> tuple[UploadRecord, BlobUpload]:
    """Takes an upload over from whoever appended before, and begins the blob of this append."""
    blob_id = flow.new_id("blob")

    def body(tx: WriteTx) -> tuple[UploadRecord, BlobUpload]:
        record = check_owner(uploads.lock(tx, upload_id), upload_id=upload_id, client_id=client_id)
        check_append(record, offset=request.offset, num_bytes=request.num_bytes, is_last=request.is_last)
        upload = BlobUpload(blob_id)
        if record.completed:
            return record, upload
        uploads.take_over(tx, record)
        if record.num_stored < record.num_bytes:
            _check_num_segments(tx, upload_id)
            flow.blobs.reserve(tx, upload)
            uploads.add_segment(tx, upload_id, Segment(record.num_stored, blob_id))
        return replace(record, append_epoch=record.append_epoch + 1), upload

    return await flow.transactions.write("claim_upload", body)


def _check_num_segments(tx: ReadTx, upload_id: str) -> None:
    if uploads.num_segments(tx, upload_id) >= MAX_SEGMENTS:
        raise ProblemError(
            ProblemType.STATE_CONFLICT,
            f"the upload is made of {MAX_SEGMENTS} appends already; begin a new one and append more at a time",
        )


class _Appending:
    """Stores one request's bytes behind those that are there."""

    def __init__(self, flow: Flow, record: UploadRecord, upload: BlobUpload) -> None:
        self._flow = flow
        self._record = record
        self._upload = upload
        self._num_noted = 0

    @property
    def _end(self) -> int:
        return self._record.num_stored + self._upload.num_bytes

    async def store(self, request: Append, running: RunningAppend) -> int:
        """Stores a body, or what arrives of it, and gives where it ends; then raises what has ended it too early."""
        try:
            async for chunk in running.arriving(request.chunks):
                await self._take(chunk)
        except StaleRowError:
            raise _taken_over() from None
        except BaseException:
            await asyncio.shield(self._checkpoint_if_possible())
            raise
        await self._checkpoint()
        failpoints.reach("uploads.checkpointed")
        if running.error is not None:
            raise running.error
        if running.is_stopped:
            raise _taken_over()
        check_end(self._record, end=self._end, is_last=request.is_last)
        return self._end

    async def _take(self, chunk: bytes) -> None:
        check_end(self._record, end=self._end + len(chunk), is_last=False)
        self._upload.append(chunk)
        if self._upload.is_due:
            await self._flow.blobs.flush(self._upload)
            failpoints.reach("uploads.chunks_stored")
        if self._upload.num_bytes - self._num_noted >= _CHECKPOINT_NUM_BYTES:
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        """Makes what has arrived durable and notes how much it is; raises StaleRowError where somebody took over."""
        if self._upload.num_bytes == self._num_noted:
            return
        end, num_bytes = self._end, self._upload.num_bytes

        def note(tx: WriteTx) -> None:
            uploads.advance(tx, self._record, num_stored=end, expires_at=tx.now() + LIFETIME)

        await self._flow.blobs.checkpoint(self._upload, note)
        self._num_noted = num_bytes

    async def _checkpoint_if_possible(self) -> None:
        """Does the same for an append that has failed, whose own failure is told."""
        with suppress(StaleRowError, ProblemError, OSError):
            await self._checkpoint()


def _taken_over() -> ProblemError:
    return ProblemError(
        ProblemType.STATE_CONFLICT, "a newer request has taken the upload over; ask for its offset and go on there"
    )


async def _check_wanted(flow: Flow, record: UploadRecord) -> None:
    """Refuses more bytes of a body that would be refused when it is whole, and removes what there is of it."""
    try:
        if isinstance(record.target, UpdateTarget):
            await _asked(flow, record.target)
        else:
            await initial_model.check_wanted(flow, record.target.run_id)
    except ProblemError as refusal:
        await _drop_if_refused(flow, record.upload_id, refusal)
        raise


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
        raise _taken_over()
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
