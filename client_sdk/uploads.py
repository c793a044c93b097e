"""One body on its way to the server: goes on after a cut from the byte up to which the server has it, durably.

What was sent before is neither computed nor sent again, but for what was in flight when the line was cut.
"""

from collections.abc import AsyncIterator
from typing import Final, Generic, Protocol, TypeVar

from client_sdk.endpoints import uploads
from client_sdk.endpoints.exchange import Request
from client_sdk.endpoints.uploads import Created
from client_sdk.errors import (
    CompletedUploadError,
    MethodNotAllowedError,
    MismatchingUploadOffsetError,
    NotFoundError,
    TransportError,
    UntrustedAnswerError,
)
from client_sdk.transfer import Body

Parsed = TypeVar("Parsed")
Result = TypeVar("Result")

_ASK_AGAIN: Final = (CompletedUploadError, MismatchingUploadOffsetError, NotFoundError)
"""The server has more of the upload, or less, than was thought: the next attempt asks how much."""


class Send(Protocol):
    """Sends a request once, with a streamed body if there is one, and reads its answer."""

    async def __call__(self, request: Request[Result], content: AsyncIterator[bytes] | None = None, /) -> Result: ...


class NotResumableError(Exception):
    """The server has no such uploads; the body goes in one request."""


class Upload(Generic[Parsed]):
    """One body on its way; `attempt` is called until it succeeds and goes on where it was cut.

    `put` is the request that would send it in one go: the answer to the last byte is its answer. `offset` is how many
    bytes the server has for certain.
    """

    def __init__(self, put: Request[Parsed], where: str, body: Body) -> None:
        self.offset = 0
        self._put = put
        self._where = where
        self._body = body
        self._created: Created | None = None
        self._sent = 0

    async def attempt(self, send: Send) -> Parsed:
        """Sends what is missing; raises NotResumableError if the server cannot keep a part of a body."""
        upload_id, limit = await self._begun(send)
        total = self._body.num_bytes
        try:
            while total - self.offset > limit:
                end = self.offset + limit
                request = uploads.append(upload_id, begin=self.offset, end=end)
                self._move_to(await send(request, self._pieces(end)), at_least=end)
            return await send(
                uploads.append_last(self._put, upload_id, begin=self.offset, end=total), self._pieces(total)
            )
        except _ASK_AGAIN as error:
            raise TransportError(f"the server has another part of the upload: {error.detail}") from error

    async def _begun(self, send: Send) -> tuple[str, int]:
        if self._created is not None:
            offset = await send(uploads.get_offset(self._created.upload_id))
            if offset is None:
                self._created, self.offset, self._sent = await self._create(send), 0, 0
            else:
                self._move_to(offset, at_least=self.offset)
        else:
            self._created = await self._create(send)
        return self._created.upload_id, self._created.max_append_bytes or self._body.num_bytes

    async def _create(self, send: Send) -> Created:
        body = self._body
        request = uploads.create_upload(self._put, self._where, num_bytes=body.num_bytes, description=body.description)
        try:
            return await send(request)
        except (NotFoundError, MethodNotAllowedError) as error:
            raise NotResumableError from error

    async def _pieces(self, end: int) -> AsyncIterator[bytes]:
        begin = self.offset
        async for piece in self._body.stream(begin, end):
            begin += len(piece)
            self._sent = max(self._sent, begin)
            yield piece

    def _move_to(self, offset: int, *, at_least: int) -> None:
        """Believes an offset that is neither before what the server must have nor behind what it was sent."""
        if not at_least <= offset <= self._sent:
            raise UntrustedAnswerError(
                f"the server has {offset} bytes of the upload, it says; it was sent {self._sent}"
                f" and must have {at_least} of them"
            )
        self.offset = offset
