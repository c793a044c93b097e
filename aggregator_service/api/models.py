"""Model versions: the initial model in, every version out."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from aggregator_service.api.bodies import TENSOR_BODY, tensor_body
from aggregator_service.api.dependencies import (
    DEFAULT_LIMIT,
    Caller,
    Cursor,
    FlowDependency,
    Identifier,
    Limit,
    PathInteger,
    Wait,
    allow,
    decode_cursor,
    encode_cursor,
)
from aggregator_service.api.problems import describe
from aggregator_service.api.ranges import ByteRange, entity_tag, matches, requested_range
from aggregator_service.api.rendering import Page, render_model
from aggregator_service.domain.records import TokenKind
from aggregator_service.flow import downloads, export, initial_model, reading
from aggregator_service.flow.context import Flow
from aggregator_service.flow.downloads import Content, content_of
from fl_protocol import routes
from fl_protocol.models import MODEL_VERSION_HEADER, TENSOR_MEDIA_TYPE, Model
from fl_protocol.problems import ProblemError, ProblemType

router = APIRouter(tags=["models"])

_TENSORS = {TENSOR_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_DOWNLOADED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The safetensors bytes; ETag is their digest", "content": _TENSORS},
    206: {"description": "The part that Range asked for", "content": _TENSORS},
    304: {"description": "If-None-Match names this very version"},
    **describe(ProblemType.NOT_FOUND, ProblemType.RANGE_NOT_SATISFIABLE),
}
_STORED: dict[int | str, dict[str, Any]] = {200: {"model": Model, "description": "The same bytes were stored before"}}
_NOTHING_NEWER: dict[int | str, dict[str, Any]] = {204: {"description": "No version newer than `after` yet"}}

_FOR_EVER = "private, max-age=31536000, immutable"
_MAY_CHANGE = "private, no-cache"

IfNoneMatch = Annotated[str | None, Header(alias="If-None-Match", max_length=8192)]
IfRange = Annotated[str | None, Header(alias="If-Range", max_length=256)]
Range = Annotated[str | None, Header(alias="Range", max_length=256)]


@router.put(
    routes.INITIAL_MODEL,
    status_code=201,
    summary="Put the initial model",
    openapi_extra=TENSOR_BODY,
    responses=_STORED
    | describe(
        ProblemType.MALFORMED_UPDATE,
        ProblemType.NOT_FOUND,
        ProblemType.REQUEST_TIMEOUT,
        ProblemType.STATE_CONFLICT,
        ProblemType.TOO_LARGE,
        ProblemType.UNSUPPORTED_MEDIA_TYPE,
        ProblemType.STRUCTURE_MISMATCH,
        ProblemType.NON_FINITE,
        ProblemType.DIGEST_MISMATCH,
        ProblemType.INSUFFICIENT_STORAGE,
    ),
)
@allow(TokenKind.OPERATOR)
async def put_initial_model(
    request: Request, response: Response, flow: FlowDependency, _caller: Caller, run_id: Identifier
) -> Model:
    """Stores version 0 of a draft run's model."""
    await reading.get_run(flow, run_id)
    body = tensor_body(request, max_num_bytes=flow.limits.max_model_bytes)
    stored = await initial_model.store_initial_model(flow, run_id, body)
    response.status_code = 201 if stored.is_new else 200
    return render_model(stored.model, await reading.get_run(flow, run_id))


