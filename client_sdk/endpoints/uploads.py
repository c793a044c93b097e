"""Uploads that go on after a cut (draft-ietf-httpbis-resumable-upload) as pairs of values. Performs no I/O."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from client_sdk.endpoints.exchange import Answer, Request, message_of, path
from client_sdk.errors import UntrustedAnswerError
from fl_protocol import routes
from fl_protocol.uploads import (
    INTEROP_VERSION,
    INTEROP_VERSION_HEADER,
    PARTIAL_UPLOAD_MEDIA_TYPE,
    UPLOAD_COMPLETE_HEADER,
    UPLOAD_LENGTH_HEADER,
    UPLOAD_LIMIT_HEADER,
    UPLOAD_OFFSET_HEADER,
    Upload,
)

Parsed = TypeVar("Parsed")

MIN_APPEND_BYTES: Final = 64 << 10
"""A server that takes less at once would never be done with a model."""

_NUMBER: Final = re.compile(r"\d{1,15}", re.ASCII)
_MAX_APPEND: Final = re.compile(r"(?:^|[,\s])max-append-size=(\d{1,15})(?=$|[\s,;])", re.ASCII)
_INTEROP: Final = {INTEROP_VERSION_HEADER: INTEROP_VERSION}


@dataclass(frozen=True, slots=True)
class Created:
    """An upload that the server has begun to keep, and how much it takes in one request (None: everything)."""

    upload_id: str
    max_append_bytes: int | None


def create_upload(
    put: Request[Parsed], where: str, *, num_bytes: int, description: Mapping[str, str]
) -> Request[Created]:
    """`POST` to where uploads for `put` begin; `description` are the headers that say what the whole will be."""
    return Request(
        method="POST",
        path=where,
        headers={
            **_INTEROP,
            **put.headers,
            **description,
            UPLOAD_COMPLETE_HEADER: "?0",
            UPLOAD_LENGTH_HEADER: str(num_bytes),
        },
        statuses=frozenset({201}),
        parse=_created,
    )


def get_offset(upload_id: str) -> Request[int | None]:
    """`HEAD /v1/uploads/{upload_id}`: how many bytes the server has, durably; None if the upload is gone."""
    return Request(
        method="HEAD",
        path=path(routes.UPLOAD, upload_id=upload_id),
        headers=_INTEROP,
        statuses=frozenset({200, 204, 404, 410}),
        parse=lambda answer: None if answer.status in {404, 410} else _offset(answer),
    )


def append(upload_id: str, *, begin: int, end: int) -> Request[int]:
    """`PATCH /v1/uploads/{upload_id}` with some of what is missing; the answer is the new offset."""
    return Request(
        method="PATCH",
        path=path(routes.UPLOAD, upload_id=upload_id),
        headers=_append_headers(begin, end, complete="?0"),
        statuses=frozenset({200, 201, 204}),
        parse=_offset,
    )


def append_last(put: Request[Parsed], upload_id: str, *, begin: int, end: int) -> Request[Parsed]:
    """`PATCH /v1/uploads/{upload_id}` with all that is missing, maybe nothing; the answer is that of `put`."""
    return replace(
        put,
        method="PATCH",
        path=path(routes.UPLOAD, upload_id=upload_id),
        headers=_append_headers(begin, end, complete="?1"),
    )


def _append_headers(begin: int, end: int, *, complete: str) -> dict[str, str]:
    return {
        **_INTEROP,
        "Content-Type": PARTIAL_UPLOAD_MEDIA_TYPE,
        "Content-Length": str(end - begin),
        UPLOAD_OFFSET_HEADER: str(begin),
        UPLOAD_COMPLETE_HEADER: complete,
    }


def _created(answer: Answer) -> Created:
    upload = message_of(Upload, answer)
    found = _MAX_APPEND.search(answer.headers.get(UPLOAD_LIMIT_HEADER.lower(), ""))
    limit = None if found is None else int(found[1])
    if limit is not None and limit < MIN_APPEND_BYTES:
        raise UntrustedAnswerError(
            f"the server takes {limit} bytes of an upload in one request; at least {MIN_APPEND_BYTES} make sense"
        )
    return Created(upload.upload_id, limit)


def _offset(answer: Answer) -> int:
    told = answer.headers.get(UPLOAD_OFFSET_HEADER.lower(), "")
    if _NUMBER.fullmatch(told) is None:
        raise UntrustedAnswerError("the server does not say in Upload-Offset how much of the upload it has")
    return int(told)
