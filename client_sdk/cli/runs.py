"""`fedquorum run`."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from client_sdk.cli.budget import print_budget
from client_sdk.cli.options import DEFAULT_SERVER, Insecure, Json, Server, TokenFile, with_client
from client_sdk.cli.output import console, print_fields, print_json, print_messages, print_model
from client_sdk.cli.promises import PresetName, print_sentences, promise_fields
from client_sdk.cli.specification import read_spec
from client_sdk.cli.strata import print_newest_strata
from client_sdk.errors import UsageError

if TYPE_CHECKING:
    from client_sdk.client import AggregatorClient
    from fl_protocol.privacy_reports import LedgerEntry, PrivacyReport
    from fl_protocol.rounds import Round
    from fl_protocol.runs import Run

app: Final = typer.Typer(no_args_is_help=True)

RunId = Annotated[str, typer.Argument(help="The run, as `run list` shows it.")]
ClientId = Annotated[str, typer.Argument(help="The client, as `clients list` shows it.")]

_RUN_COLUMNS: Final = (
    "run_id",
    "name",
    "state",
    "current_round",
    "num_rounds",
    "latest_version",
    "best_version",
    "created_at",
)
_EXCLUSION_COLUMNS: Final = ("client_id", "reason", "excluded_at")
_ROUND_COLUMNS: Final = (
    "number",
    "attempt",
    "state",
    "num_tasks",
    "num_updates",
    "quorum",
    "num_examples",
    "metrics",
    "evaluation",
)


@app.command("create")
def create(
    model: Annotated[Path | None, typer.Option(help="The initial model, a safetensors file.")] = None,
    from_run: Annotated[
        str | None, typer.Option(help="Instead, the run whose model this one begins with; with --from-version.")
    ] = None,
    from_version: Annotated[
        int | None, typer.Option(min=0, help="Which version of that run's model, as `model list` shows it.")
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="A RunSpec as JSON; the options below change it.")] = None,
    preset: Annotated[
        PresetName | None,
        typer.Option(help="What the run promises; fills in what the specification leaves open (`privacy presets`)."),
    ] = None,
    target_epsilon: Annotated[
        float | None, typer.Option(help="The most that a client may spend in the whole run, of differential privacy.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="The chance that this does not cover; 1e-06 where a preset needs one.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The run's name.")] = None,
    rounds: Annotated[int | None, typer.Option(help="How many rounds.")] = None,
    quorum: Annotated[int | None, typer.Option(help="How many updates close a round.")] = None,
    cohort_size: Annotated[int | None, typer.Option(help="How many clients are asked.")] = None,
    local_epochs: Annotated[int | None, typer.Option(help="How long each client trains.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The clients' learning rate.")] = None,
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Create a run with its initial model."""
    if (from_run is None) != (from_version is None):
        raise UsageError("--from-run and --from-version belong together: `fedquorum model list RUN` shows the versions")
    changes = {
        ("name",): name,
        ("num_rounds",): rounds,
        ("round", "quorum"): quorum,
        ("round", "cohort_size"): cohort_size,
        ("training", "local_epochs"): local_epochs,
        ("training", "learning_rate"): learning_rate,
        ("privacy", "target_epsilon"): target_epsilon,
        ("privacy", "delta"): delta,
        ("initial_model", "kind"): None if from_run is None else "version",
        ("initial_model", "run_id"): from_run,
        ("initial_model", "version"): from_version,
    }
    run_spec = read_spec(spec, changes, preset=preset)
    if (model is None) != (run_spec.initial_model.kind == "version"):
        raise UsageError("a run begins with --model FILE, or with --from-run RUN --from-version V: give one of the two")
    content = None if model is None else model.read_bytes()

    async def use(client: "AggregatorClient") -> "Run":
        from client_sdk.operator import Operator

        with console(stderr=True).status("creating the run" if model is None else f"sending {model.name}"):
            operator = Operator(client)
            return await (operator.start_run if start else operator.create_run)(run_spec, content)

    run = with_client(use, server=server, token_file=token_file, allow_insecure_http=allow_insecure_http)
    _print_run(run, as_json=as_json)


