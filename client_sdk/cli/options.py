"""What every command that speaks to a server is told, and how it opens the connection."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from client_sdk.errors import UsageError

if TYPE_CHECKING:
    from client_sdk.client import AggregatorClient

Result = TypeVar("Result")

TOKEN_VARIABLE: Final = "FEDQUORUM_TOKEN"  # noqa: S105 - a name, no token
MAX_TOKEN_FILE_BYTES: Final = 8192

Server = Annotated[
    str, typer.Option("--server", envvar="FEDQUORUM_SERVER", help="The server's address.", rich_help_panel="Server")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help=f"A file that holds the token; otherwise {TOKEN_VARIABLE} does.",
        rich_help_panel="Server",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--allow-insecure-http",
        envvar="FEDQUORUM_ALLOW_INSECURE_HTTP",
        help="Send the token over http:// to another machine, readable on the way.",
        rich_help_panel="Server",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

DEFAULT_SERVER: Final = "http://127.0.0.1:8080"
HASTY_ATTEMPTS: Final = 4
"""How often a command that somebody waits for tries to reach the server."""


def read_token(token_file: Path | None) -> str:
    """Reads the token from the file or the environment; raises UsageError if there is none."""
    if token_file is not None:
        try:
            with token_file.open(encoding="ascii", errors="replace") as file:
                return file.read(MAX_TOKEN_FILE_BYTES).strip()
        except OSError as error:
            raise UsageError(f"the token file cannot be read: {error}") from None
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise UsageError(f"no token: put it into {TOKEN_VARIABLE}, or into a file for --token-file")
    return token


def with_client(
    use: Callable[["AggregatorClient"], Coroutine[Any, Any, Result]],
    *,
    server: str,
    token_file: Path | None,
    allow_insecure_http: bool,
    patient: bool = False,
) -> Result:
    """Opens a client and runs `use` with it; `patient` work outlives a server that restarts."""
    import anyio

    from client_sdk.client import AggregatorClient
    from client_sdk.config import DEFAULT_LIMITS, Limits

    limits = DEFAULT_LIMITS if patient else Limits(max_attempts=HASTY_ATTEMPTS)
    token = read_token(token_file)

    async def run() -> Result:
        async with AggregatorClient(
            server, token=token, allow_insecure_http=allow_insecure_http, limits=limits
        ) as client:
            return await use(client)

    return anyio.run(run)
