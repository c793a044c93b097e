"""Runs and rounds."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Request, Response
from fastapi.responses import StreamingResponse

from aggregator_service.api.bodies import BoundedRoute
from aggregator_service.api.dependencies import (
    DEFAULT_LIMIT,
    Caller,
    Cursor,
    FlowDependency,
    IdempotencyKey,
    Identifier,
    Limit,
    PathInteger,
    allow,
    decode_cursor,
    decode_position,
    encode_cursor,
)
from aggregator_service.api.events import event_stream, has_nothing_left
from aggregator_service.api.problems import describe
from aggregator_service.api.rendering import Page, render_contribution, render_model, render_round, render_run
from aggregator_service.domain.records import TokenKind
from aggregator_service.flow import lifecycle, reading, rollback
from aggregator_service.flow.idempotency import idempotent_create
from fl_protocol import routes
from fl_protocol.models import Model, RollbackRequest
from fl_protocol.problems import ProblemType
from fl_protocol.rounds import Contribution, Round
from fl_protocol.runs import Run, RunSpec

router = APIRouter(tags=["runs"], route_class=BoundedRoute)

_FOUND = describe(ProblemType.NOT_FOUND)
_STEERED = describe(ProblemType.NOT_FOUND, ProblemType.STATE_CONFLICT)


@router.post(
    routes.RUNS,
    status_code=201,
    summary="Create a run",
    responses=describe(
        ProblemType.MALFORMED_REQUEST,
        ProblemType.REQUEST_TIMEOUT,
        ProblemType.IDEMPOTENCY_KEY_REUSED,
        ProblemType.TOO_LARGE,
        ProblemType.UNSUPPORTED_MEDIA_TYPE,
    ),
)
@allow(TokenKind.OPERATOR)
async def create_run(
    flow: FlowDependency, caller: Caller, spec: Annotated[RunSpec, Body()], key: IdempotencyKey = None
) -> Run:
    """Makes a draft from a RunSpec; put its initial model next, then start it."""
    create = idempotent_create(token_hash=caller.token_hash, path=routes.RUNS, key=key, request=spec)
    return render_run(await lifecycle.create_run(flow, spec, create))


@router.get(routes.RUNS, summary="List runs", responses=describe())
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def list_runs(
    flow: FlowDependency, _caller: Caller, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[Run]:
    """Lists runs in the order of their creation."""
    found = await reading.list_runs(flow, after=decode_position(cursor), limit=limit)
    next_cursor = encode_cursor(found[-1].created_at, found[-1].run_id) if len(found) == limit else None
    return Page(items=[render_run(run) for run in found], next_cursor=next_cursor)


@router.get(routes.RUN, summary="Look at a run", responses=_FOUND)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def get_run(flow: FlowDependency, _caller: Caller, run_id: Identifier) -> Run:
    """Gives a run's state."""
    return render_run(await reading.get_run(flow, run_id))


@router.post(routes.RUN_START, summary="Start a run", responses=_STEERED)
@allow(TokenKind.OPERATOR)
async def start_run(flow: FlowDependency, _caller: Caller, run_id: Identifier) -> Run:
    """Opens round 1 of a draft that has its initial model."""
    return render_run(await lifecycle.start_run(flow, run_id))


@router.post(routes.RUN_PAUSE, summary="Pause a run", responses=_STEERED)
@allow(TokenKind.OPERATOR)
async def pause_run(flow: FlowDependency, _caller: Caller, run_id: Identifier) -> Run:
    """Hands out no more tasks; updates under way are still taken and deadlines stand still."""
    return render_run(await lifecycle.pause_run(flow, run_id))


@router.post(routes.RUN_RESUME, summary="Resume a run", responses=_STEERED)
@allow(TokenKind.OPERATOR)
async def resume_run(flow: FlowDependency, _caller: Caller, run_id: Identifier) -> Run:
    """Continues a paused run."""
    return render_run(await lifecycle.resume_run(flow, run_id))


