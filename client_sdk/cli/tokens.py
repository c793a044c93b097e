"""`fedquorum token`: for those who enrol clients, and for helpers."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

from typing import Annotated, Final

import typer

from client_sdk.cli.options import DEFAULT_SERVER, Insecure, Json, Server, TokenFile, with_client
from client_sdk.cli.output import print_json

app: Final = typer.Typer(no_args_is_help=True)


@app.command("create")
def create(
    max_uses: Annotated[int, typer.Option(min=1, help="How many clients may enrol with it.")] = 1,
    expires_in_seconds: Annotated[float, typer.Option(min=1, help="How long it is valid.")] = 86_400,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Make an enrolment token, with which clients enrol themselves; it is shown this once."""
    from fl_protocol.tasks import EnrolmentTokenRequest

    request = EnrolmentTokenRequest(max_uses=max_uses, expires_in_seconds=expires_in_seconds)
    made = with_client(
        lambda client: client.create_enrolment_token(request),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
    if as_json:
        print_json(made)
    else:
        typer.echo(made.token)
        typer.echo(f"for {made.max_uses} client(s), until {made.expires_at:%Y-%m-%d %H:%M} UTC", err=True)


@app.command("helper")
def helper(
    signing_key: Annotated[str, typer.Argument(help="The signing_key that `fedquorum helper keygen` printed.")],
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Make a helper's token, which sees and answers the requests for its key alone; it is shown this once."""
    from client_sdk.masking.trust import parse_key
    from fl_protocol.helper_mode import HelperTokenRequest

    request = HelperTokenRequest(signing_key=parse_key(signing_key, what="SIGNING_KEY").hex())
    made = with_client(
        lambda client: client.create_helper_token(request),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
    if as_json:
        print_json(made)
    else:
        typer.echo(made.token)


@app.command("revoke-helper")
def revoke_helper(
    signing_key: Annotated[str, typer.Argument(help="The helper's signing_key.")],
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
) -> None:
    """Make all tokens of a helper stop working at once."""
    from client_sdk.masking.trust import parse_key

    key = parse_key(signing_key, what="SIGNING_KEY").hex()
    with_client(
        lambda client: client.revoke_helper(key),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
