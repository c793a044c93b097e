"""Turns errors into one line that says what to do."""

from dataclasses import dataclass

from client_sdk.errors import (
    FedQuorumError,
    ServerError,
    TransportError,
    UnauthenticatedError,
    UsageError,
    printable,
)


@dataclass(frozen=True, slots=True)
class Line:
    """What is written and with which exit code the command ends: 1 for an error, 2 for wrong usage."""

    text: str
    exit_code: int


def one_line(error: BaseException) -> Line | None:
    """Says an expected error in one line; None for a bug, which deserves its traceback."""
    while isinstance(error, BaseExceptionGroup):
        error = next((one for one in error.exceptions if isinstance(one, FedQuorumError)), error.exceptions[0])
    if isinstance(error, UsageError):
        return Line(str(error), 2)
    if isinstance(error, FedQuorumError):
        return Line(f"{error}{_advice(error)}", 1)
    if isinstance(error, OSError):
        return Line(printable(str(error)), 1)
    # typer's usage errors have no public base class; all of them can say themselves.
    message = getattr(error, "format_message", None)
    if callable(message):
        context = getattr(error, "ctx", None)
        where = getattr(context, "command_path", "fedquorum")
        return Line(f"{printable(str(message()))} (see {where} --help)", 2)
    if type(error).__name__ == "Abort":
        return Line("stopped", 1)
    return None


def _advice(error: FedQuorumError) -> str:
    match error:
        case TransportError():
            return "; is the server running, and is --server (or FEDQUORUM_SERVER) its address?"
        case UnauthenticatedError():
            return "; give a token with FEDQUORUM_TOKEN or --token-file"
        case ServerError(retry_after_seconds=float(seconds)):
            return f"; try again in {seconds:g} s"
        case _:
            return ""
