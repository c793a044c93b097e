"""Tensor bodies: media type, coding, announced length and digest."""

from typing import Any, Final

from fastapi import Request

from aggregator_service.flow.reception import Body, ContentCoding, parse_content_digest
from fl_protocol.models import TENSOR_MEDIA_TYPE, TENSOR_MEDIA_TYPES
from fl_protocol.problems import ProblemError, ProblemType

TENSOR_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in sorted(TENSOR_MEDIA_TYPES)
        },
    }
}
"""Declares for OpenAPI that an operation takes safetensors bytes."""


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


def _coding(header: str) -> ContentCoding:
    try:
        return ContentCoding(header.strip().lower())
    except ValueError:
        raise ProblemError(
            ProblemType.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Encoding is {header[:64]!r}; identity and zstd are accepted",
        ) from None
