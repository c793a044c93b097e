"""`fedquorum identity`: a client's key, its fingerprint and its line in a roster; an authority's certificates."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from client_sdk.cli.options import Json
from client_sdk.cli.output import print_fields
from client_sdk.errors import UsageError

if TYPE_CHECKING:
    from client_sdk.masking.identity import Identity, IdentityStore

app: Final = typer.Typer(no_args_is_help=True)

StateDir = Annotated[Path, typer.Option(help="The client's own folder, the --state-dir of `fedquorum participate`.")]


@app.command()
def create(
    state_dir: StateDir,
    client_id: Annotated[str, typer.Option(envvar="FEDQUORUM_CLIENT_ID", help="The client's identifier.")],
    as_json: Json = False,
) -> None:
    """Make a client's key, once; it never leaves the folder."""
    _show(_store(state_dir).create(client_id), as_json=as_json)


@app.command()
def show(state_dir: StateDir, as_json: Json = False) -> None:
    """Show a client's fingerprint, and its line for a pinned roster."""
    _show(_loaded(_store(state_dir)), as_json=as_json)


@app.command()
def certify(
    client_id: Annotated[str, typer.Argument(help="The client's identifier.")],
    public_key: Annotated[str, typer.Argument(help="The public key that its `identity show` prints.")],
    authority_dir: Annotated[Path, typer.Option(help="The authority's folder; a key is made if it has none.")],
    as_json: Json = False,
) -> None:
    """Sign, as an authority, that a key is a client's; ask the client for its fingerprint first."""
    _check_installed()
    from client_sdk.masking.authority import Authority
    from client_sdk.masking.trust import parse_key

    authority = Authority.load_or_create(authority_dir)
    certificate = authority.certify(client_id, parse_key(public_key, what="PUBLIC_KEY"))
    print_fields({"authority": authority.public_key.hex(), "certificate": certificate.hex()}, as_json=as_json)


@app.command()
def accept(
    certificate: Annotated[str, typer.Argument(help="What the authority's `identity certify` printed.")],
    state_dir: StateDir,
    as_json: Json = False,
) -> None:
    """Add an authority's certificate to a client's identity, before its first masked run."""
    try:
        content = bytes.fromhex(certificate)
    except ValueError:
        raise UsageError("CERTIFICATE is not 128 hexadecimal digits") from None
    _show(_store(state_dir).add_certificate(content), as_json=as_json)


def _store(state_dir: Path) -> "IdentityStore":
    _check_installed()
    from client_sdk.masking.identity import IdentityStore

    return IdentityStore(state_dir)


def _loaded(store: "IdentityStore") -> "Identity":
    found = store.load()
    if found is None:
        raise UsageError(f"there is no identity at {store.path}; make one with `fedquorum identity create`")
    return found


def _check_installed() -> None:
    if importlib.util.find_spec("cryptography") is None:
        raise UsageError("identities need cryptography (the extra [privacy]): pip install 'fedquorum[privacy]'")


def _show(identity: "Identity", *, as_json: bool) -> None:
    fields: dict[str, object] = {
        "client_id": identity.client_id,
        "public_key": identity.public_key.hex(),
        "fingerprint": identity.fingerprint,
        "roster_line": identity.roster_line,
        "certificate": None if identity.certificate is None else identity.certificate.hex(),
    }
    print_fields(fields, as_json=as_json)