@app.command("start")
def start(
    run_id: RunId,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Open a draft's first round."""
    run = with_client(
        lambda client: client.start_run(run_id),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
    _print_run(run, as_json=as_json)


@app.command("pause")
def pause(
    run_id: RunId,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Give no further tasks until the run is resumed."""
    run = with_client(
        lambda client: client.pause_run(run_id),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
    _print_run(run, as_json=as_json)


@app.command("resume")
def resume(
    run_id: RunId,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Go on with a paused run."""
    run = with_client(
        lambda client: client.resume_run(run_id),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
    _print_run(run, as_json=as_json)


@app.command("stop")
def stop(
    run_id: RunId,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """End a run for good; its models stay."""
    run = with_client(
        lambda client: client.stop_run(run_id),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
    _print_run(run, as_json=as_json)


@app.command("rollback")
def rollback(
    run_id: RunId,
    version: Annotated[int, typer.Argument(min=0, help="The model version to go back to.")],
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Make an earlier model version the newest again and go on from it.

    Nothing is deleted: the version is published once more under the next number. A round that is open is abandoned and
    begins anew.
    """
    made = with_client(
        lambda client: client.roll_back(run_id, version),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
    print_model(made, as_json=as_json)


@app.command("exclude")
def exclude(
    run_id: RunId,
    client_id: ClientId,
    reason: Annotated[str, typer.Option(help="Why; the client is told.")],
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Give a client no more tasks in a run; what it has sent stays counted."""
    from pydantic import ValidationError

    from fl_protocol.exclusions import ExclusionRequest

    try:
        request = ExclusionRequest(reason=reason)
    except ValidationError as error:
        raise UsageError(f"--reason: {error.errors()[0]['msg']}") from None
    excluded = with_client(
        lambda client: client.exclude_client(run_id, client_id, request),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
    print_fields(excluded.model_dump(mode="json"), as_json=as_json)


@app.command("readmit")
def readmit(
    run_id: RunId,
    client_id: ClientId,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Let an excluded client take part in a run again."""
    with_client(
        lambda client: client.readmit_client(run_id, client_id),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
    if as_json:
        print_json({"client_id": client_id, "excluded": False})
    else:
        typer.echo(f"{client_id} may take part")


@app.command("exclusions")
def exclusions(
    run_id: RunId,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """List who is excluded from a run."""
    found = with_client(
        lambda client: client.list_exclusions(run_id),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
    print_messages(found, columns=_EXCLUSION_COLUMNS, as_json=as_json)


@app.command("privacy")
def privacy(
    run_id: RunId,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Show what a run promises about its clients' data, and what it has cost."""

    async def use(client: "AggregatorClient") -> "tuple[PrivacyReport, list[LedgerEntry]]":
        return await client.get_privacy(run_id), await client.list_ledger(run_id)

    report, entries = with_client(use, server=server, token_file=token_file, allow_insecure_http=allow_insecure_http)
    print_budget(report, entries, as_json=as_json)


@app.command("list")
def list_runs(
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """List the runs."""
    found = with_client(
        lambda client: client.list_runs(),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
    )
    print_messages(found, columns=_RUN_COLUMNS, as_json=as_json)


@app.command("show")
def show(
    run_id: RunId,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Show a run and its rounds."""

    async def use(client: "AggregatorClient") -> "tuple[Run, list[Round]]":
        return await client.get_run(run_id), await client.list_rounds(run_id)

    run, rounds = with_client(use, server=server, token_file=token_file, allow_insecure_http=allow_insecure_http)
    if as_json:
        print_json({"run": run.model_dump(mode="json"), "rounds": [done.model_dump(mode="json") for done in rounds]})
        return
    _print_run(run, as_json=False)
    typer.echo("")
    print_messages(rounds, columns=_ROUND_COLUMNS, as_json=False)
    print_newest_strata(rounds, attribute=run.spec.evaluation.strata)


@app.command("watch")
def watch(
    run_id: RunId,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Follow a run to its end; the exit code is 1 if it fails or is stopped."""
    from client_sdk.cli.watching import watch_run

    with_client(
        lambda client: watch_run(client, run_id, as_json=as_json),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
        patient=True,
    )


def _print_run(run: "Run", *, as_json: bool) -> None:
    from fl_protocol.presets import promise

    if as_json:
        print_json(run)
        return
    fields = {field: getattr(run, field) for field in (*_RUN_COLUMNS, "reason")}
    selection = run.spec.selection
    told = {"kind": selection.kind} | selection.model_dump(mode="json", exclude_defaults=True)
    promised = promise(run.spec)
    print_fields(fields | {"selection": told} | promise_fields(promised), as_json=False)
    print_sentences(promised)