@router.post(routes.RUN_STOP, summary="Stop a run", responses=_STEERED)
@allow(TokenKind.OPERATOR)
async def stop_run(flow: FlowDependency, _caller: Caller, run_id: Identifier) -> Run:
    """Ends a run for good; its models stay readable."""
    return render_run(await lifecycle.stop_run(flow, run_id))


@router.post(
    routes.RUN_ROLLBACK,
    status_code=201,
    summary="Go back to an earlier model version",
    responses=describe(
        ProblemType.MALFORMED_REQUEST,
        ProblemType.NOT_FOUND,
        ProblemType.REQUEST_TIMEOUT,
        ProblemType.REMOVED,
        ProblemType.STATE_CONFLICT,
        ProblemType.IDEMPOTENCY_KEY_REUSED,
        ProblemType.TOO_LARGE,
        ProblemType.UNSUPPORTED_MEDIA_TYPE,
    ),
)
@allow(TokenKind.OPERATOR)
async def roll_back(
    flow: FlowDependency,
    caller: Caller,
    run_id: Identifier,
    request: Annotated[RollbackRequest, Body()],
    key: IdempotencyKey = None,
) -> Model:
    """Publishes an earlier version again as the newest and goes on from it; open rounds are abandoned."""
    path = routes.path(routes.RUN_ROLLBACK, run_id=run_id)
    create = idempotent_create(token_hash=caller.token_hash, path=path, key=key, request=request)
    made = await rollback.roll_back(flow, run_id, version=request.version, create=create)
    return render_model(made, await reading.get_run(flow, run_id))


@router.get(routes.RUN_ROUNDS, summary="List rounds", responses=_FOUND)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def list_rounds(
    flow: FlowDependency, _caller: Caller, run_id: Identifier, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[Round]:
    """Lists every attempt at every round, oldest first."""
    number, attempt = (0, 0) if cursor is None else decode_cursor(cursor, int, int)
    found = await reading.list_rounds(flow, run_id, after=(number, attempt), limit=limit)
    next_cursor = encode_cursor(found[-1].number, found[-1].attempt) if len(found) == limit else None
    return Page(items=[render_round(round_) for round_ in found], next_cursor=next_cursor)


@router.get(routes.RUN_ROUND, summary="Look at a round", responses=_FOUND)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def get_round(flow: FlowDependency, _caller: Caller, run_id: Identifier, number: PathInteger) -> Round:
    """Gives the newest attempt at a round."""
    return render_round(await reading.get_round(flow, run_id, number))


@router.get(routes.ROUND_UPDATES, summary="List who contributed", responses=_FOUND)
@allow(TokenKind.OPERATOR)
async def list_updates(
    flow: FlowDependency,
    _caller: Caller,
    run_id: Identifier,
    number: PathInteger,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[Contribution]:
    """Lists the updates of the newest attempt at a round; never a tensor."""
    client_id, update_id = ("", "") if cursor is None else decode_cursor(cursor, str, str)
    after = (client_id, update_id)
    found = await reading.list_contributions(flow, run_id, number=number, after=after, limit=limit)
    next_cursor = encode_cursor(found[-1].client_id, found[-1].update_id) if len(found) == limit else None
    return Page(items=[render_contribution(update) for update in found], next_cursor=next_cursor)


_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "The run has ended and there are no further events"},
}


_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


# A plain StreamingResponse: as an EventSourceResponse FastAPI would iterate over what is returned, be it a 204.
@router.get(routes.RUN_EVENTS, summary="Follow a run", response_class=StreamingResponse, responses=_STREAM | _FOUND)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def follow_events(
    request: Request,
    flow: FlowDependency,
    _caller: Caller,
    run_id: Identifier,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", pattern=r"^[0-9]{1,15}$")] = None,
) -> Response:
    """Streams a run's events from the first, or from behind Last-Event-ID, until the run ends."""
    after = int(last_event_id or 0)
    if await has_nothing_left(flow, run_id, after):
        return Response(status_code=204)
    events = event_stream(request, flow, run_id=run_id, after_event_id=after)
    return StreamingResponse(events, media_type="text/event-stream", headers=_STREAM_HEADERS)
