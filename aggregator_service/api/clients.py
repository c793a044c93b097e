"""Enrolment tokens and clients."""

from typing import Annotated

from fastapi import APIRouter, Body, Response

from aggregator_service.api.bodies import BoundedRoute
from aggregator_service.api.dependencies import (
    DEFAULT_LIMIT,
    Caller,
    Cursor,
    FlowDependency,
    IdempotencyKey,
    Identifier,
    Limit,
    allow,
    decode_position,
    encode_cursor,
)
from aggregator_service.api.problems import describe
from aggregator_service.api.rendering import Page, render_client
from aggregator_service.domain.records import TokenKind
from aggregator_service.flow import enrolment, reading
from aggregator_service.flow.idempotency import idempotent_create
from fl_protocol import routes
from fl_protocol.problems import ProblemType
from fl_protocol.tasks import Client, ClientRequest, EnrolledClient, EnrolmentToken, EnrolmentTokenRequest

router = APIRouter(tags=["clients"], route_class=BoundedRoute)

_CREATED = describe(
    ProblemType.MALFORMED_REQUEST,
    ProblemType.REQUEST_TIMEOUT,
    ProblemType.IDEMPOTENCY_KEY_REUSED,
    ProblemType.TOO_LARGE,
    ProblemType.UNSUPPORTED_MEDIA_TYPE,
)


@router.post(routes.ENROLMENT_TOKENS, status_code=201, summary="Make an enrolment token", responses=_CREATED)
@allow(TokenKind.OPERATOR)
async def create_enrolment_token(
    flow: FlowDependency,
    caller: Caller,
    request: Annotated[EnrolmentTokenRequest, Body()],
    key: IdempotencyKey = None,
) -> EnrolmentToken:
    """Makes a token that may enrol up to `max_uses` clients and nothing else; it is shown this once."""
    create = idempotent_create(token_hash=caller.token_hash, path=routes.ENROLMENT_TOKENS, key=key, request=request)
    made = await enrolment.create_enrolment_token(flow, request, principal=caller, create=create)
    return EnrolmentToken(token=made.token, max_uses=made.max_uses, expires_at=made.expires_at)


@router.post(routes.CLIENTS, status_code=201, summary="Enrol a client", responses=_CREATED)
@allow(TokenKind.OPERATOR, TokenKind.ENROLMENT)
async def enrol_client(
    flow: FlowDependency, caller: Caller, request: Annotated[ClientRequest, Body()], key: IdempotencyKey = None
) -> EnrolledClient:
    """Makes a client; its token is shown this once."""
    create = idempotent_create(token_hash=caller.token_hash, path=routes.CLIENTS, key=key, request=request)
    made = await enrolment.enrol_client(flow, request, principal=caller, create=create)
    return EnrolledClient(
        client_id=made.client.client_id,
        name=made.client.name,
        attributes=dict(made.client.attributes),
        token=made.token,
    )


@router.get(routes.CLIENTS, summary="List clients", responses=describe())
@allow(TokenKind.OPERATOR)
async def list_clients(
    flow: FlowDependency, _caller: Caller, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[Client]:
    """Lists clients in the order of their enrolment, revoked ones too."""
    found = await reading.list_clients(flow, after=decode_position(cursor), limit=limit)
    next_cursor = encode_cursor(found[-1].created_at, found[-1].client_id) if len(found) == limit else None
    return Page(items=[render_client(client) for client in found], next_cursor=next_cursor)


@router.delete(routes.CLIENT, status_code=204, summary="Revoke a client", responses=describe(ProblemType.NOT_FOUND))
@allow(TokenKind.OPERATOR)
async def revoke_client(flow: FlowDependency, _caller: Caller, client_id: Identifier) -> Response:
    """Makes a client's token stop working at once; what it had acknowledged still counts."""
    await enrolment.revoke_client(flow, client_id)
    return Response(status_code=204)
