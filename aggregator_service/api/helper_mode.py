"""Helper mode: clients' contributions, helpers' tokens, and what helpers are asked and answer."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Path, Request, Response

from aggregator_service.api.bodies import BYTES_BODY, BoundedRoute, announced_length, bytes_body
from aggregator_service.api.dependencies import (
    Caller,
    CallingClient,
    CallingHelper,
    FlowDependency,
    IdempotencyKey,
    Identifier,
    PathInteger,
    Wait,
    allow,
)
from aggregator_service.api.helper_mode_rendering import render_contributed, render_mask_sum, render_request
from aggregator_service.api.holding import Held
from aggregator_service.api.problems import describe
from aggregator_service.domain.records import TokenKind
from aggregator_service.flow import enrolment
from aggregator_service.flow.helper_mode import answering, asking, contributing, reading
from aggregator_service.flow.idempotency import idempotent_create
from fl_protocol import routes
from fl_protocol.helper_mode import (
    HelperToken,
    HelperTokenRequest,
    MaskedRoundReport,
    MaskRequestEntry,
    MaskRequestList,
    Verdict,
)
from fl_protocol.problems import ProblemType
from fl_protocol.tasks import Receipt

router = APIRouter(tags=["helper mode"], route_class=BoundedRoute)

_BYTES: Final = "application/octet-stream"
_FOUND: Final = describe(ProblemType.NOT_FOUND)
_REPEATED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": Receipt, "description": "The receipt of the same bytes"}
}
_ANSWERED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": MaskRequestEntry, "description": "The same bytes were taken before"}
}
_GIVEN: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The bytes", "content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}}}
}
_UPLOADED: Final = (
    ProblemType.NOT_FOUND,
    ProblemType.REQUEST_TIMEOUT,
    ProblemType.ROUND_CLOSED,
    ProblemType.TOO_LARGE,
    ProblemType.UNSUPPORTED_MEDIA_TYPE,
    ProblemType.INVALID_MESSAGE,
    ProblemType.DIGEST_MISMATCH,
    ProblemType.INSUFFICIENT_STORAGE,
)
SigningKey = Annotated[
    str, Path(pattern=r"^[0-9a-f]{64}$", description="A helper's Ed25519 public key, 64 hexadecimal digits.")
]


@router.put(
    routes.TASK_CONTRIBUTION,
    status_code=201,
    summary="Send a contribution",
    openapi_extra=BYTES_BODY,
    responses=_REPEATED | describe(*_UPLOADED, ProblemType.ALREADY_SUBMITTED, ProblemType.STATE_CONFLICT),
)
@allow(TokenKind.CLIENT)
async def put_contribution(
    request: Request, response: Response, flow: FlowDependency, client_id: CallingClient, task_id: Identifier
) -> Receipt:
    """Takes the caller's signature, its sealed seeds and its masked vector, one behind the other."""
    awaited = await contributing.look_up(flow, task_id=task_id, client_id=client_id)
    contributing.check_length(awaited, announced_length(request))
    body = bytes_body(request, max_num_bytes=awaited.num_bytes)
    taken = await contributing.take(flow, awaited, body)
    response.status_code = 201 if taken.is_new else 200
    return render_contributed(taken)


@router.get(routes.ROUND_MASK_SUM, summary="Look at a round's helpers", responses=_FOUND)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def get_mask_sum(
    flow: FlowDependency, _caller: Caller, run_id: Identifier, number: PathInteger
) -> MaskedRoundReport:
    """Tells what the newest closed attempt at a round was about and what its helpers have done, with signatures."""
    return render_mask_sum(await reading.get_mask_sum(flow, run_id, number=number))


