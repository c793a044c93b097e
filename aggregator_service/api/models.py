"""Model versions: the initial model in, every version out."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
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
from aggregator_service.api.downloads import (
    DOWNLOADED,
    DOWNLOADED_OR_DELTA,
    FOR_EVER,
    MAY_CHANGE,
    Conditions,
    ConditionsDependency,
    answer,
)
from aggregator_service.api.holding import Held
from aggregator_service.api.problems import describe
from aggregator_service.api.rendering import Page, render_model
from aggregator_service.domain.records import ModelRecord, TokenKind
from aggregator_service.flow import export, initial_model, reading, renditions
from aggregator_service.flow.context import Flow
from aggregator_service.flow.downloads import content_of
from fl_protocol import routes
from fl_protocol.models import Model
from fl_protocol.problems import ProblemError, ProblemType

router = APIRouter(tags=["models"])

_STORED: dict[int | str, dict[str, Any]] = {200: {"model": Model, "description": "The same bytes were stored before"}}
_NOTHING_NEWER: dict[int | str, dict[str, Any]] = {204: {"description": "No version newer than `after` yet"}}

Base = Annotated[
    int | None,
    Query(
        ge=0,
        le=2**53 - 1,
        description="A version that the caller has: the answer may then be a delta, which turns it into this one. "
        "It is the whole model where that version is unknown or more than 8 behind, or the delta would save little.",
    ),
]


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
    responses=DOWNLOADED_OR_DELTA | _NOTHING_NEWER,
)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def download_latest(
    flow: FlowDependency,
    _caller: Caller,
    run_id: Identifier,
    conditions: ConditionsDependency,
    after: Annotated[int | None, Query(ge=-1, le=2**53 - 1, description="Answer only with a newer version.")] = None,
    wait: Wait = 0,
    base: Base = None,
) -> Held:
    """Gives the newest version; with `after` and `wait` the request is held until there is a newer one."""
    return Held(partial(_newest, flow, run_id, conditions, after=after, wait_seconds=wait, base=base))


async def _newest(
    flow: Flow, run_id: str, conditions: Conditions, *, after: int | None, wait_seconds: float, base: int | None
) -> Response:
    newer_than = -1 if after is None else after
    model = await reading.wait_for_model(flow, run_id, after_version=newer_than, wait_seconds=wait_seconds)
    if model is None and after is None:
        raise ProblemError(ProblemType.NOT_FOUND, "the run has no model yet; its operator puts version 0")
    if model is None:
        return Response(status_code=204, headers={"Retry-After": "1"})
    return await _answer(flow, model, conditions, base=base, cache_control=MAY_CHANGE)


@router.get(
    routes.BEST_MODEL, summary="Download the best model", response_class=StreamingResponse, responses=DOWNLOADED
)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def download_best(
    flow: FlowDependency, _caller: Caller, run_id: Identifier, conditions: ConditionsDependency
) -> Response:
    """Gives the version that is best by the metric that the run's evaluation watches."""
    model = await reading.get_best_model(flow, run_id)
    return await _answer(flow, model, conditions, base=None, cache_control=MAY_CHANGE)


@router.get(
    routes.MODEL_EXPORT,
    summary="Download a model version with its lineage",
    response_class=StreamingResponse,
    responses=DOWNLOADED,
)
@allow(TokenKind.OPERATOR)
async def export_model(
    flow: FlowDependency, _caller: Caller, run_id: Identifier, version: PathInteger, conditions: ConditionsDependency
) -> Response:
    """Gives one version with a lineage in the file's metadata: the same tensors, other bytes, a digest of its own."""
    content = await export.exported(flow, run_id, version)
    return await answer(flow, content, conditions, cache_control=MAY_CHANGE)


@router.get(
    routes.RUN_MODEL,
    summary="Download a model version",
    response_class=StreamingResponse,
    responses=DOWNLOADED_OR_DELTA,
)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def download_model(
    flow: FlowDependency,
    _caller: Caller,
    run_id: Identifier,
    version: PathInteger,
    conditions: ConditionsDependency,
    base: Base = None,
) -> Response:
    """Gives one version; it never changes, so it may be cached for ever."""
    model = await reading.get_model(flow, run_id, version)
    return await _answer(flow, model, conditions, base=base, cache_control=FOR_EVER)


@router.get(
    routes.CONTROL_VARIATE,
    summary="Download a version's control variate",
    response_class=StreamingResponse,
    responses=DOWNLOADED,
)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def download_control_variate(
    flow: FlowDependency, _caller: Caller, run_id: Identifier, version: PathInteger, conditions: ConditionsDependency
) -> Response:
    """Gives SCAFFOLD's server control variate that belongs to a version; it never changes."""
    model, control = await reading.get_control(flow, run_id, version)
    return await answer(
        flow,
        content_of(control, version=version),
        conditions,
        cache_control=FOR_EVER,
        coded=partial(renditions.control_in_zstd, flow, model, control),
    )


async def _answer(
    flow: Flow, model: ModelRecord, conditions: Conditions, *, base: int | None, cache_control: str
) -> Response:
    return await answer(
        flow,
        content_of(model.file, version=model.version),
        conditions,
        cache_control=cache_control,
        coded=partial(renditions.in_zstd, flow, model),
        delta=None if base is None else partial(renditions.delta, flow, model, base_version=base),
    )
