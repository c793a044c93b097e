"""Who is kept out of a run by its operator, though enrolled."""

from aggregator_service.domain import topics
from aggregator_service.domain.records import AttendanceRecord, RunRecord
from aggregator_service.flow import cohorts, selection
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.flow.lifecycle import no_such_run
from aggregator_service.storage import attendance, clients, rounds, runs, tasks
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.rounds import RoundState


async def exclude_client(flow: Flow, *, run_id: str, client_id: str, reason: str) -> tuple[AttendanceRecord, bool]:
    """Excludes a client from a run, or changes the reason; tells too whether it was excluded just now.

    What the client holds is given up and another can be asked; its accepted updates stay counted.
    """

    def body(tx: WriteTx) -> tuple[AttendanceRecord, bool]:
        run = _locked(tx, run_id)
        if clients.get(tx, client_id) is None:
            raise ProblemError(ProblemType.NOT_FOUND, f"there is no client {client_id!r}")
        before = attendance.get(tx, run_id, client_id)
        excluded_at = None if before is None else before.excluded_at
        excluded = AttendanceRecord(
            run_id=run_id,
            client_id=client_id,
            seen_at=None if before is None else before.seen_at,
            excluded_at=excluded_at or tx.now(),
            exclusion_reason=reason,
        )
        attendance.exclude(tx, excluded)
        _send_away(flow, tx, run, client_id)
        return excluded, excluded_at is None

    return await flow.transactions.write("exclude_client", body)


async def readmit_client(flow: Flow, *, run_id: str, client_id: str) -> None:
    """Lifts a client's exclusion from a run; lifting it again changes nothing."""

    def body(tx: WriteTx) -> None:
        _locked(tx, run_id)
        if clients.get(tx, client_id) is None:
            raise ProblemError(ProblemType.NOT_FOUND, f"there is no client {client_id!r}")
        if attendance.readmit(tx, run_id, client_id):
            tx.wake(topics.tasks_of(run_id))

    await flow.transactions.write("readmit_client", body)


async def list_exclusions(flow: Flow, run_id: str, *, after_client_id: str, limit: int) -> list[AttendanceRecord]:
    """Lists who is excluded from a run."""

    def body(tx: ReadTx) -> list[AttendanceRecord]:
        if runs.get(tx, run_id) is None:
            raise no_such_run(run_id)
        return attendance.page_excluded(tx, run_id, after_client_id=after_client_id, limit=limit)

    return await flow.transactions.read("list_exclusions", body)


def _locked(tx: WriteTx, run_id: str) -> RunRecord:
    run = runs.lock(tx, run_id)
    if run is None:
        raise no_such_run(run_id)
    return run


def _send_away(flow: Flow, tx: WriteTx, run: RunRecord, client_id: str) -> None:
    """Frees every place that an excluded client has, claimed or not, and wakes it to hear of it."""
    for task in tasks.open_of_client(tx, run.run_id, client_id):
        selection.release(flow, tx, run, task)
    newest = rounds.newest(tx, run.run_id)
    if newest is not None and newest.state is RoundState.COLLECTING:
        cohorts.withdraw(tx, newest.round_id, client_id)
        round_steps.close_if_due(flow, tx, run=run, round_=rounds.get(tx, newest.round_id) or newest)
    tx.wake(topics.tasks_of(run.run_id))
