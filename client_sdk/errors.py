"""Every error that the SDK raises.

FedQuorumError
├── UsageError                      the caller gave something that cannot work; nothing was sent
│   └── InsecureTransportError      http:// to another machine, where anybody on the way reads the token
├── TrainerError                    the trainer returned something that cannot be sent
├── RunFailedError                  the run that was waited for failed or was stopped
├── PolicyError                     the client's own privacy policy forbids the task; nothing was trained or sent
├── PrivacyBudgetError              the update would cost more than the run promised its clients; nothing was sent
├── TransportError                  the network lost the request or the answer
├── UntrustedAnswerError            the server sent something that cannot be true, or more than it may
│   ├── DeltaRefusedError           a delta does not make the model that was expected; the whole one is asked for
│   ├── PrivacyClaimError           what it says of the run's privacy is not what this client has counted and computed
│   ├── ManifestError               a masked round's manifest is not the one that its run and task say
│   │   └── ManifestForkError       it signed two manifests of which the log can hold only one; both are kept
│   ├── SessionRefusedError         a masked session would break a rule of the protocol; this client has left it
│   └── TranscriptError             a masked session's transcript does not have what this client sent and signed
└── ServerError                     the server refused, and said why
    ├── MalformedUpdateError        MalformedRequestError      InvalidRequestError
    ├── UnauthenticatedError        ForbiddenError             NotFoundError
    ├── MethodNotAllowedError       RangeNotSatisfiableError   UnsupportedMediaTypeError
    ├── AlreadySubmittedError       StateConflictError         IdempotencyKeyReusedError
    ├── RoundClosedError            RunFinishedError           TooLargeError
    ├── StructureMismatchError      NonFiniteError             ValueOutOfRangeError
    ├── InvalidMetadataError        DigestMismatchError        TooManyRequestsError
    ├── RequestTimeoutError         InternalServerError        UnavailableError
    ├── EquivocationError           PhaseClosedError           SessionAbortedError
    ├── InvalidMessageError         InsufficientStorageError   RemovedError
    └── MismatchingUploadOffsetError  CompletedUploadError
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Final

from fl_protocol.problems import Problem, ProblemType

MAX_SHOWN_CHARACTERS: Final = 500

_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e\u00a1-\u024f\u0370-\u1fff\u2010-\u2027\u2030-\u205e\u3040-\ud7ff]+")


def printable(text: str) -> str:
    """Makes a string of the server fit for a terminal: one line, no control characters, at most 500 characters."""
    shown = _UNPRINTABLE.sub(" ", text[: 4 * MAX_SHOWN_CHARACTERS]).strip()
    return shown if len(shown) <= MAX_SHOWN_CHARACTERS else shown[: MAX_SHOWN_CHARACTERS - 1] + "…"


class FedQuorumError(Exception):
    """Anything that the SDK raises on purpose."""


class UsageError(FedQuorumError):
    """The caller gave something that cannot work; nothing was sent."""


class InsecureTransportError(UsageError):
    """The address is http:// on another machine, where anybody on the way could read the token."""


class TrainerError(FedQuorumError):
    """The trainer or evaluator returned something that cannot be sent."""


class RunFailedError(FedQuorumError):
    """The run that was waited for failed or was stopped before its last round."""


class _Bounded(Exception):  # noqa: N818 - what an error has, not an error
    """A value that its bound does not allow; `field` names it."""

    def __init__(self, detail: str, *, field: str, value: object, bound: object) -> None:
        super().__init__(printable(detail))
        self.field: Final = field
        self.value: Final = value
        self.bound: Final = bound


class PolicyError(_Bounded, FedQuorumError):
    """The client's own privacy policy forbids the task: it was handed back, and nothing was trained or sent.

    `field` is the policy's, `value` what the run has there and `bound` what the policy allows.
    """


class PrivacyBudgetError(_Bounded, FedQuorumError):
    """The update would cost this client more than the run promised; nothing was sent.

    `field` is the promise's, `value` what it would come to and `bound` what was promised.
    """


class TransportError(FedQuorumError):
    """The network lost the request or the answer, or the server was not there."""


