"""`fedquorum plan`: what a run will cost in bytes and in time. No server is asked."""

# Commands import what they need when they run, so that --help comes at once.
# ruff: noqa: PLC0415

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from client_sdk.cli.options import Json
from client_sdk.cli.output import print_json, print_table
from client_sdk.cli.specification import read_spec
from client_sdk.errors import UsageError

if TYPE_CHECKING:
    from fl_protocol.planning.links import Link
    from fl_protocol.planning.plan import Plan
    from fl_protocol.planning.sizes import Size
    from fl_protocol.runs import RunSpec
    from fl_protocol.tensors import Header

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_STEP: Final = 1000


def plan(
    spec: Annotated[Path, typer.Argument(help="The RunSpec as JSON, as `run create --spec` takes it.")],
    model: Annotated[Path | None, typer.Option(help="The initial model, a safetensors file; its head is read.")] = None,
    parameters: Annotated[
        int | None, typer.Option(min=1, help="Instead, how many float32 parameters the model has.")
    ] = None,
    clients: Annotated[
        int | None, typer.Option(min=1, help="How many there are; the round's cohort by default.")
    ] = None,
    link: Annotated[
        str, typer.Option(help="A client's line as SPEED[:LATENCY], such as 10Mbit/s or 1.5MB/s:50ms.")
    ] = "10Mbit/s",
    uplink: Annotated[str | None, typer.Option(help="The line towards the server, if it differs.")] = None,
    local_seconds: Annotated[
        float, typer.Option(min=0, help="How long a client trains in a round, if training.max_seconds allows it.")
    ] = 60.0,
    max_model_bytes: Annotated[
        int, typer.Option(min=1, help="The largest model that the server takes, its setting.")
    ] = 16 << 30,
    as_json: Json = False,
) -> None:
    """Tell the bytes and the time of a round and of the run, and what other encodings would make of them.

    Figures with ~ are estimates; the others are the exact bytes of what the SDK sends.
    """
    from fl_protocol.planning.plan import Conditions, plan_run
    from fl_protocol.problems import ProblemError

    chosen = read_spec(spec, {})
    conditions = Conditions(
        num_clients=clients or chosen.round.cohort_size,
        down=_link(link),
        up=_link(uplink or link),
        local_seconds=local_seconds,
        max_model_bytes=max_model_bytes,
    )
    try:
        planned = plan_run(chosen, _model(model, parameters), conditions)
    except ProblemError as refusal:
        raise UsageError(f"the model: {refusal.detail}") from None
    if as_json:
        print_json(dataclasses.asdict(planned))
        return
    _print(planned, chosen)


def _model(file: Path | None, parameters: int | None) -> "Header":
    from fl_protocol.planning.sizes import model_of
    from fl_protocol.problems import ProblemError
    from fl_protocol.tensors import LENGTH_BYTES, header_length, parse_header

    if (file is None) == (parameters is None):
        raise UsageError("give one of --model FILE, for exact figures, and --parameters N")
    if file is None:
        return model_of(parameters or 1)
    try:
        with file.open("rb") as opened:
            length = header_length(opened.read(LENGTH_BYTES))
            return parse_header(opened.read(length))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    except ProblemError as refusal:
        raise UsageError(f"{file} is no safetensors file: {refusal.detail}") from None


def _link(text: str) -> "Link":
    from fl_protocol.planning.links import parse_link

    try:
        return parse_link(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _print(planned: "Plan", spec: "RunSpec") -> None:
    from fl_protocol.planning.plan import describe

    traffic, times, storage = planned.traffic, planned.times, planned.storage
    is_exact = traffic.update.is_exact and traffic.download.is_exact
    typer.echo(f"{planned.num_rounds} rounds of {traffic.clients_a_round} clients, encoding {describe(spec.encoding)}")
    bytes_of = {
        "a client downloads in a round": (_size(traffic.download), ""),
        "a client uploads in a round": (_size(traffic.update), ""),
        "the server sends": (_bytes(traffic.sent_a_round, traffic.download.is_exact), _bytes(traffic.sent, is_exact)),
        "the server receives": (
            _bytes(traffic.received_a_round, traffic.update.is_exact),
            _bytes(traffic.received, traffic.update.is_exact),
        ),
        "the server stores, at most": (
            _bytes(storage.updates_a_round + storage.model + storage.optimizer_state, is_exact=False),
            _bytes(storage.run, is_exact=False),
        ),
    }
    print_table(("bytes", "a round", "the run"), ((name, *cells) for name, cells in bytes_of.items()))
    parts = ("download", "training", "upload", "aggregation")
    rows = [(part, _time(getattr(times, part)), "") for part in parts]
    print_table(("time", "a round", "the run"), [*rows, ("together", _time(times.round), _time(times.run))])
    alternatives = [
        (
            one.name,
            _size(one.update),
            f"{one.ratio:.3f}",
            _time(one.round_seconds),
            _bytes(one.received, one.update.is_exact),
        )
        for one in planned.alternatives
    ]
    print_table(("instead", "an update", "of this", "a round", "received in the run"), alternatives)
    print_table(
        ("assumed", "value", "measured by"),
        [(one.name, f"{one.value:,.10g}", one.measured_by) for one in planned.assumptions],
    )
    for warning in planned.warnings:
        typer.echo(f"Warning: {warning}")


def _size(size: "Size") -> str:
    return _bytes(size.num_bytes, size.is_exact)


def _bytes(num_bytes: int, is_exact: bool) -> str:
    """Renders a number of bytes, with all its digits where they are known."""
    value, unit = float(num_bytes), 0
    while value >= _STEP and unit < len(_UNITS) - 1:
        value, unit = value / _STEP, unit + 1
    short = f"{value:.3g} {_UNITS[unit]}" if unit else f"{num_bytes} B"
    if not is_exact:
        return f"~{short}"
    return f"{short} ({num_bytes:,})" if unit else short


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    whole = f"{hours} h {minutes} min" if hours or days else f"{minutes} min {rest} s"
    return f"{days} d {whole}" if days else whole
