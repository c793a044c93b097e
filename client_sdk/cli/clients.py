"""`fedquorum clients`."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

from typing import Annotated, Final

import typer

from client_sdk.cli.options import DEFAULT_SERVER, Insecure, Json, Server, TokenFile, with_client
from client_sdk.cli.output import print_json, print_messages
from client_sdk.errors import UsageError

app: Final = typer.Typer(no_args_is_help=True)

_COLUMNS: Final = ("client_id", "name", "attributes", "created_at", "last_seen_at", "revoked_at")


@app.command("list")
def list_clients(
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """List the enrolled clients."""
    found = with_client(
        lambda client: client.list_clients(),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
    print_messages(found, columns=_COLUMNS, as_json=as_json)


@app.command("enrol")
def enrol(
    name: Annotated[str, typer.Argument(help="A name for people, such as hospital-a.")],
    attribute: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, for selection; may be repeated.")] = None,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Enrol a client, with an operator or an enrolment token, and print the client's token: it is shown this once."""
    from pydantic import ValidationError

    from fl_protocol.tasks import ClientRequest

    try:
        request = ClientRequest(name=name, attributes=_attributes(attribute or []))
    except ValidationError as error:
        raise UsageError(f"{name!r} cannot be enrolled: {error.errors()[0]['msg']}") from None
    enrolled = with_client(
        lambda client: client.enrol_client(request),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
    if as_json:
        print_json(enrolled)
    else:
        typer.echo(enrolled.token)
        typer.echo(f"{enrolled.name} is {enrolled.client_id}", err=True)


def _attributes(pairs: list[str]) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--attribute {pair!r} is not NAME=VALUE")
        attributes[name] = value
    return attributes


@app.command("revoke")
def revoke(
    client_id: Annotated[str, typer.Argument(help="As `clients list` shows it.")],
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Revoke a client: its token stops working at once."""
    with_client(
        lambda client: client.revoke_client(client_id),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
    if as_json:
        print_json({"client_id": client_id, "revoked": True})
    else:
        typer.echo(f"{client_id} is revoked")