@router.get(routes.RUN_MODELS, summary="List model versions", responses=describe(ProblemType.NOT_FOUND))
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def list_models(
    flow: FlowDependency, _caller: Caller, run_id: Identifier, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[Model]:
    """Lists versions, oldest first."""
    after = -1 if cursor is None else decode_cursor(cursor, int)[0]
    run, found = await reading.list_models(flow, run_id, after_version=after, limit=limit)
    next_cursor = encode_cursor(found[-1].version) if len(found) == limit else None
    return Page(items=[render_model(model, run) for model in found], next_cursor=next_cursor)


@router.get(
    routes.LATEST_MODEL,
    summary="Download the newest model",
    response_class=StreamingResponse,
    responses=_DOWNLOADED | _NOTHING_NEWER,
)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def download_latest(
    request: Request,
    flow: FlowDependency,
    _caller: Caller,
    run_id: Identifier,
    after: Annotated[int | None, Query(ge=-1, le=2**53 - 1, description="Answer only with a newer version.")] = None,
    wait: Wait = 0,
    if_none_match: IfNoneMatch = None,
    if_range: IfRange = None,
    byte_range: Range = None,
) -> Response:
    """Gives the newest version; with `after` and `wait` the request is held until there is a newer one."""
    with flow.telemetry.waiting():
        newer_than = -1 if after is None else after
        model = await reading.wait_for_model(flow, run_id, after_version=newer_than, wait_seconds=wait)
    if model is None and after is None:
        raise ProblemError(ProblemType.NOT_FOUND, "the run has no model yet; its operator puts version 0")
    if model is None:
        return Response(status_code=204, headers={"Retry-After": "1"})
    answer = _download(
        request,
        flow,
        content_of(model.file, version=model.version),
        if_none_match=if_none_match,
        if_range=if_range,
        byte_range=byte_range,
    )
    answer.headers["Cache-Control"] = _MAY_CHANGE
    return answer


@router.get(
    routes.BEST_MODEL,
    summary="Download the best model",
    response_class=StreamingResponse,
    responses=_DOWNLOADED,
)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def download_best(
    request: Request,
    flow: FlowDependency,
    _caller: Caller,
    run_id: Identifier,
    if_none_match: IfNoneMatch = None,
    if_range: IfRange = None,
    byte_range: Range = None,
) -> Response:
    """Gives the version that is best by the metric that the run's evaluation watches."""
    model = await reading.get_best_model(flow, run_id)
    content = content_of(model.file, version=model.version)
    answer = _download(request, flow, content, if_none_match=if_none_match, if_range=if_range, byte_range=byte_range)
    answer.headers["Cache-Control"] = _MAY_CHANGE
    return answer


@router.get(
    routes.MODEL_EXPORT,
    summary="Download a model version with its lineage",
    response_class=StreamingResponse,
    responses=_DOWNLOADED,
)
@allow(TokenKind.OPERATOR)
async def export_model(
    request: Request,
    flow: FlowDependency,
    _caller: Caller,
    run_id: Identifier,
    version: PathInteger,
    if_none_match: IfNoneMatch = None,
    if_range: IfRange = None,
    byte_range: Range = None,
) -> Response:
    """Gives one version with a lineage in the file's metadata: the same tensors, other bytes, a digest of its own."""
    content = await export.exported(flow, run_id, version)
    return _download(request, flow, content, if_none_match=if_none_match, if_range=if_range, byte_range=byte_range)


@router.get(
    routes.RUN_MODEL,
    summary="Download a model version",
    response_class=StreamingResponse,
    responses=_DOWNLOADED,
)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def download_model(
    request: Request,
    flow: FlowDependency,
    _caller: Caller,
    run_id: Identifier,
    version: PathInteger,
    if_none_match: IfNoneMatch = None,
    if_range: IfRange = None,
    byte_range: Range = None,
) -> Response:
    """Gives one version; it never changes, so it may be cached for ever."""
    model = await reading.get_model(flow, run_id, version)
    answer = _download(
        request,
        flow,
        content_of(model.file, version=model.version),
        if_none_match=if_none_match,
        if_range=if_range,
        byte_range=byte_range,
    )
    answer.headers["Cache-Control"] = _FOR_EVER
    return answer


@router.get(
    routes.CONTROL_VARIATE,
    summary="Download a version's control variate",
    response_class=StreamingResponse,
    responses=_DOWNLOADED,
)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def download_control_variate(
    request: Request,
    flow: FlowDependency,
    _caller: Caller,
    run_id: Identifier,
    version: PathInteger,
    if_none_match: IfNoneMatch = None,
    if_range: IfRange = None,
    byte_range: Range = None,
) -> Response:
    """Gives SCAFFOLD's server control variate that belongs to a version; it never changes."""
    control = await reading.get_control(flow, run_id, version)
    answer = _download(
        request,
        flow,
        content_of(control, version=version),
        if_none_match=if_none_match,
        if_range=if_range,
        byte_range=byte_range,
    )
    answer.headers["Cache-Control"] = _FOR_EVER
    return answer


def _download(
    request: Request,
    flow: Flow,
    content: Content,
    *,
    if_none_match: str | None,
    if_range: str | None,
    byte_range: str | None,
) -> Response:
    etag = entity_tag(content.digest)
    headers = {
        "ETag": etag,
        MODEL_VERSION_HEADER: str(content.version),
        "Accept-Ranges": "bytes",
        "Vary": "Accept-Encoding",
    }
    if matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    part = requested_range(byte_range, if_range=if_range, etag=etag, num_bytes=content.num_bytes)
    if part is not None:
        headers["Content-Range"] = f"bytes {part.begin}-{part.end - 1}/{content.num_bytes}"
        return _stream(downloads.plain(flow, content, begin=part.begin, end=part.end), 206, headers, length=part)
    if _accepts_zstd(request.headers.get("accept-encoding", "")):
        headers["Content-Encoding"] = "zstd"
        return _stream(downloads.compressed(flow, content), 200, headers, length=None)
    whole = ByteRange(0, content.num_bytes)
    return _stream(downloads.plain(flow, content, begin=0, end=content.num_bytes), 200, headers, length=whole)


def _stream(
    content: AsyncIterator[bytes], status: int, headers: dict[str, str], *, length: ByteRange | None
) -> Response:
    if length is not None:
        headers = headers | {"Content-Length": str(length.end - length.begin)}
    return StreamingResponse(content, status_code=status, headers=headers, media_type=TENSOR_MEDIA_TYPE)


def _accepts_zstd(header: str) -> bool:
    for offer in header.lower().split(",")[:32]:
        name, _, parameters = offer.partition(";")
        if name.strip() == "zstd":
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
