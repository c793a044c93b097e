"""Masked rounds: identity keys, manifests, seats, and the messages of sessions."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Query, Request, Response

from aggregator_service.api.bodies import BYTES_BODY, BoundedRoute, announced_length, bytes_body, small_body
from aggregator_service.api.dependencies import (
    DEFAULT_LIMIT,
    Caller,
    CallingClient,
    Cursor,
    FlowDependency,
    Identifier,
    Limit,
    PathInteger,
    Wait,
    allow,
    decode_cursor,
    decode_position,
    encode_cursor,
)
from aggregator_service.api.holding import Held
from aggregator_service.api.problems import describe
from aggregator_service.api.ranges import entity_tag
from aggregator_service.api.rendering import Page
from aggregator_service.api.session_rendering import (
    render_identity_key,
    render_manifest_entry,
    render_seat,
    render_session,
    render_transcript,
)
from aggregator_service.domain.records import TokenKind
from aggregator_service.flow.context import Flow
from aggregator_service.flow.sessions import identity, inputs, manifests, messages, reading, seats
from aggregator_service.flow.sessions.messages import Taken
from fl_protocol import routes
from fl_protocol.manifests import MANIFEST_MEDIA_TYPE, SIGNATURE_HEADER, ManifestEntry, ManifestKey
from fl_protocol.masking.keys import SIGNATURE_BYTES
from fl_protocol.masking.messages import ADVERTISE_BYTES, SHARE_RECORD_BYTES, UNMASK_RECORD_BYTES
from fl_protocol.problems import ProblemType
from fl_protocol.sessions import IdentityKey, IdentityKeyRequest, Seat, Session, SessionState, Transcript
from fl_protocol.specs.secure_aggregation import MAX_SESSION_MEMBERS

router = APIRouter(tags=["secure aggregation"], route_class=BoundedRoute)

_BYTES: Final = "application/octet-stream"
_FOUND: Final = describe(ProblemType.NOT_FOUND)
_REGISTERED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": IdentityKey, "description": "The same key was registered before"}
}
_SEATED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": Seat, "description": "The seat that the same bytes were given before"}
}
_GIVEN: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The bytes", "content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}}}
}
_READ: Final = _GIVEN | describe(ProblemType.NOT_FOUND, ProblemType.PHASE_CLOSED, ProblemType.SESSION_ABORTED)
_REPEATED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": Session, "description": "The same bytes were taken before"}
}
_TAKEN: Final = _REPEATED | describe(
    ProblemType.NOT_FOUND,
    ProblemType.REQUEST_TIMEOUT,
    ProblemType.EQUIVOCATION,
    ProblemType.PHASE_CLOSED,
    ProblemType.SESSION_ABORTED,
    ProblemType.TOO_LARGE,
    ProblemType.UNSUPPORTED_MEDIA_TYPE,
    ProblemType.INVALID_MESSAGE,
    ProblemType.DIGEST_MISMATCH,
    ProblemType.INSUFFICIENT_STORAGE,
)
_MANIFEST: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The exact bytes that are hashed; ETag is their digest, Manifest-Signature signs them",
        "content": {MANIFEST_MEDIA_TYPE: {"schema": {"type": "object"}}},
    }
}


@router.put(
    routes.IDENTITY_KEY,
    status_code=201,
    summary="Register an identity key",
    responses=_REGISTERED
    | describe(
        ProblemType.MALFORMED_REQUEST,
        ProblemType.NOT_FOUND,
        ProblemType.REQUEST_TIMEOUT,
        ProblemType.STATE_CONFLICT,
        ProblemType.TOO_LARGE,
        ProblemType.UNSUPPORTED_MEDIA_TYPE,
    ),
)
@allow(TokenKind.CLIENT)
async def register_identity_key(
    response: Response,
    flow: FlowDependency,
    caller_id: CallingClient,
    client_id: Identifier,
    request: Annotated[IdentityKeyRequest, Body()],
) -> IdentityKey:
    """Registers the caller's Ed25519 public key, once and for all."""
    made = await identity.register(flow, request, client_id=client_id, caller_id=caller_id)
    response.status_code = 201 if made.is_new else 200
    return render_identity_key(made.key)


@router.get(routes.IDENTITY_KEY, summary="Look at an identity key", responses=_FOUND)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def get_identity_key(flow: FlowDependency, _caller: Caller, client_id: Identifier) -> IdentityKey:
    """Gives a client's registered identity key."""
    return render_identity_key(await identity.get_key(flow, client_id))


@router.get(routes.MANIFEST_KEY, summary="Look at the manifest key", responses=describe())
@allow(TokenKind.OPERATOR, TokenKind.ENROLMENT, TokenKind.CLIENT)
async def get_manifest_key(flow: FlowDependency, _caller: Caller) -> ManifestKey:
    """Gives the Ed25519 public key with which this server signs manifests."""
    return await manifests.manifest_key(flow)


