"""Problem types (RFC 9457): the names that both sides use for everything that can be refused."""

from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"


class ProblemType(StrEnum):
    """The stable slugs; the URI reference on the wire is `/problems/<slug>`."""

    MALFORMED_UPDATE = "malformed-update"
    MALFORMED_REQUEST = "malformed-request"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    ALREADY_SUBMITTED = "already-submitted"
    STATE_CONFLICT = "state-conflict"
    MISMATCHING_UPLOAD_OFFSET = "mismatching-upload-offset"
    COMPLETED_UPLOAD = "completed-upload"
    ROUND_CLOSED = "round-closed"
    EQUIVOCATION = "equivocation"
    PHASE_CLOSED = "phase-closed"
    SESSION_ABORTED = "session-aborted"
    INVALID_MESSAGE = "invalid-message"
    RUN_FINISHED = "run-finished"
    REMOVED = "removed"
    TOO_LARGE = "too-large"
    RANGE_NOT_SATISFIABLE = "range-not-satisfiable"
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type"
    INVALID_REQUEST = "invalid-request"
    STRUCTURE_MISMATCH = "structure-mismatch"
    NON_FINITE = "non-finite"
    VALUE_OUT_OF_RANGE = "value-out-of-range"
    INVALID_METADATA = "invalid-metadata"
    DIGEST_MISMATCH = "digest-mismatch"
    IDEMPOTENCY_KEY_REUSED = "idempotency-key-reused"
    TOO_MANY_REQUESTS = "too-many-requests"
    REQUEST_TIMEOUT = "request-timeout"
    INTERNAL_ERROR = "internal-error"
    UNAVAILABLE = "unavailable"
    INSUFFICIENT_STORAGE = "insufficient-storage"


RETRYABLE: Final = frozenset(
    {
        ProblemType.TOO_MANY_REQUESTS,
        ProblemType.REQUEST_TIMEOUT,
        ProblemType.INTERNAL_ERROR,
        ProblemType.UNAVAILABLE,
        ProblemType.INSUFFICIENT_STORAGE,
        ProblemType.DIGEST_MISMATCH,
    }
)
"""The same request may succeed later; everything else needs a different request."""


class Problem(BaseModel):
    """The body of an error answer (`application/problem+json`)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    retryable: bool


class ProblemError(Exception):
    """A broken rule of the contract; `detail` says what was wrong and what would be right."""

    def __init__(self, problem_type: ProblemType, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(f"{problem_type.value}: {detail}")
        self.problem_type = problem_type
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds


def problem_uri(problem_type: ProblemType) -> str:
    """Gives the URI reference that stands in a problem's `type`."""
    return f"/problems/{problem_type.value}"


def problem_type_of(uri: str) -> ProblemType | None:
    """Reads the problem type from a `type` URI; None for one this version does not know."""
    slug = uri.rsplit("/", 1)[-1]
    return next((known for known in ProblemType if known.value == slug), None)
