"""The one table from problem to status, and the answers that carry them (RFC 9457)."""

import math
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from aggregator_service.api.ranges import UnsatisfiableRangeError
from aggregator_service.domain.uploads import MismatchingOffsetError
from aggregator_service.telemetry import Telemetry
from fl_protocol.faults import describe_fault
from fl_protocol.problems import PROBLEM_MEDIA_TYPE, RETRYABLE, Problem, ProblemError, ProblemType, problem_uri
from fl_protocol.uploads import UPLOAD_OFFSET_HEADER

STATUS: Final[Mapping[ProblemType, int]] = {
    ProblemType.MALFORMED_UPDATE: 400,
    ProblemType.MALFORMED_REQUEST: 400,
    ProblemType.UNAUTHENTICATED: 401,
    ProblemType.FORBIDDEN: 403,
    ProblemType.NOT_FOUND: 404,
    ProblemType.METHOD_NOT_ALLOWED: 405,
    ProblemType.REQUEST_TIMEOUT: 408,
    ProblemType.ALREADY_SUBMITTED: 409,
    ProblemType.STATE_CONFLICT: 409,
    ProblemType.EQUIVOCATION: 409,
    ProblemType.MISMATCHING_UPLOAD_OFFSET: 409,
    ProblemType.COMPLETED_UPLOAD: 409,
    ProblemType.PHASE_CLOSED: 409,
    ProblemType.ROUND_CLOSED: 410,
    ProblemType.SESSION_ABORTED: 410,
    ProblemType.RUN_FINISHED: 410,
    ProblemType.REMOVED: 410,
    ProblemType.TOO_LARGE: 413,
    ProblemType.UNSUPPORTED_MEDIA_TYPE: 415,
    ProblemType.RANGE_NOT_SATISFIABLE: 416,
    ProblemType.INVALID_REQUEST: 422,
    ProblemType.STRUCTURE_MISMATCH: 422,
    ProblemType.NON_FINITE: 422,
    ProblemType.VALUE_OUT_OF_RANGE: 422,
    ProblemType.INVALID_METADATA: 422,
    ProblemType.DIGEST_MISMATCH: 422,
    ProblemType.INVALID_MESSAGE: 422,
    ProblemType.IDEMPOTENCY_KEY_REUSED: 422,
    ProblemType.TOO_MANY_REQUESTS: 429,
    ProblemType.INTERNAL_ERROR: 500,
    ProblemType.UNAVAILABLE: 503,
    ProblemType.INSUFFICIENT_STORAGE: 507,
}

_BY_STATUS: Final[Mapping[int, ProblemType]] = {
    400: ProblemType.MALFORMED_REQUEST,
    404: ProblemType.NOT_FOUND,
    405: ProblemType.METHOD_NOT_ALLOWED,
    408: ProblemType.REQUEST_TIMEOUT,
    413: ProblemType.TOO_LARGE,
    415: ProblemType.UNSUPPORTED_MEDIA_TYPE,
}

_MAX_FIELDS_NAMED: Final = 10

_log = structlog.get_logger()


def describe(*problem_types: ProblemType) -> dict[int | str, dict[str, Any]]:
    """Declares for OpenAPI which problems an operation may answer with."""
    by_status: dict[int | str, dict[str, Any]] = {}
    always = (ProblemType.UNAUTHENTICATED, ProblemType.FORBIDDEN, ProblemType.INVALID_REQUEST, ProblemType.UNAVAILABLE)
    for problem_type in dict.fromkeys((*problem_types, *always)):
        entry = by_status.setdefault(STATUS[problem_type], {"description": "", "content": _CONTENT})
        separator = ", " if entry["description"] else ""
        entry["description"] += f"{separator}`{problem_type.value}`"
    return by_status


_CONTENT: Final = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}