class UntrustedAnswerError(FedQuorumError):
    """The server sent something that cannot be true or more than it may: a wrong digest, shape, type or length."""


class DeltaRefusedError(UntrustedAnswerError):
    """A delta does not make the expected model of the file that it was applied to; the whole model is asked for."""


class PrivacyClaimError(_Bounded, UntrustedAnswerError):
    """What the server says of the run's privacy is not what this client has counted and computed; nothing was trained.

    `field` is the claim's, `value` what the server says and `bound` what this client knows.
    """


class ManifestError(_Bounded, UntrustedAnswerError):
    """A masked round's manifest is not what the run, the task and this client's own log say; nothing was trained.

    `field` is the manifest's, `value` what it has there and `bound` what would be right.
    """


class ManifestForkError(ManifestError):
    """The server signed two manifests of which a log can hold only one; `evidence` is the file that holds both."""

    def __init__(self, detail: str, *, field: str, value: object, bound: object, evidence: str) -> None:
        super().__init__(detail, field=field, value=value, bound=bound)
        self.evidence: Final = evidence


class SessionRefusedError(_Bounded, UntrustedAnswerError):
    """A masked session would break a rule of the protocol: this client has left it, and its secrets are gone.

    `rule` is the rule's name (C2 to C7; docs/privacy), `field` what was wrong in the server's message.
    """

    def __init__(self, detail: str, *, rule: str, field: str, value: object, bound: object) -> None:
        super().__init__(detail, field=field, value=value, bound=bound)
        self.rule: Final = rule


class TranscriptError(_Bounded, UntrustedAnswerError):
    """The transcript of a finished session does not have what this client sent and signed: it was left out, or worse.

    `field` is the transcript's, `value` what it has there and `bound` what this client knows.
    """


class ServerError(FedQuorumError):
    """The server refused a request.

    `problem` is its problem document (None when something else than the server answered, such as a proxy), `status` the
    HTTP status, `retry_after_seconds` what it asked to wait.
    """

    problem_type: ClassVar[ProblemType | None] = None

    def __init__(
        self, detail: str, *, status: int, problem: Problem | None = None, retry_after_seconds: float | None = None
    ) -> None:
        self.detail: Final = printable(detail)
        super().__init__(self.detail)
        self.status: Final = status
        self.problem: Final = problem
        self.retry_after_seconds: Final = retry_after_seconds

    @property
    def retryable(self) -> bool:
        """Whether the server says that the same request may succeed later."""
        return self.problem is not None and self.problem.retryable


class MalformedUpdateError(ServerError):
    """The update was not safetensors, or was cut."""

    problem_type = ProblemType.MALFORMED_UPDATE


class MalformedRequestError(ServerError):
    """The request was not JSON or not HTTP as the contract has it."""

    problem_type = ProblemType.MALFORMED_REQUEST


class UnauthenticatedError(ServerError):
    """The token is missing, unknown or revoked."""

    problem_type = ProblemType.UNAUTHENTICATED


class ForbiddenError(ServerError):
    """The token is valid and may not do this."""

    problem_type = ProblemType.FORBIDDEN


class NotFoundError(ServerError):
    """There is no such thing, or not for this token."""

    problem_type = ProblemType.NOT_FOUND


class MethodNotAllowedError(ServerError):
    """The path is known and the method is not."""

    problem_type = ProblemType.METHOD_NOT_ALLOWED


class AlreadySubmittedError(ServerError):
    """Other bytes were accepted for this task before."""

    problem_type = ProblemType.ALREADY_SUBMITTED


class StateConflictError(ServerError):
    """The run or round is in a state in which this cannot be done."""

    problem_type = ProblemType.STATE_CONFLICT


class RoundClosedError(ServerError):
    """The round closed without this update."""

    problem_type = ProblemType.ROUND_CLOSED


class RunFinishedError(ServerError):
    """The run is over: there will be no more tasks."""

    problem_type = ProblemType.RUN_FINISHED


class RemovedError(ServerError):
    """The run's retention policy has removed these bytes; what is known of them stays."""

    problem_type = ProblemType.REMOVED


