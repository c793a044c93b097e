"""What all routes share: a request, its answer, and how each is checked. Performs no I/O."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Generic, TypeVar

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from client_sdk.errors import ServerError, UntrustedAnswerError, UsageError, error_of_problem, printable
from fl_protocol import routes
from fl_protocol.messages import ResponseMessage
from fl_protocol.problems import PROBLEM_MEDIA_TYPE, Problem

Parsed = TypeVar("Parsed")
Message = TypeVar("Message", bound=BaseModel)
Item = TypeVar("Item", bound=BaseModel)

_PATH_SAFE: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,127}", re.ASCII)
_IDENTIFIERS: Final = ("run_id", "task_id", "client_id", "session_id", "request_id", "upload_id")
_MAX_COMMAS: Final = 100_000
"""Bounds how many values a JSON text has, and so the memory that it takes once read: 4 MiB of `0,` take gigabytes."""

_MAX_FAULTS: Final = 100


class Page(ResponseMessage, Generic[Item]):
    """One page of a list; `next_cursor` asks for the next one and is None on the last. `num_bytes` is its size."""

    items: Annotated[list[Item], Field(fail_fast=True)]
    next_cursor: Annotated[str, StringConstraints(max_length=4096)] | None = None
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer read whole: its status, its headers by lower-case name, its decoded body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[Parsed]):
    """A request to send and how to read its answer; `wait_seconds` is how long the server may hold it.

    `uploads` is where an upload that goes on after a cut can be created for a body as large as this request may have.
    """

    method: str
    path: str
    parse: Callable[[Answer], Parsed]
    statuses: frozenset[int] = frozenset({200})
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    wait_seconds: float = 0.0
    uploads: str | None = None


def path(template: str, **parameters: str | int) -> str:
    """Fills a route's parameters; raises UsageError for an identifier that could change the path."""
    for name, value in parameters.items():
        if isinstance(value, str) and _PATH_SAFE.fullmatch(value) is None:
            raise UsageError(f"{name} {printable(value)!r} is not an identifier")
    return routes.path(template, **parameters)


def message_of(kind: type[Message], answer: Answer, asked: Mapping[str, str] | None = None) -> Message:
    """Reads a JSON answer; raises UntrustedAnswerError, naming the field, if it is not what the contract says.

    `asked` holds the identifiers that the message must have, because it was asked for by them.
    """
    try:
        message = read_json(kind, answer.body)
    except (ValidationError, ValueError, RecursionError) as error:
        raise UntrustedAnswerError(f"the server's {kind.__name__} cannot be read: {_first_fault(error)}") from None
    check_identifiers(message)
    for name, value in (asked or {}).items():
        if getattr(message, name) != value:
            raise UntrustedAnswerError(f"the server answered with the {kind.__name__} of another {name}")
    return message


def page_of(kind: type[Item], answer: Answer) -> Page[Item]:
    """Reads one page of a list."""
    page = message_of(Page[kind], answer)  # type: ignore[valid-type]
    for item in page.items:
        check_identifiers(item)
    return page.model_copy(update={"num_bytes": len(answer.body)})


def read_json(kind: type[Message], body: bytes) -> Message:
    """Reads a message from JSON; raises ValueError if it is none, or too much of it."""
    if body.count(b",") > _MAX_COMMAS:
        raise ValueError(f"it holds more than {_MAX_COMMAS} values")
    return kind.model_validate_json(body)


def check_identifiers(message: BaseModel) -> None:
    """Raises UntrustedAnswerError for an identifier that could change a path that it is put into."""
    for name in _IDENTIFIERS:
        value = getattr(message, name, None)
        if value is not None and _PATH_SAFE.fullmatch(value) is None:
            raise UntrustedAnswerError(f"the server's {name} {printable(value)[:100]!r} is not an identifier")


def _first_fault(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return printable(str(error))
    if error.error_count() > _MAX_FAULTS:
        return f"{error.error_count()} of its fields are wrong"
    fault = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return printable(f"{where}: {fault['msg']}" if where else fault["msg"])


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Reads a Retry-After given in seconds; None for none, a date or nonsense."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def error_of(answer: Answer) -> ServerError | UntrustedAnswerError:
    """Makes the error of an answer whose status is not the one hoped for."""
    status = answer.status
    if 300 <= status < 400:
        target = printable(answer.headers.get("location", "nowhere"))
        return UntrustedAnswerError(
            f"the server redirects to {target}; a token is never sent on: if that is the server, give its address"
        )
    if status < 400:
        return UntrustedAnswerError(f"the server answered {status}, which is no answer to this request")
    wait = retry_after_seconds(answer.headers)
    is_problem = answer.headers.get("content-type", "").split(";")[0].strip().lower() == PROBLEM_MEDIA_TYPE
    if is_problem and answer.body:
        try:
            problem = read_json(Problem, answer.body)
        except (ValidationError, ValueError, RecursionError):
            return UntrustedAnswerError(f"the server answered {status} with a problem document that cannot be read")
        return error_of_problem(problem, status=status, retry_after_seconds=wait)
    if not answer.body:
        return ServerError(f"the server answered {status} and nothing else", status=status, retry_after_seconds=wait)
    return ServerError(
        f"{status} from something that is not a FedQuorum server: check the address, and proxies on the way",
        status=status,
        retry_after_seconds=wait,
    )