def render(error: ProblemError, *, headers: Mapping[str, str] | None = None) -> Response:
    """Renders a problem as the answer to a request."""
    status = STATUS[error.problem_type]
    problem = Problem(
        type=problem_uri(error.problem_type),
        title=HTTPStatus(status).phrase,
        status=status,
        detail=error.detail,
        retryable=error.problem_type in RETRYABLE,
    )
    content = problem.model_dump()
    if isinstance(error, MismatchingOffsetError):
        content |= {"expected_offset": error.expected_offset, "provided_offset": error.provided_offset}
        headers = {**(headers or {}), UPLOAD_OFFSET_HEADER: str(error.expected_offset)}
    answer = JSONResponse(content, status_code=status, media_type=PROBLEM_MEDIA_TYPE, headers=headers)
    if status == HTTPStatus.UNAUTHORIZED:
        answer.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, UnsatisfiableRangeError):
        answer.headers["Content-Range"] = f"bytes */{error.num_bytes}"
    if status in (429, 503, 507):
        answer.headers["Retry-After"] = str(math.ceil(error.retry_after_seconds or 1))
    return answer


Answerer = Callable[[Request, Exception], Response]


def answerers(telemetry: Telemetry) -> dict[type[Exception], Answerer]:
    """Gives what makes an answer of each kind of error that a request is refused with."""

    def on_problem(_request: Request, error: Exception) -> Response:
        if not isinstance(error, ProblemError):
            raise error
        telemetry.refused(error.problem_type.value)
        return render(error)

    def on_invalid(request: Request, error: Exception) -> Response:
        return on_problem(request, _from_validation(error))

    def on_http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        problem = ProblemError(
            _BY_STATUS.get(error.status_code, ProblemType.MALFORMED_REQUEST), _http_detail(request, error)
        )
        telemetry.refused(problem.problem_type.value)
        return render(problem, headers=error.headers)

    return {
        ProblemError: on_problem,
        RequestValidationError: on_invalid,
        HTTPException: on_http,
        ClientDisconnect: lambda _request, _error: Response(status_code=400),
    }


def install(app: FastAPI, telemetry: Telemetry) -> None:
    """Makes every error of the application a problem answer."""
    for kind, answerer in answerers(telemetry).items():
        app.add_exception_handler(kind, answerer)
    app.add_exception_handler(Exception, lambda request, error: failed(error, request.scope, telemetry))


def failed(error: Exception, scope: Scope, telemetry: Telemetry) -> Response:
    """Renders what ended a request: a problem as it is; anything else is a bug, which only the log tells."""
    if not isinstance(error, ProblemError):
        route = str(getattr(scope.get("route"), "path", "unknown"))
        _log.error("request_failed", method=scope["method"], route=route, exc_info=error)
        error = ProblemError(ProblemType.INTERNAL_ERROR, "the server failed to answer; its log says why")
    telemetry.refused(error.problem_type.value)
    return render(error)


def _http_detail(request: Request, error: HTTPException) -> str:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return "there is nothing at this path; the API is described at /docs"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"this path does not take {request.method[:16]}"
    return str(error.detail)


def _from_validation(error: Exception) -> ProblemError:
    if not isinstance(error, RequestValidationError):
        raise error
    errors: Sequence[Any] = error.errors()
    if any(isinstance(entry["input"], bytes) for entry in errors):
        return ProblemError(ProblemType.UNSUPPORTED_MEDIA_TYPE, "send the body with Content-Type: application/json")
    if any(entry["type"] == "json_invalid" for entry in errors):
        reason = errors[0].get("ctx", {}).get("error", "not JSON")
        return ProblemError(ProblemType.MALFORMED_REQUEST, f"the body is not JSON: {reason}")
    parts = [_fault(entry, error.body) for entry in errors[:_MAX_FIELDS_NAMED]]
    return ProblemError(ProblemType.INVALID_REQUEST, "; ".join(parts)[:2000])


def _fault(entry: Mapping[str, Any], body: object) -> str:
    place, *inner = entry["loc"]
    if place == "body" and (inner or entry["type"] == "value_error"):
        return describe_fault({**entry, "loc": inner}, body)
    return f"{'.'.join(str(part)[:64] for part in entry['loc'])}: {entry['msg']}"
