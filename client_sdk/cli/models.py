"""`fedquorum model`."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from client_sdk.cli.options import DEFAULT_SERVER, Insecure, Json, Server, TokenFile, with_client
from client_sdk.cli.output import console, print_fields, print_json, print_table
from client_sdk.errors import UsageError

if TYPE_CHECKING:
    from client_sdk.client import AggregatorClient
    from client_sdk.transfer import StoredModel

app: Final = typer.Typer(no_args_is_help=True)


_COLUMNS: Final = ("version", "round", "parent_version", "restored_from", "tags", "created_at")
_DIGEST_LENGTH: Final = len("sha256:") + 12
"""As much of a digest as tells versions apart at a glance, so that a version takes one line."""


@app.command("list")
def list_models(
    run_id: Annotated[str, typer.Argument(help="The run.")],
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """List the versions of a run's model: what each came from, and which stand out; whole digests with --json."""
    found = with_client(
        lambda client: client.list_models(run_id),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
    if as_json:
        print_json([model.model_dump(mode="json") for model in found])
        return
    rows = ([*(getattr(model, column) for column in _COLUMNS), model.digest[:_DIGEST_LENGTH]] for model in found)
    print_table((*_COLUMNS, "digest"), rows)


@app.command("download")
def download(
    run_id: Annotated[str, typer.Argument(help="The run.")],
    version: Annotated[int | None, typer.Option(min=0, help="Which version; the latest by default.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The best evaluated version instead.")] = False,
    with_lineage: Annotated[
        bool, typer.Option("--with-lineage", help="Write into the file's metadata how the version came about.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("model.safetensors"),
    force: Annotated[bool, typer.Option(help="Replace the file if it exists.")] = False,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Download a model version as a safetensors file, checked against its digest."""
    if output.exists() and not force:
        raise UsageError(f"{output} exists; give another --output, or --force to replace it")
    if best and version is not None:
        raise UsageError("--best and --version exclude each other")
    wanted: int | Literal["best"] | None = "best" if best else version
    # In the same folder as the file, so that taking its name is one step.
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".fedquorum-") as folder:
        stored = with_client(
            lambda client: _download(client, run_id, folder=Path(folder), version=wanted, with_lineage=with_lineage),
            server=server,
            token_file=token_file,
            allow_insecure_http=allow_insecure_http,
        )
        with stored.path.open("r+b") as file:
            os.fsync(file.fileno())
        shutil.move(stored.path, output)
    fields = {"file": str(output), "version": stored.version, "digest": stored.digest, "num_bytes": stored.num_bytes}
    print_fields(fields, as_json=as_json)


async def _download(
    client: "AggregatorClient",
    run_id: str,
    *,
    folder: Path,
    version: int | Literal["best"] | None,
    with_lineage: bool,
) -> "StoredModel":
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    from client_sdk.operator import Operator

    out = console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("download", total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        operator = Operator(client)
        return await operator.download(run_id, folder, version=version, with_lineage=with_lineage, on_bytes=tell)
