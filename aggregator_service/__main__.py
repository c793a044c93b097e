"""`python -m aggregator_service serve|migrate`: what `fedquorum serve` and `fedquorum migrate` hand over to."""

import ipaddress
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, NoReturn

import typer
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from aggregator_service import app as composition
from aggregator_service.api.http_protocol import BoundedHttpProtocol
from aggregator_service.settings import Settings
from aggregator_service.storage.engine import DatabaseUrlError
from aggregator_service.storage.schema import SchemaError
from aggregator_service.telemetry import configure_logging

_DRAIN_SECONDS: Final = 10
_BACKLOG: Final = 2048

cli = typer.Typer(no_args_is_help=True, add_completion=False, help="The FedQuorum aggregation server.")

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        help="sqlite:///FILE or postgresql://USER@HOST/NAME [env: FEDQUORUM_DATABASE_URL, else sqlite:///fedquorum.db]"
    ),
]


@cli.command()
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on [env: FEDQUORUM_HOST, else 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 takes a free one [env: FEDQUORUM_PORT, else 8080]")
    ] = None,
    database_url: DatabaseUrl = None,
    blob_store: Annotated[
        str | None, typer.Option(help="Where tensors are kept [env: FEDQUORUM_BLOB_STORE, else database]")
    ] = None,
    behind_proxy: Annotated[
        bool | None,
        typer.Option(
            "--behind-proxy",
            help="Listen off loopback without TLS because a proxy in front adds it [env: FEDQUORUM_BEHIND_PROXY]",
        ),
    ] = None,
) -> None:
    """Serve the API until SIGTERM.

    The first start prints an operator token once, unless FEDQUORUM_OPERATOR_TOKEN gives it.
    """
    settings = _settings(
        host=host, port=port, database_url=database_url, blob_store=blob_store, behind_proxy=behind_proxy
    )
    _refuse_plaintext_exposure(settings)
    configure_logging()
    listening = _bind(settings)
    application = composition.build(settings, show_operator_token=_show_operator_token)
    server = _Server(application, listening)
    server.run(sockets=[listening])
    sys.exit(0 if server.started else 1)


@cli.command()
def migrate(*, database_url: DatabaseUrl = None) -> None:
    """Bring the database's schema up to date, then exit."""
    configure_logging()
    try:
        composition.migrate_database(_settings(database_url=database_url))
    except (DatabaseUrlError, SchemaError) as error:
        _fail(str(error))
    typer.echo("the schema is current")


class _Server(uvicorn.Server):
    """Says when it listens and lets held requests go when it stops."""

    def __init__(self, application: FastAPI, listening: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                http=BoundedHttpProtocol,
                loop="uvloop",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_graceful_shutdown=_DRAIN_SECONDS,
            )
        )
        self._application = application
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self._listening.getsockname()[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            typer.echo(f"API docs at {address}/docs")
            typer.echo(f"listening on {address}")
            sys.stdout.flush()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes SIGTERM and SIGINT as the wish to drain; uvicorn would raise them again afterwards and exit by them."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        composition.drain(self._application)
        await super().shutdown(sockets)


def _settings(**given: Any) -> Settings:
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        _fail(f"setting {'.'.join(map(str, first['loc']))}: {first['msg']}")


def _refuse_plaintext_exposure(settings: Settings) -> None:
    if settings.behind_proxy or _is_loopback(settings.host):
        return
    _fail(
        f"listening on {settings.host} without TLS would show tokens and updates to the network; put a TLS proxy in "
        "front and say so with --behind-proxy (FEDQUORUM_BEHIND_PROXY=true), or listen on 127.0.0.1"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bind(settings: Settings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
    except OSError as error:
        _fail(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another with --port")
    return listening


def _show_operator_token(token: str) -> None:
    typer.echo(f"operator token (shown this once, keep it safe): {token}")


def _fail(message: str) -> NoReturn:
    typer.echo(f"fedquorum: {message}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    cli(prog_name="fedquorum")
