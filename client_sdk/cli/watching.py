"""Follows a run on the terminal: bars where there is one, a line for each event elsewhere, JSON lines for scripts."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from client_sdk.cli.output import cell, console, print_json
from client_sdk.client import AggregatorClient
from client_sdk.operator import Operator
from fl_protocol.rounds import Event, EventType, Round


async def watch_run(client: AggregatorClient, run_id: str, *, as_json: bool) -> None:
    """Shows a run's events up to its end; raises RunFailedError if it failed or was stopped."""
    operator = Operator(client)
    out = console()
    run = await client.get_run(run_id)
    with _bars(out, disable=as_json) as bars:
        rounds = bars.add_task(run.name, total=run.num_rounds)
        updates = bars.add_task("updates", total=run.spec.round.quorum)
        async for event in operator.watch(run_id):
            number = event.data.get("round")
            if as_json:
                print_json(event)
            elif event.type == EventType.MODEL_PUBLISHED and "rolled_back_to" in event.data:
                _print_event(out, event)
            elif event.type == EventType.MODEL_PUBLISHED and isinstance(number, int) and number > 0:
                bars.update(rounds, completed=number)
                done = await client.get_round(run_id, number)
                out.print(_round_line(done, run.num_rounds, target=getattr(run.spec.privacy, "target_epsilon", None)))
            elif event.type == EventType.ROUND_OPENED:
                bars.update(updates, completed=0, description=f"updates of round {cell(number)}")
            elif event.type == EventType.UPDATE_ACCEPTED:
                bars.advance(updates)
            else:
                _print_event(out, event)
    await operator.wait(run_id)


def _bars(out: Console, *, disable: bool) -> Progress:
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=out,
        transient=True,
        disable=disable or not out.is_terminal,
    )


def _round_line(done: Round, num_rounds: int, *, target: float | None) -> str:
    ended = done.completed_at or done.closed_at or done.opened_at
    seconds = (ended - done.opened_at).total_seconds()
    told = cell(done.metrics) if done.epsilon is None else f"epsilon {done.epsilon:.4g} of {target:g}"
    return f"round {done.number}/{num_rounds}: {done.num_updates} updates, {told}, {seconds:.2f} s"


def _print_event(out: Console, event: Event) -> None:
    match event.type:
        case EventType.RUN_STATE:
            reason = event.data.get("reason")
            out.print(f"run is {cell(event.data.get('state'))}" + (f": {cell(reason)}" if reason else ""), markup=False)
        case EventType.ROUND_ABANDONED:
            out.print(_abandonment_line(event), markup=False)
        case EventType.MODEL_PUBLISHED if "rolled_back_to" in event.data:
            version, source = cell(event.data.get("version")), cell(event.data["rolled_back_to"])
            out.print(f"back to model version {source}, now version {version}", markup=False)
        case EventType.EVALUATION_COMPLETED:
            out.print(_evaluation_line(event), markup=False)


def _abandonment_line(event: Event) -> str:
    line = f"round {cell(event.data.get('round'))} was abandoned"
    num_updates, least = event.data.get("num_updates"), event.data.get("min_updates")
    return line if num_updates is None else f"{line} with {cell(num_updates)} of at least {cell(least)} updates"


def _evaluation_line(event: Event) -> str:
    version, found = event.data.get("version"), cell(event.data.get("metrics"))
    line = f"evaluation of round {cell(event.data.get('round'))}: {found}"
    if event.data.get("quarantined") is True:
        return f"{line}; version {cell(version)} is quarantined"
    return f"{line}; the best so far" if version is not None and version == event.data.get("best_version") else line
