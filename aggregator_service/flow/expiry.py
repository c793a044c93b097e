"""What time brings about: deadlines of rounds and evaluations, and the removal of uploads that were never finished."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from aggregator_service.domain.records import EvaluationState
from aggregator_service.flow import buffers, evaluation
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.flow.helper_mode import completion as helper_completion
from aggregator_service.flow.sessions import deadlines
from aggregator_service.storage import rounds, runs, tasks
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.rounds import RoundState
from fl_protocol.runs import RunState

ORPHAN_AGE: Final = timedelta(hours=24)
"""How old an unfinished upload must be to be certainly dead where several processes share the database."""


@dataclass(frozen=True, slots=True)
class _Deadlines:
    """What a look at the clock shows: rounds as (run, round) and runs with tasks that are overdue, and what is next."""

    rounds: list[tuple[str, str]]
    runs: list[str]
    seconds_until_next: float | None


async def expire(flow: Flow) -> float | None:
    """Closes every round and evaluation whose deadline has passed, takes back the tasks of buffered runs, ends phases.

    Gives the seconds until the next deadline: 0 if there may be one that has passed already, None if there is none.
    """
    found = await flow.transactions.read("find_deadlines", _deadlines)
    for run_id, round_id in found.rounds:
        await flow.transactions.write("expire_round", _expiring(flow, run_id=run_id, round_id=round_id))
    for run_id in found.runs:
        await flow.transactions.write("expire_tasks", _releasing(run_id))
    others = (await deadlines.expire(flow), await helper_completion.expire(flow))
    if found.rounds or found.runs:
        return 0.0
    return min((due for due in (found.seconds_until_next, *others) if due is not None), default=None)


async def sweep_orphans(flow: Flow, *, begun_before: datetime | None) -> int:
    """Removes unfinished uploads begun before an instant (default: a day ago); gives how many."""
    if begun_before is None:
        now = await flow.transactions.read("now", lambda tx: tx.now())
        begun_before = now - ORPHAN_AGE
    total = 0
    while removed := await flow.blobs.sweep(begun_before):
        total += removed
    return total


def _expiring(flow: Flow, *, run_id: str, round_id: str) -> Callable[[WriteTx], None]:
    def body(tx: WriteTx) -> None:
        run, round_ = runs.lock(tx, run_id), rounds.get(tx, round_id)
        if run is None or round_ is None or run.state is not RunState.RUNNING:
            return
        if round_.state is RoundState.COLLECTING:
            round_steps.close_if_due(flow, tx, run=run, round_=round_)
        if round_.evaluation_state is EvaluationState.COLLECTING:
            evaluation.complete_if_due(flow, tx, run=run, round_=round_)

    return body


def _releasing(run_id: str) -> Callable[[WriteTx], None]:
    def body(tx: WriteTx) -> None:
        run = runs.lock(tx, run_id)
        if run is not None and run.state is RunState.RUNNING:
            buffers.release_overdue(tx, run_id)

    return body


def _deadlines(tx: ReadTx) -> _Deadlines:
    of_rounds = [((one.run_id, one.round_id), one.deadline_at) for one in rounds.collecting(tx)]
    of_rounds += [
        ((one.run_id, one.round_id), at) for one in rounds.evaluating(tx) if (at := one.evaluation_deadline_at)
    ]
    of_tasks = tasks.deadlines(tx)
    now, every = tx.now(), [*(at for _, at in of_rounds), *of_tasks.values()]
    return _Deadlines(
        rounds=[ids for ids, at in of_rounds if at <= now],
        runs=[run_id for run_id, at in of_tasks.items() if at <= now],
        seconds_until_next=(min(every) - now).total_seconds() if every else None,
    )
