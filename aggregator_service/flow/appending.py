"""Stores the bytes of one append, and notes as it goes how many of them are durable."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from aggregator_service import failpoints
from aggregator_service.domain.tally import Accepted
from aggregator_service.domain.uploads import LIFETIME, UploadRecord, check_end
from aggregator_service.flow.appends import RunningAppend
from aggregator_service.flow.context import Flow
from aggregator_service.flow.initial_model import StoredModel
from aggregator_service.flow.reception import Receiver, gathered
from aggregator_service.storage import uploads
from aggregator_service.storage.blobs import BlobUpload
from aggregator_service.storage.rows import StaleRowError
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.problems import ProblemError, ProblemType

_CHECKPOINT_NUM_BYTES: Final = 64 << 20
"""How much of an append a killed process may lose; none of it was ever told to be stored."""

Completed = Accepted | StoredModel


@dataclass(frozen=True, slots=True)
class Append:
    """A request's bytes and where they belong; `num_bytes` is what it announces of itself, if it does."""

    offset: int
    is_last: bool
    num_bytes: int | None
    chunks: AsyncIterator[bytes]


class Checks(Protocol):
    """Checks a body that comes whole, while its receiver stores it, and then takes it in where it lies."""

    receiver: Receiver

    async def commit(self, digest: str, part: UploadRecord) -> Completed:
        """Takes the body in and ends its upload, or raises what is wrong with it, and then changes nothing."""


class Appending:
    """Puts one request's bytes behind those that are there; without checks nobody looks at them yet.

    `is_judged` tells that what it has raised is a judgement on the body, not on the request that brought it.
    """

    def __init__(self, flow: Flow, record: UploadRecord, upload: BlobUpload, checks: Checks | None) -> None:
        self._flow = flow
        self._record = record
        self._upload = upload
        self._checks = checks
        self._num_noted = 0
        self.is_judged = False

    async def store(self, request: Append, running: RunningAppend) -> int:
        """Stores a body, or what arrives of it, and gives where it ends; then raises what has ended it too early."""
        try:
            async for data in gathered(running.arriving(request.chunks)):
                await self._take(data)
        except BaseException:
            if not self.is_judged:
                await asyncio.shield(self._checkpoint_if_possible())
            raise
        if self._is_whole(running):
            # The transaction that takes the body in notes that it is stored, too.
            await self._fenced(self._flow.blobs.finish(self._upload))
            return self._end
        await self._checkpoint()
        failpoints.reach("uploads.checkpointed")
        if running.error is not None:
            raise running.error
        if running.is_stopped:
            raise taken_over()
        check_end(self._record, end=self._end, is_last=request.is_last)
        return self._end

    async def commit(self) -> Completed | None:
        """Takes in a body that was checked while it came; None where it was not."""
        if self._checks is None:
            return None
        try:
            digest = self._checks.receiver.close(self._record.digest)
            return await self._checks.commit(digest, self._record)
        except StaleRowError:
            raise taken_over() from None
        except BaseException as error:
            self.is_judged = isinstance(error, ProblemError)
            await asyncio.shield(self._checkpoint_if_possible())
            raise

    def _is_whole(self, running: RunningAppend) -> bool:
        is_undisturbed = running.error is None and not running.is_stopped
        return self._checks is not None and is_undisturbed and self._end == self._record.num_bytes

    @property
    def _end(self) -> int:
        return self._record.num_stored + self._upload.num_bytes

    async def _take(self, data: bytes) -> None:
        check_end(self._record, end=self._end + len(data), is_last=False)
        if self._checks is None:
            self._upload.append(data)
        else:
            await self._check(self._checks.receiver, data)
        if self._upload.is_due:
            await self._fenced(self._flow.blobs.flush(self._upload))
            failpoints.reach("uploads.chunks_stored")
        if self._upload.num_bytes - self._num_noted >= _CHECKPOINT_NUM_BYTES:
            await self._checkpoint()

    async def _check(self, receiver: Receiver, data: bytes) -> None:
        taking = asyncio.ensure_future(asyncio.to_thread(receiver.take, data))
        try:
            await asyncio.shield(taking)
        except ProblemError:
            self.is_judged = True
            raise
        except asyncio.CancelledError:
            # What it was taking is there before anybody looks at how much there is.
            await asyncio.wait([taking])
            raise

    async def _checkpoint(self) -> None:
        """Makes what has arrived durable and notes how much it is; raises what `taken_over` gives if it is too late."""
        if self._upload.num_bytes == self._num_noted:
            return
        end, num_bytes = self._end, self._upload.num_bytes

        def note(tx: WriteTx) -> None:
            uploads.advance(tx, self._record, num_stored=end, expires_at=tx.now() + LIFETIME)

        await self._fenced(self._flow.blobs.checkpoint(self._upload, note))
        self._num_noted = num_bytes

    async def _fenced(self, writing: Awaitable[None]) -> None:
        """Waits for a write, which finds the upload taken over or its own blob gone; then nothing of it stays."""
        try:
            await writing
        except StaleRowError:
            await self._flow.blobs.leave(self._upload)
            raise taken_over() from None

    async def _checkpoint_if_possible(self) -> None:
        """Does the same for an append that has failed, whose own failure is told."""
        with suppress(ProblemError, OSError):
            await self._checkpoint()


def taken_over() -> ProblemError:
    """Gives the problem of a request in whose place a newer one works on the upload."""
    return ProblemError(
        ProblemType.STATE_CONFLICT, "a newer request has taken the upload over; ask for its offset and go on there"
    )
