"""Who is excluded from a run."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Response

from aggregator_service.api.bodies import BoundedRoute
from aggregator_service.api.dependencies import (
    DEFAULT_LIMIT,
    Caller,
    Cursor,
    FlowDependency,
    Identifier,
    Limit,
    allow,
    decode_cursor,
    encode_cursor,
)
from aggregator_service.api.problems import describe
from aggregator_service.api.rendering import Page, render_exclusion
from aggregator_service.domain.records import TokenKind
from aggregator_service.flow import exclusion
from fl_protocol import routes
from fl_protocol.exclusions import Exclusion, ExclusionRequest
from fl_protocol.problems import ProblemType

router = APIRouter(tags=["runs"], route_class=BoundedRoute)

_REPEATED: dict[int | str, dict[str, Any]] = {200: {"model": Exclusion, "description": "It was excluded before"}}


@router.get(routes.RUN_EXCLUSIONS, summary="List excluded clients", responses=describe(ProblemType.NOT_FOUND))
@allow(TokenKind.OPERATOR)
async def list_exclusions(
    flow: FlowDependency, _caller: Caller, run_id: Identifier, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[Exclusion]:
    """Lists the clients that get no tasks in the run, with the reasons."""
    after = "" if cursor is None else decode_cursor(cursor, str)[0]
    found = await exclusion.list_exclusions(flow, run_id, after_client_id=after, limit=limit)
    next_cursor = encode_cursor(found[-1].client_id) if len(found) == limit else None
    return Page(items=[render_exclusion(one) for one in found], next_cursor=next_cursor)


@router.put(
    routes.RUN_EXCLUSION,
    status_code=201,
    summary="Exclude a client",
    responses=_REPEATED
    | describe(
        ProblemType.MALFORMED_REQUEST,
        ProblemType.REQUEST_TIMEOUT,
        ProblemType.NOT_FOUND,
        ProblemType.TOO_LARGE,
        ProblemType.UNSUPPORTED_MEDIA_TYPE,
    ),
)
@allow(TokenKind.OPERATOR)
async def exclude_client(
    response: Response,
    flow: FlowDependency,
    _caller: Caller,
    run_id: Identifier,
    client_id: Identifier,
    request: Annotated[ExclusionRequest, Body()],
) -> Exclusion:
    """Gives a client no more tasks in the run and gives its open one up; its accepted updates stay counted."""
    excluded, is_new = await exclusion.exclude_client(flow, run_id=run_id, client_id=client_id, reason=request.reason)
    response.status_code = 201 if is_new else 200
    return render_exclusion(excluded)


@router.delete(
    routes.RUN_EXCLUSION, status_code=204, summary="Readmit a client", responses=describe(ProblemType.NOT_FOUND)
)
@allow(TokenKind.OPERATOR)
async def readmit_client(flow: FlowDependency, _caller: Caller, run_id: Identifier, client_id: Identifier) -> Response:
    """Lets a client take part in the run again."""
    await exclusion.readmit_client(flow, run_id=run_id, client_id=client_id)
    return Response(status_code=204)
