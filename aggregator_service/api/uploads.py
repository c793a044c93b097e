"""Uploads that go on after a cut, after draft-ietf-httpbis-resumable-upload (interop version 8)."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Request, Response

from aggregator_service.api.bodies import announced_length, tensor_body
from aggregator_service.api.dependencies import AskedTaskDependency, Caller, FlowDependency, Identifier, allow
from aggregator_service.api.problems import describe
from aggregator_service.api.rendering import render_model, render_receipt, render_upload
from aggregator_service.domain.records import TokenKind
from aggregator_service.domain.uploads import LIFETIME, ModelTarget, UpdateTarget, UploadRecord
from aggregator_service.flow import initial_model, intake, reading, uploads
from aggregator_service.flow.appending import Append, Completed
from aggregator_service.flow.context import Flow
from aggregator_service.flow.initial_model import StoredModel
from aggregator_service.flow.uploads import Announced, Partial
from fl_protocol import routes
from fl_protocol.models import Model
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.tasks import Receipt
from fl_protocol.uploads import (
    PARTIAL_UPLOAD_MEDIA_TYPE,
    UPLOAD_COMPLETE_HEADER,
    UPLOAD_LENGTH_HEADER,
    UPLOAD_LIMIT_HEADER,
    UPLOAD_OFFSET_HEADER,
    Upload,
)

router = APIRouter(tags=["uploads"])

_COMPLETE: Final = "?1"
_INCOMPLETE: Final = "?0"

Length = Annotated[
    str,
    Header(
        alias=UPLOAD_LENGTH_HEADER,
        pattern=r"^[0-9]{1,13}$",
        description="How many bytes the whole body has on the wire; at most what the PUT would accept.",
    ),
]
Offset = Annotated[
    str,
    Header(
        alias=UPLOAD_OFFSET_HEADER,
        pattern=r"^[0-9]{1,13}$",
        description="How many bytes come before this request's; must be what the server has.",
    ),
]
Complete = Annotated[
    str,
    Header(
        alias=UPLOAD_COMPLETE_HEADER,
        pattern=r"^\?[01]$",
        description="`?1`: the body ends with this request. `?0`: more will follow.",
    ),
]

_PARTIAL_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {PARTIAL_UPLOAD_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


def _header(kind: str, description: str) -> dict[str, Any]:
    return {"schema": {"type": kind}, "description": description}


_OFFSET: Final = {UPLOAD_OFFSET_HEADER: _header("integer", "How many bytes are stored, durably.")}
_COMPLETE_OR_NOT: Final = {UPLOAD_COMPLETE_HEADER: _header("string", "`?1` once the body was taken in, else `?0`.")}
_LIMIT: Final = {
    UPLOAD_LIMIT_HEADER: _header("string", "`max-size`, `max-append-size` in bytes, `max-age` in seconds.")
}
_CREATED: Final[dict[int | str, dict[str, Any]]] = {
    201: {
        "model": Upload,
        "description": "The upload; its bytes go to `Location`",
        "headers": {"Location": _header("string", "Where to append.")} | _OFFSET | _COMPLETE_OR_NOT | _LIMIT,
    }
}
_TOLD: Final[dict[int | str, dict[str, Any]]] = {
    204: {
        "description": "What is stored",
        "headers": _OFFSET
        | _COMPLETE_OR_NOT
        | _LIMIT
        | {UPLOAD_LENGTH_HEADER: _header("integer", "What was announced.")},
    }
}
_APPENDED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": Receipt | Model, "description": "The answer to the whole body, which was taken in before"},
    201: {"model": Receipt | Model, "description": "The answer to the whole body", "headers": _COMPLETE_OR_NOT},
    204: {"description": "The bytes are stored", "headers": _OFFSET | _COMPLETE_OR_NOT},
}
_REFUSED_BODY: Final = (
    ProblemType.MALFORMED_UPDATE,
    ProblemType.ALREADY_SUBMITTED,
    ProblemType.STATE_CONFLICT,
    ProblemType.ROUND_CLOSED,
    ProblemType.STRUCTURE_MISMATCH,
    ProblemType.NON_FINITE,
    ProblemType.VALUE_OUT_OF_RANGE,
    ProblemType.INVALID_METADATA,
    ProblemType.DIGEST_MISMATCH,
)
_REFUSED_CREATION: Final = describe(
    ProblemType.NOT_FOUND,
    ProblemType.STATE_CONFLICT,
    ProblemType.ROUND_CLOSED,
    ProblemType.TOO_LARGE,
    ProblemType.UNSUPPORTED_MEDIA_TYPE,
    ProblemType.REQUEST_TIMEOUT,
    ProblemType.INSUFFICIENT_STORAGE,
)


@router.post(
    routes.TASK_UPLOADS,
    status_code=201,
    summary="Begin an upload of an update",
    responses=_CREATED | _REFUSED_CREATION,
    response_model=Upload,
)
@allow(TokenKind.CLIENT)
async def begin_update(
    request: Request, flow: FlowDependency, asked: AskedTaskDependency, length: Length, complete: Complete
) -> Response:
    """Begins an upload of the task's update, in place of one that was begun before, whose bytes are removed.

    Content-Type, Content-Encoding and Content-Digest are those that the PUT of the whole update would have; the request
    itself has no body. The bytes follow by PATCH.
    """
    ask = await intake.look_up(flow, asked.found, task_id=asked.task_id, client_id=asked.client_id)
    announced = await _announced(request, length, complete, max_num_bytes=ask.max_num_bytes)
    record = await uploads.create(flow, UpdateTarget(asked.task_id, asked.client_id), announced)
    return _created(record)


@router.post(
    routes.INITIAL_MODEL_UPLOADS,
    status_code=201,
    summary="Begin an upload of the initial model",
    responses=_CREATED | _REFUSED_CREATION,
    response_model=Upload,
)
@allow(TokenKind.OPERATOR)
async def begin_initial_model(
    request: Request, flow: FlowDependency, _caller: Caller, run_id: Identifier, length: Length, complete: Complete
) -> Response:
    """Begins an upload of a draft run's initial model, as for an update."""
    await initial_model.look_up(flow, run_id)
    announced = await _announced(request, length, complete, max_num_bytes=flow.limits.max_model_bytes)
    return _created(await uploads.create(flow, ModelTarget(run_id), announced))


