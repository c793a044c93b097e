"""What routes ask for: the flow, the caller, ids, pages and waits. Authentication denies by default."""

import base64
import binascii
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Path, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AfterValidator

from aggregator_service.api.bodies import BoundedRoute
from aggregator_service.domain.records import TokenKind
from aggregator_service.flow.authentication import (
    Principal,
    authenticate,
    authenticate_for_task,
    recognise_for_task,
)
from aggregator_service.flow.context import Flow
from aggregator_service.storage.asks import AskRecord
from fl_protocol.identifiers import is_identifier
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.routes import DEFAULT_PAGE_LIMIT, MAX_PAGE_LIMIT, MAX_WAIT_SECONDS

_MAX_TOKEN_LENGTH: Final = 512
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_INTEGER: Final = 2**53 - 1
_SHORT_NUM_BYTES: Final = 1 << 20
"""So much may be received in vain, from a client whose token was revoked or for a round that was closed since."""

_bearer: Final = HTTPBearer(auto_error=False, description="An operator, enrolment, client or helper token.")


async def the_flow(request: Request) -> Flow:
    """Gives the flow that the composition root put together; not `async` it would cost each request a thread."""
    flow: Flow = request.app.state.flow
    return flow


FlowDependency = Annotated[Flow, Depends(the_flow)]


Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def authenticated(request: Request, flow: FlowDependency, credentials: Credentials) -> Principal:
    """Identifies the caller; every route under /v1 depends on it, so a route without a rule denies everyone."""
    principal = await authenticate(flow, _token(credentials))
    _check_allowed(request, principal)
    return principal


def _token(credentials: HTTPAuthorizationCredentials | None) -> str:
    if credentials is None or not 0 < len(credentials.credentials) <= _MAX_TOKEN_LENGTH:
        raise ProblemError(
            ProblemType.UNAUTHENTICATED, "send the header 'Authorization: Bearer <token>' with a token of this server"
        )
    return credentials.credentials


def _check_allowed(request: Request, principal: Principal) -> None:
    rule: frozenset[TokenKind] = getattr(request.scope["route"].endpoint, "allowed_kinds", frozenset())
    if principal.kind not in rule:
        allowed = " or ".join(sorted(kind.value for kind in rule)) or "no"
        raise ProblemError(
            ProblemType.FORBIDDEN, f"this needs an {allowed} token; the token sent is of kind {principal.kind.value}"
        )


Caller = Annotated[Principal, Depends(authenticated)]


async def _calling_client(principal: Caller) -> str:
    if principal.client_id is None:
        raise ProblemError(ProblemType.FORBIDDEN, "this needs a client token")
    return principal.client_id


CallingClient = Annotated[str, Depends(_calling_client)]


async def _calling_helper(principal: Caller) -> bytes:
    if principal.helper_key is None:
        raise ProblemError(ProblemType.FORBIDDEN, "this needs a helper token")
    return principal.helper_key


CallingHelper = Annotated[bytes, Depends(_calling_helper)]
"""The Ed25519 public key whose requests the caller may see and answer."""

Endpoint = Callable[..., Awaitable[Any]]


def allow(*kinds: TokenKind) -> Callable[[Endpoint], Endpoint]:
    """Declares which kinds of token may call a route; a route without this denies everyone."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.allowed_kinds = frozenset(kinds)  # type: ignore[attr-defined]
        return endpoint

    return mark


def _known_form(text: str) -> str:
    if not is_identifier(text):
        raise ProblemError(ProblemType.NOT_FOUND, "there is nothing with this identifier")
    return text


Identifier = Annotated[str, Path(description="An identifier made by the server."), AfterValidator(_known_form)]
PathInteger = Annotated[int, Path(ge=0, le=_MAX_INTEGER)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE_LIMIT, description="How many items at most.")]
DEFAULT_LIMIT: Final = DEFAULT_PAGE_LIMIT
Cursor = Annotated[str | None, Query(max_length=512, description="The next_cursor of the page before.")]
Wait = Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS, description="Seconds to hold the request for an answer.")]


@dataclass(frozen=True, slots=True)
class AskedTask:
    """The task that a client answers, as it was read with the client's token; `found` is None where there is none.

    With a `token_hash` it was not read but known, and the token with that hash is still to be judged.
    """

    task_id: str
    client_id: str
    found: AskRecord | None
    token_hash: str | None = None


async def asked_task(
    request: Request, flow: FlowDependency, credentials: Credentials, task_id: Identifier
) -> AskedTask:
    """Identifies the caller by every route's rules; the same statement reads the task that is answered."""
    readable = task_id if is_identifier(task_id) else ""
    principal, found = await authenticate_for_task(flow, _token(credentials), task_id=readable)
    _check_allowed(request, principal)
    return AskedTask(_known_form(task_id), await _calling_client(principal), found)


async def _answered_task(
    request: Request, flow: Flow, credentials: HTTPAuthorizationCredentials | None, task_id: str
) -> AskedTask:
    """Does the same, without the database where a short answer comes to a task that was handed out lately."""
    known = None
    if 0 < int(request.headers.get("content-length", "0")) <= _SHORT_NUM_BYTES:
        known = recognise_for_task(flow, _token(credentials), task_id=task_id)
    if known is None:
        return await asked_task(request, flow, credentials, task_id)
    principal, found = known
    _check_allowed(request, principal)
    return AskedTask(task_id, await _calling_client(principal), found, principal.token_hash)


AskedTaskDependency = Annotated[AskedTask, Depends(asked_task)]


class DirectRoute(BoundedRoute):
    """A route whose endpoint takes a request, the flow and the task that is asked for, and nothing else.

    It is declared and described like every other, but it is answered past the framework's layers (`direct.py`): for a
    small update they take as long as counting it does (`python -m benchmarks small_updates`).
    """

    async def answer(self, request: Request) -> Response:
        """Asks the functions that the endpoint names, and the endpoint."""
        endpoint: Callable[..., Awaitable[Response]] = self.endpoint
        flow = await the_flow(request)
        asked = await _answered_task(request, flow, await _bearer(request), request.path_params["task_id"])
        return await endpoint(request, flow, asked)


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Makes a repeated create answer as the first one did.",
    ),
]


def encode_cursor(*position: object) -> str:
    """Makes an opaque cursor from the last item's position."""
    plain = [_instant_to_number(part) if isinstance(part, datetime) else part for part in position]
    return base64.urlsafe_b64encode(json.dumps(plain).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, *types: type) -> list[Any]:
    """Reads a cursor made here; raises `invalid-request`."""
    try:
        parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return [_read_part(part, kind) for part, kind in zip(list(parts), types, strict=True)]
    except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error):
        raise ProblemError(
            ProblemType.INVALID_REQUEST, "cursor: not one of this list; begin again without a cursor"
        ) from None


def decode_position(cursor: str | None) -> tuple[datetime, str] | None:
    """Reads the cursor of a list in the order of creation; None for the first page."""
    if cursor is None:
        return None
    created_at, identifier = decode_cursor(cursor, datetime, str)
    return created_at, identifier


def _read_part(part: object, kind: type) -> object:
    if kind is str:
        if not isinstance(part, str) or "\x00" in part or len(part) > 128:
            raise ValueError
        return part
    if not isinstance(part, int) or isinstance(part, bool) or not 0 <= part <= _MAX_INTEGER:
        raise ValueError
    return _EPOCH + timedelta(microseconds=part) if kind is datetime else part


def _instant_to_number(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(microseconds=1)