@router.post(
    routes.HELPER_TOKENS,
    status_code=201,
    summary="Make a helper's token",
    responses=describe(
        ProblemType.MALFORMED_REQUEST,
        ProblemType.REQUEST_TIMEOUT,
        ProblemType.IDEMPOTENCY_KEY_REUSED,
        ProblemType.TOO_LARGE,
        ProblemType.UNSUPPORTED_MEDIA_TYPE,
    ),
)
@allow(TokenKind.OPERATOR)
async def create_helper_token(
    flow: FlowDependency,
    caller: Caller,
    request: Annotated[HelperTokenRequest, Body()],
    key: IdempotencyKey = None,
) -> HelperToken:
    """Makes a token that sees and answers the requests for one signing key and nothing else; it is shown this once."""
    create = idempotent_create(token_hash=caller.token_hash, path=routes.HELPER_TOKENS, key=key, request=request)
    token = await enrolment.create_helper_token(flow, request, principal=caller, create=create)
    return HelperToken(token=token, signing_key=request.signing_key)


@router.delete(routes.HELPER_TOKENS_OF_KEY, status_code=204, summary="Revoke a helper's tokens", responses=_FOUND)
@allow(TokenKind.OPERATOR)
async def revoke_helper(flow: FlowDependency, _caller: Caller, signing_key: SigningKey) -> Response:
    """Makes all tokens for a signing key stop working at once."""
    await enrolment.revoke_helper(flow, bytes.fromhex(signing_key))
    return Response(status_code=204)


@router.get(
    routes.HELPER_REQUESTS,
    summary="List what waits for a helper",
    response_model=MaskRequestList,
    responses=describe(),
)
@allow(TokenKind.HELPER)
async def list_requests(flow: FlowDependency, signing_key: CallingHelper, wait: Wait = 0) -> Held:
    """Lists the requests that wait for the caller; with `wait` the request is held until there is one."""

    async def answer() -> MaskRequestList:
        found = await asking.pending(flow, signing_key=signing_key, wait_seconds=wait)
        return MaskRequestList(items=[render_request(asked) for asked in found])

    return Held(answer)


@router.get(routes.HELPER_REQUEST, summary="Read a request", response_class=Response, responses=_GIVEN | _FOUND)
@allow(TokenKind.HELPER)
async def get_request(flow: FlowDependency, signing_key: CallingHelper, request_id: Identifier) -> Response:
    """Gives a request's bytes: the round's manifest, and the signed contributions whose masks are to be added up."""
    return Response(await asking.request_bytes(flow, request_id, signing_key=signing_key), media_type=_BYTES)


@router.put(
    routes.HELPER_VERDICT,
    summary="Give a verdict",
    responses=describe(
        ProblemType.MALFORMED_REQUEST,
        ProblemType.NOT_FOUND,
        ProblemType.REQUEST_TIMEOUT,
        ProblemType.PHASE_CLOSED,
        ProblemType.ROUND_CLOSED,
        ProblemType.TOO_LARGE,
        ProblemType.UNSUPPORTED_MEDIA_TYPE,
        ProblemType.INVALID_MESSAGE,
    ),
    status_code=204,
)
@allow(TokenKind.HELPER)
async def put_verdict(
    flow: FlowDependency,
    signing_key: CallingHelper,
    request_id: Identifier,
    request: Annotated[Verdict, Body()],
) -> Response:
    """Takes what the caller found: nothing wrong, contributions that it cannot count, or a round that it refuses."""
    await answering.take_verdict(flow, request, request_id=request_id, signing_key=signing_key)
    return Response(status_code=204)


@router.put(
    routes.HELPER_MASK_SUM,
    status_code=201,
    summary="Send a sum of masks",
    openapi_extra=BYTES_BODY,
    responses=_ANSWERED | describe(*_UPLOADED, ProblemType.EQUIVOCATION, ProblemType.PHASE_CLOSED),
)
@allow(TokenKind.HELPER)
async def put_mask_sum(
    request: Request, response: Response, flow: FlowDependency, signing_key: CallingHelper, request_id: Identifier
) -> MaskRequestEntry:
    """Takes the caller's signature and the sum of the contributions' masks, packed like a vector."""
    asked = await asking.look_up(flow, request_id, signing_key=signing_key)
    answering.check_length(asked, announced_length(request))
    is_new = await answering.take_answer(flow, asked, bytes_body(request, max_num_bytes=asked.num_bytes))
    response.status_code = 201 if is_new else 200
    return render_request(await asking.look_up(flow, request_id, signing_key=signing_key))