class TooLargeError(ServerError):
    """The body is larger than it may be."""

    problem_type = ProblemType.TOO_LARGE


class RangeNotSatisfiableError(ServerError):
    """The asked range lies outside the model's bytes."""

    problem_type = ProblemType.RANGE_NOT_SATISFIABLE


class UnsupportedMediaTypeError(ServerError):
    """The server takes neither this media type nor this content encoding here."""

    problem_type = ProblemType.UNSUPPORTED_MEDIA_TYPE


class InvalidRequestError(ServerError):
    """A field is missing, unknown or out of its range; `detail` names it."""

    problem_type = ProblemType.INVALID_REQUEST


class StructureMismatchError(ServerError):
    """A tensor is missing, unknown, or of another shape or type than the model's."""

    problem_type = ProblemType.STRUCTURE_MISMATCH


class NonFiniteError(ServerError):
    """A tensor holds NaN or infinity."""

    problem_type = ProblemType.NON_FINITE


class ValueOutOfRangeError(ServerError):
    """An element is larger than the run's max_abs_delta."""

    problem_type = ProblemType.VALUE_OUT_OF_RANGE


class InvalidMetadataError(ServerError):
    """The update's num_examples or metrics are not as the contract has them."""

    problem_type = ProblemType.INVALID_METADATA


class DigestMismatchError(ServerError):
    """The bytes that arrived are not those that were sent."""

    problem_type = ProblemType.DIGEST_MISMATCH


class IdempotencyKeyReusedError(ServerError):
    """The idempotency key was used before for another request."""

    problem_type = ProblemType.IDEMPOTENCY_KEY_REUSED


class TooManyRequestsError(ServerError):
    """The server asks to wait before the next request."""

    problem_type = ProblemType.TOO_MANY_REQUESTS


class RequestTimeoutError(ServerError):
    """The request took too long to arrive."""

    problem_type = ProblemType.REQUEST_TIMEOUT


class InternalServerError(ServerError):
    """The server has a bug or a broken dependency."""

    problem_type = ProblemType.INTERNAL_ERROR


class UnavailableError(ServerError):
    """The server cannot answer just now."""

    problem_type = ProblemType.UNAVAILABLE


class EquivocationError(ServerError):
    """Other bytes were sent for the same place of a masked session before, and those stand."""

    problem_type = ProblemType.EQUIVOCATION


class PhaseClosedError(ServerError):
    """The masked session takes this message in another phase: it came too late, or too early."""

    problem_type = ProblemType.PHASE_CLOSED


class SessionAbortedError(ServerError):
    """The masked session ended without a sum; `detail` says why."""

    problem_type = ProblemType.SESSION_ABORTED


class InvalidMessageError(ServerError):
    """A message of a masked session has not the form, the signature or the keys that it must have."""

    problem_type = ProblemType.INVALID_MESSAGE


class MismatchingUploadOffsetError(ServerError):
    """The bytes do not follow those that the server has of this upload; it is asked for their number and goes on."""

    problem_type = ProblemType.MISMATCHING_UPLOAD_OFFSET


class CompletedUploadError(ServerError):
    """The upload has all its bytes already."""

    problem_type = ProblemType.COMPLETED_UPLOAD


class InsufficientStorageError(ServerError):
    """The server's disk is full."""

    problem_type = ProblemType.INSUFFICIENT_STORAGE


ERROR_OF_PROBLEM: Final[Mapping[str, type[ServerError]]] = MappingProxyType(
    {error.problem_type: error for error in ServerError.__subclasses__() if error.problem_type is not None}
)
"""The exception of each problem type by its slug; a test holds it complete."""


def error_of_problem(problem: Problem, *, status: int, retry_after_seconds: float | None = None) -> ServerError:
    """Makes the exception that a problem document names; ServerError itself for a type this version does not know."""
    kind = ERROR_OF_PROBLEM.get(problem.type.rsplit("/", 1)[-1], ServerError)
    return kind(
        problem.detail or problem.title, status=status, problem=problem, retry_after_seconds=retry_after_seconds
    )
