"""`fedquorum helper`: run one of the independent parties that a run in helper mode needs."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from client_sdk.cli.options import DEFAULT_SERVER, Insecure, Json, Server, TokenFile, read_token
from client_sdk.cli.output import cell, print_json
from client_sdk.errors import UsageError

if TYPE_CHECKING:
    from client_sdk.mask_helper.keys import HelperKeys, HelperKeyStore

app: Final = typer.Typer(no_args_is_help=True)

Folder = Annotated[
    Path, typer.Option("--helper-dir", help="The helper's own folder: its keys and its log of releases.")
]


@app.command()
def keygen(
    helper_dir: Folder,
    name: Annotated[str, typer.Option(help="The name by which a run's clients know this helper.")],
) -> None:
    """Make a helper's keys, once, and print what a run's secure_aggregation.helpers needs of them."""
    _print_public(_store(helper_dir).create(name))


@app.command()
def show(helper_dir: Folder) -> None:
    """Print what a run's secure_aggregation.helpers needs of a helper's keys."""
    _print_public(_store(helper_dir).load())


@app.command()
def serve(
    helper_dir: Folder,
    roster: Annotated[
        Path | None, typer.Option(help="Your own list of clients: CLIENT_ID PUBLIC_KEY on each line.")
    ] = None,
    trust_server_roster: Annotated[
        bool,
        typer.Option(
            "--trust-server-roster",
            help="Believe the server who its clients are. It could then invent all but one of them.",
        ),
    ] = False,
    min_members: Annotated[int, typer.Option(min=3, help="Tell no sum of fewer clients, whatever a run allows.")] = 5,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Tell a server the sums of clients' masks, never one mask, until this is interrupted.

    The operator makes the token: `fedquorum token helper SIGNING_KEY`.

    Whom this helper has told of is in releases.jsonl of its folder: keep it.
    """
    import anyio

    from client_sdk.client import AggregatorClient
    from client_sdk.mask_helper.helper import MaskHelper
    from client_sdk.mask_helper.serving import HELPER_LIMITS
    from client_sdk.mask_helper.serving import serve as answer
    from client_sdk.masking.trust import load_roster

    _check_roster(roster, trust_server_roster=trust_server_roster)
    keys, token = _store(helper_dir).load(), read_token(token_file)
    known = None if roster is None else load_roster(roster)

    def tell(line: str) -> None:
        if as_json:
            print_json({"event": line})
        else:
            typer.echo(cell(line))

    async def run() -> None:
        helper = MaskHelper(keys, helper_dir, roster=known, min_members=min_members)
        try:
            async with AggregatorClient(
                server, token=token, allow_insecure_http=allow_insecure_http, limits=HELPER_LIMITS
            ) as client:
                tell(f"helper {keys.name} waits for {server}")
                await answer(client, helper, tell=tell)
        finally:
            helper.close()

    anyio.run(run)


def _check_roster(roster: Path | None, *, trust_server_roster: bool) -> None:
    """Raises UsageError unless it was said whose list of clients counts, and warns if that is the server's."""
    if (roster is None) != trust_server_roster:
        raise UsageError(
            "give this helper its own list of clients (--roster), or say with --trust-server-roster that it has none: "
            "then the server decides who is a client, and masks protect nobody from an operator who invents clients"
        )
    if roster is None:
        typer.echo(
            "WARNING: --trust-server-roster: this helper believes the server who its clients are. An operator who "
            "invents all but one of them learns that one's update.",
            err=True,
        )


def _store(folder: Path) -> "HelperKeyStore":
    if importlib.util.find_spec("cryptography") is None:
        raise UsageError("a helper needs cryptography (the extra [privacy]): pip install 'fedquorum[privacy]'")
    from client_sdk.mask_helper.keys import HelperKeyStore

    return HelperKeyStore(folder)


def _print_public(keys: "HelperKeys") -> None:
    print_json(keys.public.model_dump())
