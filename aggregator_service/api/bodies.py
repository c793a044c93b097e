"""What requests carry: JSON of a bounded size, and tensors with their media type, coding, length and digest."""

from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Final

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from aggregator_service.flow.reception import Body, ContentCoding, gather, parse_content_digest
from fl_protocol.models import TENSOR_MEDIA_TYPE, TENSOR_MEDIA_TYPES
from fl_protocol.problems import ProblemError, ProblemType

MAX_JSON_BYTES: Final = 64 << 10

TENSOR_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in sorted(TENSOR_MEDIA_TYPES)
        },
    }
}
"""Declares for OpenAPI that an operation takes safetensors bytes."""


BYTES_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
"""Declares for OpenAPI that an operation takes bytes of another form, which its description names."""


class BoundedRoute(APIRoute):
    """A route whose JSON body, if it takes one, is refused beyond 64 KiB (`too-large`) before it is all read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Gives the handler, which reads a JSON body through a bound; tensors are bounded by the model's own size."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def bounded(request: Request) -> Response:
            return await handler(_BoundedRequest(request.scope, request.receive))

        return bounded


class _BoundedRequest(Request):
    async def stream(self) -> AsyncGenerator[bytes, None]:
        _check_json_length(int(self.headers.get("content-length", "0")))
        received = 0
        async for chunk in super().stream():
            received += len(chunk)
            _check_json_length(received)
            yield chunk


def _check_json_length(num_bytes: int) -> None:
    if num_bytes > MAX_JSON_BYTES:
        # FastAPI passes this error on from the reading of a body, and nothing else.
        raise HTTPException(
            413, f"the body has {num_bytes} bytes or more; at most {MAX_JSON_BYTES} of JSON are accepted"
        )


def tensor_body(request: Request, *, max_num_bytes: int) -> Body:
    """Describes a request's tensor body; raises `unsupported-media-type` or `too-large` before reading any of it."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in TENSOR_MEDIA_TYPES:
        raise ProblemError(
            ProblemType.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Type is {media_type[:64]!r}; tensors travel as {TENSOR_MEDIA_TYPE} or application/octet-stream",
        )
    coding = _coding(request.headers.get("content-encoding", "identity"))
    length = request.headers.get("content-length")
    if length is not None and int(length) > max_num_bytes:
        raise ProblemError(
            ProblemType.TOO_LARGE, f"the body has {length} bytes; at most {max_num_bytes} are accepted here"
        )
    digest = parse_content_digest(request.headers.get("content-digest"))
    return Body(chunks=request.stream(), coding=coding, digest=digest)


def bytes_body(request: Request, *, max_num_bytes: int) -> Body:
    """Describes a request's body of plain bytes; raises `unsupported-media-type` or `too-large` before reading it."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if media_type != "application/octet-stream" or coding != "identity":
        raise ProblemError(
            ProblemType.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Type is {media_type[:64]!r}, Content-Encoding {coding[:64]!r}; masked bytes travel as "
            "application/octet-stream, uncompressed",
        )
    length = announced_length(request)
    if length is not None and length > max_num_bytes:
        raise ProblemError(
            ProblemType.TOO_LARGE, f"the body has {length} bytes; at most {max_num_bytes} are accepted here"
        )
    digest = parse_content_digest(request.headers.get("content-digest"))
    return Body(chunks=request.stream(), coding=ContentCoding.IDENTITY, digest=digest)


async def small_body(request: Request, *, max_num_bytes: int) -> bytes:
    """Reads a request's body of plain bytes; raises `too-large` as soon as it is, and `digest-mismatch`."""
    return await gather(bytes_body(request, max_num_bytes=max_num_bytes), max_num_bytes=max_num_bytes)


def announced_length(request: Request) -> int | None:
    """Gives the length that a request announces for its body, if it does."""
    length = request.headers.get("content-length")
    return None if length is None else int(length)


def _coding(header: str) -> ContentCoding:
    try:
        return ContentCoding(", ".join(coding.strip() for coding in header.lower().split(",")))
    except ValueError:
        raise ProblemError(
            ProblemType.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Encoding is {header[:64]!r}; identity, zstd, and byte-shuffle, zstd are accepted",
        ) from None