@router.get(routes.RUN_MANIFESTS, summary="List a run's manifests", responses=_FOUND)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def list_manifests(
    flow: FlowDependency, _caller: Caller, run_id: Identifier, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[ManifestEntry]:
    """Lists the manifests of a run's rounds, each of which names the digest of the one before."""
    (after,) = (0,) if cursor is None else decode_cursor(cursor, int)
    found = await manifests.list_manifests(flow, run_id, after_sequence=after, limit=limit)
    next_cursor = encode_cursor(found[-1].sequence) if len(found) == limit else None
    return Page(items=[render_manifest_entry(entry) for entry in found], next_cursor=next_cursor)


@router.get(routes.RUN_MANIFEST, summary="Read a manifest", response_class=Response, responses=_MANIFEST | _FOUND)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def get_manifest(flow: FlowDependency, _caller: Caller, run_id: Identifier, sequence: PathInteger) -> Response:
    """Gives the exact bytes of one manifest, with the server's signature of them."""
    manifest = await manifests.get_manifest(flow, run_id, sequence)
    headers = {
        "ETag": entity_tag(manifest.entry.digest),
        SIGNATURE_HEADER: await manifests.signature_header(flow, manifest),
        "Cache-Control": "private, max-age=31536000, immutable",
    }
    return Response(manifest.body, media_type=MANIFEST_MEDIA_TYPE, headers=headers)


@router.put(
    routes.TASK_SEAT,
    status_code=201,
    summary="Ask for a seat in a session",
    openapi_extra=BYTES_BODY,
    responses=_SEATED
    | describe(
        ProblemType.NOT_FOUND,
        ProblemType.REQUEST_TIMEOUT,
        ProblemType.STATE_CONFLICT,
        ProblemType.EQUIVOCATION,
        ProblemType.ROUND_CLOSED,
        ProblemType.TOO_LARGE,
        ProblemType.UNSUPPORTED_MEDIA_TYPE,
        ProblemType.INVALID_MESSAGE,
        ProblemType.DIGEST_MISMATCH,
    ),
)
@allow(TokenKind.CLIENT)
async def put_seat(
    request: Request, response: Response, flow: FlowDependency, client_id: CallingClient, task_id: Identifier
) -> Seat:
    """Takes the caller's signed keys (176 bytes `advertise`); a session begins when enough clients wait."""
    data = await small_body(request, max_num_bytes=ADVERTISE_BYTES)
    seating = await seats.take_seat(flow, task_id=task_id, client_id=client_id, data=data)
    response.status_code = 201 if seating.is_new else 200
    return render_seat(seating)


@router.get(
    routes.TASK_SEAT,
    summary="Look at a seat",
    response_model=Seat,
    responses=describe(ProblemType.NOT_FOUND, ProblemType.STATE_CONFLICT, ProblemType.ROUND_CLOSED),
)
@allow(TokenKind.CLIENT)
async def get_seat(flow: FlowDependency, client_id: CallingClient, task_id: Identifier, wait: Wait = 0) -> Held:
    """Tells whether the caller is in a session by now; with `wait` the request is held while it waits for one."""

    async def answer() -> Seat:
        return render_seat(await seats.get_seat(flow, task_id=task_id, client_id=client_id, wait_seconds=wait))

    return Held(answer)


@router.get(routes.ROUND_SESSIONS, summary="List a round's sessions", responses=_FOUND)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def list_sessions(
    flow: FlowDependency,
    _caller: Caller,
    run_id: Identifier,
    number: PathInteger,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[Session]:
    """Lists the sessions of the newest attempt at a round, oldest first."""
    after = decode_position(cursor)
    found = await reading.list_sessions(flow, run_id, number=number, after=after, limit=limit)
    last = found[-1].session if len(found) == limit else None
    next_cursor = None if last is None else encode_cursor(last.created_at, last.session_id)
    return Page(items=[render_session(seen) for seen in found], next_cursor=next_cursor)


@router.get(routes.SESSION, summary="Look at a session", response_model=Session, responses=_FOUND)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def get_session(
    flow: FlowDependency,
    caller: Caller,
    session_id: Identifier,
    state: Annotated[SessionState | None, Query(description="Hold the request while the session is in it.")] = None,
    wait: Wait = 0,
) -> Held:
    """Tells where a session stands; with `state` and `wait` the request is held until it has left that state."""

    async def answer() -> Session:
        return render_session(
            await reading.get_session(flow, session_id, principal=caller, state=state, wait_seconds=wait)
        )

    return Held(answer)


@router.get(routes.SESSION_ROSTER, summary="Read a roster", response_class=Response, responses=_GIVEN | _FOUND)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def get_roster(flow: FlowDependency, caller: Caller, session_id: Identifier) -> Response:
    """Gives the members' signed keys in their order: n(4) t(4), then `advertise` records."""
    return Response(await reading.get_roster(flow, session_id, principal=caller), media_type=_BYTES)


@router.get(
    routes.SESSION_CERTIFICATES, summary="Read certificates", response_class=Response, responses=_GIVEN | _FOUND
)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def get_certificates(flow: FlowDependency, caller: Caller, session_id: Identifier) -> Response:
    """Gives 64 bytes a member, an authority's signature of its identity key; zeros where there is none."""
    return Response(await reading.get_certificates(flow, session_id, principal=caller), media_type=_BYTES)


@router.put(routes.SESSION_SHARES, status_code=201, summary="Send shares", openapi_extra=BYTES_BODY, responses=_TAKEN)
@allow(TokenKind.CLIENT)
async def put_shares(
    request: Request,
    response: Response,
    flow: FlowDependency,
    client_id: CallingClient,
    session_id: Identifier,
    index: PathInteger,
) -> Session:
    """Takes one sealed record of 162 bytes for each of the caller's neighbours."""
    data = await small_body(request, max_num_bytes=MAX_SESSION_MEMBERS * SHARE_RECORD_BYTES)
    taken = await messages.take_shares(flow, data, session_id=session_id, client_id=client_id, place=index)
    return await _answer(flow, response, taken)


@router.get(routes.SESSION_SHARES, summary="Read the inbox", response_class=Response, responses=_READ)
@allow(TokenKind.CLIENT)
async def get_inbox(
    flow: FlowDependency, client_id: CallingClient, session_id: Identifier, index: PathInteger
) -> Response:
    """Gives the records that the caller's neighbours sealed for it, each under its sender's index."""
    found = await reading.get_inbox(flow, session_id, client_id=client_id, place=index)
    return Response(found, media_type=_BYTES)


@router.put(
    routes.SESSION_INPUT, status_code=201, summary="Send a masked input", openapi_extra=BYTES_BODY, responses=_TAKEN
)
@allow(TokenKind.CLIENT)
async def put_input(
    request: Request,
    response: Response,
    flow: FlowDependency,
    client_id: CallingClient,
    session_id: Identifier,
    index: PathInteger,
) -> Session:
    """Takes the caller's masked vector: each element of the ring as bits / 8 bytes, little-endian."""
    awaited = await inputs.look_up(flow, session_id=session_id, client_id=client_id, place=index)
    inputs.check_length(awaited, announced_length(request))
    body = bytes_body(request, max_num_bytes=awaited.num_bytes)
    return await _answer(flow, response, await inputs.take_input(flow, awaited, body))


@router.get(routes.SESSION_SURVIVORS, summary="Read the survivors", response_class=Response, responses=_READ)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def get_survivors(flow: FlowDependency, caller: Caller, session_id: Identifier) -> Response:
    """Gives a bitmap of the members whose input arrived in time."""
    return Response(await reading.get_survivors(flow, session_id, principal=caller), media_type=_BYTES)


@router.put(
    routes.SESSION_SIGNATURE,
    status_code=201,
    summary="Sign the survivors",
    openapi_extra=BYTES_BODY,
    responses=_TAKEN,
)
@allow(TokenKind.CLIENT)
async def put_signature(
    request: Request,
    response: Response,
    flow: FlowDependency,
    client_id: CallingClient,
    session_id: Identifier,
    index: PathInteger,
) -> Session:
    """Takes the caller's signature of the list of survivors, 64 bytes."""
    data = await small_body(request, max_num_bytes=SIGNATURE_BYTES)
    taken = await messages.take_signature(flow, data, session_id=session_id, client_id=client_id, place=index)
    return await _answer(flow, response, taken)


@router.get(routes.SESSION_SIGNATURES, summary="Read the signatures", response_class=Response, responses=_READ)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def get_signatures(flow: FlowDependency, caller: Caller, session_id: Identifier) -> Response:
    """Gives the survivors' signatures of the list of survivors: member(4) signature(64), members rising."""
    return Response(await reading.get_signatures(flow, session_id, principal=caller), media_type=_BYTES)


@router.put(
    routes.SESSION_UNMASK, status_code=201, summary="Send shares of masks", openapi_extra=BYTES_BODY, responses=_TAKEN
)
@allow(TokenKind.CLIENT)
async def put_unmask(
    request: Request,
    response: Response,
    flow: FlowDependency,
    client_id: CallingClient,
    session_id: Identifier,
    index: PathInteger,
) -> Session:
    """Takes one share for each neighbour that dealt: of its own mask's seed if it survived, else of its mask key."""
    data = await small_body(request, max_num_bytes=MAX_SESSION_MEMBERS * UNMASK_RECORD_BYTES)
    taken = await messages.take_unmask(flow, data, session_id=session_id, client_id=client_id, place=index)
    return await _answer(flow, response, taken)


@router.get(routes.SESSION_TRANSCRIPT, summary="Read a transcript", responses=_FOUND)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def get_transcript(flow: FlowDependency, caller: Caller, session_id: Identifier) -> Transcript:
    """Gives what a session leaves behind: who was in which set, digests of the inputs and the sum, signatures."""
    return render_transcript(await reading.get_transcript(flow, session_id, principal=caller))


async def _answer(flow: Flow, response: Response, taken: Taken) -> Session:
    response.status_code = 201 if taken.is_new else 200
    return render_session(await reading.see(flow, taken.session))
