"""`fedquorum participate`."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from client_sdk.cli.options import DEFAULT_SERVER, Insecure, Json, Server, TokenFile, with_client
from client_sdk.cli.output import cell, print_json
from client_sdk.cli.promises import print_sentences
from client_sdk.errors import UsageError

if TYPE_CHECKING:
    from client_sdk.session.progress import HelpersTrusted, Progress, SessionJoined

MASKED: Final = "Masked runs"


def participate(
    run_id: Annotated[str, typer.Argument(help="The run to take part in.")],
    trainer: Annotated[str, typer.Argument(help="MODULE:NAME of the trainer.")],
    evaluator: Annotated[str | None, typer.Option(help="MODULE:NAME of an evaluator.")] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Keeps the model over restarts; a new folder if not.")] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="A folder of this client's own for what it keeps from round to round.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A privacy policy (TOML) that the run must meet before anything is trained.")
    ] = None,
    client_id: Annotated[
        str | None,
        typer.Option(
            envvar="FEDQUORUM_CLIENT_ID",
            help="This client's identifier, until its folder holds its identity.",
            rich_help_panel=MASKED,
        ),
    ] = None,
    roster: Annotated[
        Path | None,
        typer.Option(help="A pinned roster: CLIENT_ID PUBLIC_KEY on each line.", rich_help_panel=MASKED),
    ] = None,
    authority: Annotated[
        str | None,
        typer.Option(help="The public key of whoever certifies clients' identities.", rich_help_panel=MASKED),
    ] = None,
    server_key: Annotated[
        str | None,
        typer.Option(help="The server's manifest key; the first one is remembered if not.", rich_help_panel=MASKED),
    ] = None,
    min_known_peers: Annotated[
        int,
        typer.Option(min=0, help="So many others of a session must be on the roster.", rich_help_panel=MASKED),
    ] = 0,
    helper_key: Annotated[
        list[str] | None,
        typer.Option(
            help="A helper's sealing key that you know; one of the run's must be among them.", rich_help_panel=MASKED
        ),
    ] = None,
    server: Server = DEFAULT_SERVER,
    token_file: TokenFile = None,
    allow_insecure_http: Insecure = False,
    as_json: Json = False,
) -> None:
    """Take part in a run with a client token, until the run is over.

    TRAINER can be called and is looked for in the current folder first.

    It gets a client_sdk.TrainingTask: model (arrays by name), training, round.

    It returns a client_sdk.TrainedModel: tensors, num_examples, metrics.

    A client_sdk.torch.TorchTrainer is one. An evaluator gets the same and
    returns a client_sdk.EvaluationReport.
    """
    from client_sdk import participant
    from client_sdk.masking.trust import PeerTrust, load_roster, parse_key
    from client_sdk.privacy.policy import load_policy

    demanded = None if policy is None else load_policy(policy)
    trust = PeerTrust(
        roster=None if roster is None else load_roster(roster),
        authority=None if authority is None else parse_key(authority, what="--authority"),
        server_key=None if server_key is None else parse_key(server_key, what="--server-key"),
        min_known_peers=min_known_peers,
        helper_keys=frozenset(parse_key(key, what="--helper-key") for key in helper_key or ()),
    )
    train = _load(trainer)
    evaluate = None if evaluator is None else _load(evaluator)
    show = _print_json_line if as_json else _print_line
    done = with_client(
        lambda client: participant.participate(
            client,
            run_id,
            train,
            evaluator=evaluate,
            cache_dir=cache_dir,
            state_dir=state_dir,
            policy=demanded,
            client_id=client_id,
            peer_trust=trust,
            on_event=show,
        ),
        server=server,
        token_file=token_file,
        allow_insecure_http=allow_insecure_http,
        patient=True,
    )
    if not as_json:
        typer.echo(f"{done.num_updates} updates and {done.num_evaluations} evaluations were accepted")


def _load(name: str) -> Any:
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise UsageError(f"{name!r} is not MODULE:NAME, such as my_training:trainer")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name not in {module_name, module_name.partition(".")[0]}:
            raise
        raise UsageError(f"there is no module {module_name} in this folder or on the path") from None
    found = getattr(module, attribute, None)
    if not callable(found):
        raise UsageError(f"{module_name} has no {attribute} that can be called")
    return found


def _print_line(event: "Progress") -> None:
    from client_sdk.session import progress

    match event:
        case progress.TaskClaimed(task=task):
            typer.echo(f"round {task.round}: asked to {task.kind}")
        case progress.TrainingFinished(task=task, num_examples=count, metrics=metrics):
            typer.echo(f"round {task.round}: trained on {count} examples, {cell(metrics)}")
        case progress.UpdateAccepted(task=task, receipt=receipt):
            typer.echo(f"round {task.round}: update accepted, {receipt.num_bytes:,} bytes")
        case progress.EvaluationAccepted(task=task, report=report):
            typer.echo(f"round {task.round}: evaluation accepted, {cell(report.metrics)}")
        case progress.WorkRefused(task=task, reason=reason):
            typer.echo(f"round {task.round}: not counted: {cell(reason)}")
        case progress.TaskGivenUp(task=task, reason=reason):
            typer.echo(f"round {task.round}: given up: {cell(reason)}", err=True)
        case progress.RunFinished(reason=reason):
            typer.echo(cell(reason))
        case _:
            _print_private_line(event)


def _print_private_line(event: "Progress") -> None:
    from client_sdk.session import progress

    match event:
        case progress.PromiseRead(promise=promise):
            typer.echo(f"what the run promises (preset {promise.preset or 'none of them'}):")
            print_sentences(promise)
        case progress.UpdateClipped(task=task, norm=norm):
            measured = "NaN or infinity, and became zero" if norm is None else f"{norm:.4g} before it was clipped"
            typer.echo(f"round {task.round}: the update measured {measured}")
        case progress.PrivacySpent(task=task, epsilon=epsilon, delta=delta, unit=unit):
            typer.echo(f"round {task.round}: one {unit.value} has spent epsilon {epsilon:.4g} at delta {delta:g}")
        case _:
            _print_masked_line(event)


_PHASES: Final = {
    "shares": "shares of this client's masks dealt",
    "input": "masked update sent",
    "consistency": "list of those who stayed signed",
    "unmask": "shares of the others' masks given",
}


def _print_masked_line(event: "Progress") -> None:
    from client_sdk.session import progress

    match event:
        case progress.WaitingForSession(task=task, num_waiting=count):
            typer.echo(f"round {task.round}: {count} updates wait for a masked session")
        case progress.SessionJoined():
            typer.echo(f"round {event.task.round}: {_joined(event)}")
        case progress.SessionAdvanced(task=task, phase=phase):
            typer.echo(f"round {task.round}: {_PHASES[phase]}")
        case progress.SessionFailed(task=task, reason=reason, retry_seconds=seconds):
            then = "" if seconds is None else f"; asking for another in {seconds:.1f} s"
            typer.echo(f"round {task.round}: {cell(reason)}{then}", err=True)
        case progress.HelpersTrusted():
            typer.echo(f"round {event.task.round}: {_relied_on(event)}")
        case progress.UpdateCounted(task=task, num_survivors=count, num_bytes=size):
            typer.echo(f"round {task.round}: masked update counted among {count}, {size:,} bytes")


def _joined(event: "SessionJoined") -> str:
    return (
        f"in a masked session of {event.num_members}; the server learns their sum alone, unless more than "
        f"{event.tolerated_colluders} of them help it (identity trust: {event.identity_trust})"
    )


def _relied_on(event: "HelpersTrusted") -> str:
    names = ", ".join(event.helpers)
    known = f"you know {', '.join(event.known)}" if event.known else "you have their keys from the server alone"
    return (
        f"masked for the helpers {names}: nobody learns this update unless the server and ALL of them work together "
        f"({known}; identity trust: {event.identity_trust})"
    )


def _print_json_line(event: "Progress") -> None:
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    print_json({"event": type(event).__name__, **fields})
