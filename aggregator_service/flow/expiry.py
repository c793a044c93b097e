"""What time brings about: deadlines of rounds and evaluations, and the removal of uploads that were never finished."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from aggregator_service.domain.records import EvaluationState
from aggregator_service.flow import buffers, evaluation
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.storage import rounds, runs, tasks
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.rounds import RoundState
from fl_protocol.runs import RunState

ORPHAN_AGE: Final = timedelta(hours=24)
"""How old an unfinished upload must be to be certainly dead where several processes share the database."""


async def seconds_until_due(flow: Flow) -> float | None:
    """Gives the seconds until the next deadline (0 or less: now); None when there is none."""

    def body(tx: ReadTx) -> float | None:
        deadlines = [round_.deadline_at for round_ in rounds.collecting(tx)[:1]]
        deadlines += [at for round_ in rounds.evaluating(tx)[:1] if (at := round_.evaluation_deadline_at)]
        deadlines += tasks.deadlines(tx).values()
        return min((at - tx.now()).total_seconds() for at in deadlines) if deadlines else None

    return await flow.transactions.read("next_deadline", body)


async def expire(flow: Flow) -> None:
    """Closes every round and evaluation whose deadline has passed, and takes back the tasks of buffered runs."""

    def find(tx: ReadTx) -> list[tuple[str, str]]:
        due = [round_ for round_ in rounds.collecting(tx) if round_.deadline_at <= tx.now()]
        due += [round_ for round_ in rounds.evaluating(tx) if _has_passed(tx, round_.evaluation_deadline_at)]
        return [(round_.run_id, round_.round_id) for round_ in due]

    for run_id, round_id in await flow.transactions.read("find_expired", find):
        await flow.transactions.write("expire_round", _expiring(flow, run_id=run_id, round_id=round_id))
    for run_id in await flow.transactions.read("find_overdue", _runs_with_overdue_tasks):
        await flow.transactions.write("expire_tasks", _releasing(run_id))


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


def _runs_with_overdue_tasks(tx: ReadTx) -> list[str]:
    return [run_id for run_id, deadline in tasks.deadlines(tx).items() if deadline <= tx.now()]


def _releasing(run_id: str) -> Callable[[WriteTx], None]:
    def body(tx: WriteTx) -> None:
        run = runs.lock(tx, run_id)
        if run is not None and run.state is RunState.RUNNING:
            buffers.release_overdue(tx, run_id)

    return body


def _has_passed(tx: ReadTx, deadline: datetime | None) -> bool:
    return deadline is not None and deadline <= tx.now()
