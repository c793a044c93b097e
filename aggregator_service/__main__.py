"""`python -m aggregator_service serve|migrate`: what `fedquorum serve` and `fedquorum migrate` hand over to."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from aggregator_service import app as composition
from aggregator_service import server
from aggregator_service.allocator import limit_arenas
from aggregator_service.app import SettingsError
from aggregator_service.descriptors import allow_descriptors
from aggregator_service.domain.privacy.ledger import LedgerError
from aggregator_service.server import ListenError
from aggregator_service.storage.blobs import BlobStoreError
from aggregator_service.storage.engine import DatabaseUrlError
from aggregator_service.storage.schema import SchemaError
from aggregator_service.telemetry import configure_logging

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
        str | None,
        typer.Option(
            help="Where new tensors are kept: database, file:///FOLDER or s3://BUCKET/PREFIX "
            "[env: FEDQUORUM_BLOB_STORE, else database]"
        ),
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
    configure_logging()
    limit_arenas()
    allow_descriptors()
    with _one_line_errors():
        settings = composition.read_settings(
            host=host, port=port, database_url=database_url, blob_store=blob_store, behind_proxy=behind_proxy
        )
        listening = server.bind(settings.host, settings.port, behind_proxy=settings.behind_proxy)
        service = composition.build(settings, show_operator_token=_show_operator_token)
    sys.exit(0 if server.run(service, listening, announce=_announce) else 1)


@cli.command()
def migrate(*, database_url: DatabaseUrl = None) -> None:
    """Bring the database's schema up to date, then exit."""
    configure_logging()
    with _one_line_errors():
        composition.migrate_database(composition.read_settings(database_url=database_url))
    typer.echo("the schema is current")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (SettingsError, ListenError, DatabaseUrlError, BlobStoreError, SchemaError, LedgerError) as error:
        typer.echo(f"fedquorum: {error}", err=True)
        sys.exit(1)


def _announce(address: str) -> None:
    typer.echo(f"API docs at {address}/docs")
    typer.echo(f"listening on {address}")


def _show_operator_token(token: str) -> None:
    typer.echo(f"operator token (shown this once, keep it safe): {token}")


if __name__ == "__main__":
    cli(prog_name="fedquorum")