@router.head(
    routes.UPLOAD,
    status_code=204,
    summary="Ask how much of an upload is stored",
    responses=_TOLD | describe(ProblemType.NOT_FOUND),
)
@allow(TokenKind.CLIENT, TokenKind.OPERATOR)
async def look_at_upload(flow: FlowDependency, caller: Caller, upload_id: Identifier) -> Response:
    """Tells how many bytes are stored, durably; an append that still runs ends, for the asker has given it up."""
    record = await uploads.look(flow, upload_id, client_id=caller.client_id)
    told = _told(record) | {UPLOAD_LENGTH_HEADER: str(record.num_bytes), "Cache-Control": "no-store"}
    return Response(status_code=204, headers=told)


@router.patch(
    routes.UPLOAD,
    status_code=201,
    summary="Append to an upload",
    openapi_extra=_PARTIAL_BODY,
    responses=_APPENDED
    | describe(
        ProblemType.NOT_FOUND,
        ProblemType.REQUEST_TIMEOUT,
        ProblemType.MISMATCHING_UPLOAD_OFFSET,
        ProblemType.COMPLETED_UPLOAD,
        ProblemType.TOO_LARGE,
        ProblemType.UNSUPPORTED_MEDIA_TYPE,
        ProblemType.INSUFFICIENT_STORAGE,
        *_REFUSED_BODY,
    ),
    response_model=Receipt | Model,
)
@allow(TokenKind.CLIENT, TokenKind.OPERATOR)
async def append_to_upload(
    request: Request,
    flow: FlowDependency,
    caller: Caller,
    upload_id: Identifier,
    offset: Offset,
    complete: Complete,
) -> Response:
    """Appends bytes, of which nothing that arrived is lost with the connection.

    The last append (`Upload-Complete: ?1`) is answered as the PUT of the whole body is. Sent again with no bytes it is
    answered the same way, so that a lost answer can be asked for; while a large body is still being checked, that is
    `unavailable`, and to be sent again.
    """
    _check_partial(request)
    wanted = Append(
        offset=int(offset),
        is_last=complete == _COMPLETE,
        num_bytes=announced_length(request),
        chunks=request.stream(),
    )
    outcome = await uploads.append(flow, upload_id, wanted, client_id=caller.client_id)
    if isinstance(outcome, Partial):
        told = {UPLOAD_OFFSET_HEADER: str(outcome.num_stored), UPLOAD_COMPLETE_HEADER: _INCOMPLETE}
        return Response(status_code=204, headers=told)
    return await _completed(flow, outcome)


