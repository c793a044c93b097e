"""Answers with stored tensors: which form of them, all or a part, or only that the asker has them (RFC 9110, 9111)."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from aggregator_service.api.answers import ZERO_COPY
from aggregator_service.api.problems import describe
from aggregator_service.api.ranges import ByteRange, entity_tag, matches, requested_range
from aggregator_service.flow import downloads
from aggregator_service.flow.context import Flow
from aggregator_service.flow.downloads import Content, Form
from fl_protocol.models import DELTA_MEDIA_TYPE, MODEL_VERSION_HEADER, TENSOR_MEDIA_TYPE
from fl_protocol.problems import ProblemType

FOR_EVER: Final = "public, max-age=31536000, s-maxage=0, immutable"
"""For what never changes: who asked may keep it; a shared cache may, too, and asks the server each time it is used."""
MAY_CHANGE: Final = "public, no-cache"
"""For what may be something else tomorrow: every cache asks each time."""

_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_TENSORS: Final = {TENSOR_MEDIA_TYPE: _BINARY}
_CACHED: Final = "If-None-Match names this very version in a form that the request accepts"

DOWNLOADED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The safetensors bytes; ETag is their digest, with more behind it if they are coded in zstd",
        "content": _TENSORS,
    },
    206: {"description": "The part of the same form that Range asked for", "content": _TENSORS},
    304: {"description": _CACHED},
    **describe(ProblemType.NOT_FOUND, ProblemType.REMOVED, ProblemType.RANGE_NOT_SATISFIABLE),
}
DOWNLOADED_OR_DELTA: Final[dict[int | str, dict[str, Any]]] = DOWNLOADED | {
    status: {
        "description": f"{DOWNLOADED[status]['description']}; with `base` maybe what turns that version into this one",
        "content": _TENSORS | {DELTA_MEDIA_TYPE: _BINARY},
    }
    for status in (200, 206)
}

IfNoneMatch = Annotated[str | None, Header(alias="If-None-Match", max_length=8192)]
IfRange = Annotated[str | None, Header(alias="If-Range", max_length=256)]
Range = Annotated[str | None, Header(alias="Range", max_length=256)]

Coded = Callable[[], Awaitable[Content | None]]
"""Finds or makes another form of a content; None where there is none worth it."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a request says of the copy that its sender has, and of the form and the part that it wants."""

    if_none_match: str | None
    if_range: str | None
    byte_range: str | None
    accepts_zstd: bool

    def has(self, content: Content) -> bool:
        """Tells whether the sender has this form already."""
        return matches(self.if_none_match, entity_tag(content.tag))

    def goes_on_with(self, content: Content) -> bool:
        """Tells whether the sender has a part of this form and wants more of it."""
        return self.byte_range is not None and self.if_range == entity_tag(content.tag)


async def _conditions(
    request: Request, if_none_match: IfNoneMatch = None, if_range: IfRange = None, byte_range: Range = None
) -> Conditions:
    accepts_zstd = _accepts_zstd(request.headers.get("accept-encoding", ""))
    return Conditions(if_none_match, if_range, byte_range, accepts_zstd)


ConditionsDependency = Annotated[Conditions, Depends(_conditions)]


async def answer(
    flow: Flow,
    plain: Content,
    conditions: Conditions,
    *,
    cache_control: str,
    coded: Coded | None = None,
    delta: Coded | None = None,
) -> Response:
    """Answers with a content as it is, or in the form that the request prefers; `delta` comes before `coded`."""
    content = await _selected(plain, conditions, coded=coded, delta=delta)
    headers = _headers(content) | {"Cache-Control": cache_control}
    if conditions.has(content):
        return Response(status_code=304, headers=headers)
    part = requested_range(
        conditions.byte_range,
        if_range=conditions.if_range,
        etag=entity_tag(content.tag),
        num_bytes=content.num_bytes,
    )
    if part is None:
        return _PartOf(flow, content, ByteRange(0, content.num_bytes), status=200, headers=headers)
    headers["Content-Range"] = f"bytes {part.begin}-{part.end - 1}/{content.num_bytes}"
    return _PartOf(flow, content, part, status=206, headers=headers)


async def _selected(plain: Content, conditions: Conditions, *, coded: Coded | None, delta: Coded | None) -> Content:
    # Whoever has the bytes as they are, or some of them, is served best by these; nothing is made for them.
    if conditions.has(plain) or conditions.goes_on_with(plain):
        return plain
    found = await delta() if delta is not None else None
    if found is None and coded is not None and conditions.accepts_zstd:
        found = await coded()
    return found or plain


def _headers(content: Content) -> dict[str, str]:
    headers = {
        "ETag": entity_tag(content.tag),
        MODEL_VERSION_HEADER: str(content.version),
        "Accept-Ranges": "bytes",
        "Vary": "Accept-Encoding",
    }
    return headers | ({"Content-Encoding": "zstd"} if content.form is Form.ZSTD else {})


class _PartOf(StreamingResponse):
    """A part of a content: at once if it is small, else by sendfile where a file holds it, else in pieces."""

    def __init__(self, flow: Flow, content: Content, part: ByteRange, *, status: int, headers: dict[str, str]) -> None:
        super().__init__(
            downloads.plain(flow, content, begin=part.begin, end=part.end),
            status_code=status,
            headers=headers | {"Content-Length": str(part.end - part.begin)},
            media_type=DELTA_MEDIA_TYPE if content.form is Form.DELTA else TENSOR_MEDIA_TYPE,
        )
        self._flow = flow
        self._content = content
        self._part = part

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers; whoever gets a file as it lies there checks its digest, as with every download."""
        if self._part.end - self._part.begin <= downloads.PIECE_NUM_BYTES:
            await self._send_at_once(send)
            return
        is_file = ZERO_COPY in scope.get("extensions", {}) and not self._content.prefix
        file = await self._flow.blobs.open_local(self._content.blob_id) if is_file else None
        if file is None:
            await super().__call__(scope, receive, send)
            return
        try:
            await self._begin(send)
            begin, count = self._content.blob_begin + self._part.begin, self._part.end - self._part.begin
            await send({"type": ZERO_COPY, "file": file, "offset": begin, "count": count})
        finally:
            os.close(file)

    async def _send_at_once(self, send: Send) -> None:
        """Answers without a task that watches the connection; thousands may be told of a new model together."""
        pieces = downloads.plain(self._flow, self._content, begin=self._part.begin, end=self._part.end)
        data = b"".join([piece async for piece in pieces])
        await self._begin(send)
        await send({"type": "http.response.body", "body": data, "more_body": True})
        # The end waits for a slow reader, who is let go if it takes too long.
        await send({"type": "http.response.body", "body": b""})

    async def _begin(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})


def _accepts_zstd(header: str) -> bool:
    for offer in header.lower().split(",")[:32]:
        name, _, parameters = offer.partition(";")
        if name.strip() == "zstd":
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
