"""`fedquorum participate`."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client_sdk.cli.options import DEFAULT_SERVER, Insecure, Json, Server, TokenFile, with_client
from client_sdk.cli.output import cell, print_json
from client_sdk.errors import UsageError

if TYPE_CHECKING:
    from client_sdk.session.progress import Progress


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
    from client_sdk.privacy.policy import load_policy

    demanded = None if policy is None else load_policy(policy)
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
        case progress.UpdateClipped(task=task, norm=norm):
            measured = "NaN or infinity, and became zero" if norm is None else f"{norm:.4g} before it was clipped"
            typer.echo(f"round {task.round}: the update measured {measured}")
        case progress.PrivacySpent(task=task, epsilon=epsilon, delta=delta, unit=unit):
            typer.echo(f"round {task.round}: one {unit.value} has spent epsilon {epsilon:.4g} at delta {delta:g}")
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


def _print_json_line(event: "Progress") -> None:
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    print_json({"event": type(event).__name__, **fields})