@router.delete(routes.UPLOAD, status_code=204, summary="Give an upload up", responses=describe(ProblemType.NOT_FOUND))
@allow(TokenKind.CLIENT, TokenKind.OPERATOR)
async def give_up_upload(flow: FlowDependency, caller: Caller, upload_id: Identifier) -> Response:
    """Removes an upload with the bytes that were stored; what a complete one has brought stays."""
    await uploads.remove(flow, upload_id, client_id=caller.client_id)
    return Response(status_code=204)


async def _announced(request: Request, length: str, complete: str, *, max_num_bytes: int) -> Announced:
    """Reads what a creation announces; raises what the PUT would, and `invalid-request` for a body."""
    described = tensor_body(request, max_num_bytes=max_num_bytes)
    num_bytes = int(length)
    if num_bytes > max_num_bytes:
        raise ProblemError(
            ProblemType.TOO_LARGE, f"Upload-Length is {num_bytes}; at most {max_num_bytes} bytes are accepted here"
        )
    if num_bytes == 0 or complete != _INCOMPLETE:
        raise ProblemError(
            ProblemType.INVALID_REQUEST, "Upload-Length must be 1 or more, and Upload-Complete ?0: the bytes follow"
        )
    async for chunk in described.chunks:
        if chunk:
            raise ProblemError(ProblemType.INVALID_REQUEST, "send no body here; the bytes go to the upload's own URL")
    return Announced(num_bytes, described.coding, described.digest)


def _check_partial(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if media_type != PARTIAL_UPLOAD_MEDIA_TYPE or coding != "identity":
        raise ProblemError(
            ProblemType.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Type is {media_type[:64]!r}, Content-Encoding {coding[:64]!r}; bytes are appended as "
            f"{PARTIAL_UPLOAD_MEDIA_TYPE}, and the body's own coding was said when the upload began",
        )


def _created(record: UploadRecord) -> Response:
    message = render_upload(record)
    headers = _told(record) | {"Location": message.url}
    return Response(message.model_dump_json(), status_code=201, headers=headers, media_type="application/json")


def _told(record: UploadRecord) -> dict[str, str]:
    size = record.num_bytes
    return {
        UPLOAD_OFFSET_HEADER: str(record.num_stored),
        UPLOAD_COMPLETE_HEADER: _COMPLETE if record.completed else _INCOMPLETE,
        UPLOAD_LIMIT_HEADER: f"max-size={size}, max-append-size={size}, max-age={LIFETIME.total_seconds():.0f}",
    }


async def _completed(flow: Flow, completed: Completed) -> Response:
    message: Receipt | Model
    if isinstance(completed, StoredModel):
        message = render_model(completed.model, await reading.get_run(flow, completed.model.run_id))
    else:
        message = render_receipt(completed)
    return Response(
        message.model_dump_json(),
        status_code=201 if completed.is_new else 200,
        headers={UPLOAD_COMPLETE_HEADER: _COMPLETE},
        media_type="application/json",
    )
