"""`serve` and `migrate`: hand over to the server's own command line."""

import importlib.util
import os
import sys
from typing import Final

import typer

from client_sdk.errors import UsageError

_NEEDED: Final = ("aggregator_service", "fastapi", "uvicorn", "sqlalchemy", "alembic", "pydantic_settings")


def add_to(app: typer.Typer) -> None:
    """Adds both commands; every argument, --help too, goes through to the server."""
    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command("serve", help="Start a server (all options: fedquorum serve --help).", context_settings=settings)(serve)
    app.command("migrate", help="Bring a server's database up to date.", context_settings=settings)(migrate)


def serve(context: typer.Context) -> None:
    """Starts a server."""
    _hand_over("serve", context.args)


def migrate(context: typer.Context) -> None:
    """Brings a server's database up to date."""
    _hand_over("migrate", context.args)


def _hand_over(command: str, arguments: list[str]) -> None:
    missing = next((name for name in _NEEDED if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        raise UsageError(f"the server is not installed ({missing} is missing): pip install 'fedquorum[server]'")
    sys.stdout.flush()
    # The server takes this process's place, so that signals and exit codes are its own.
    os.execv(sys.executable, [sys.executable, "-m", "aggregator_service", command, *arguments])  # noqa: S606
