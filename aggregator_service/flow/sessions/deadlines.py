"""What time brings about in masked rounds: phases end, and sessions begin with fewer than they might have."""

from collections.abc import Callable
from dataclasses import dataclass

from aggregator_service.flow.context import Flow
from aggregator_service.flow.sessions import phases
from aggregator_service.flow.sessions.forming import form_if_due
from aggregator_service.storage import rounds, runs, seats, sessions
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.runs import RunState
from fl_protocol.sessions import SessionState


@dataclass(frozen=True, slots=True)
class _Deadlines:
    """Sessions as (run, session) whose phase is over, rounds as (run, round) with enough who wait, and what is next."""

    sessions: list[tuple[str, str]]
    rounds: list[tuple[str, str]]
    seconds_until_next: float | None


async def expire(flow: Flow) -> float | None:
    """Moves on every session whose phase is over and begins those that have waited long enough.

    Gives the seconds until the next deadline: 0 if there may be one that has passed already, None if there is none.
    """
    found = await flow.transactions.read("find_session_deadlines", _deadlines)
    for run_id, session_id in found.sessions:
        await flow.transactions.write("expire_phase", _ending(flow, run_id=run_id, session_id=session_id))
    for run_id, round_id in found.rounds:
        await flow.transactions.write("form_session", _forming(flow, run_id=run_id, round_id=round_id))
    return 0.0 if found.sessions or found.rounds else found.seconds_until_next


def _ending(flow: Flow, *, run_id: str, session_id: str) -> Callable[[WriteTx], None]:
    def body(tx: WriteTx) -> None:
        run, session = runs.lock(tx, run_id), sessions.get(tx, session_id)
        if run is None or session is None or run.state is not RunState.RUNNING:
            return
        if session.ended_at is None and session.state is not SessionState.SUMMING:
            phases.advance_if_due(flow, tx, run=run, session=session)

    return body


def _forming(flow: Flow, *, run_id: str, round_id: str) -> Callable[[WriteTx], None]:
    def body(tx: WriteTx) -> None:
        run, round_ = runs.lock(tx, run_id), rounds.get(tx, round_id)
        if run is not None and round_ is not None and run.state is RunState.RUNNING:
            form_if_due(flow, tx, run=run, round_=round_)

    return body


def _deadlines(tx: ReadTx) -> _Deadlines:
    of_sessions = [((one.run_id, one.session_id), one.deadline_at) for one in sessions.timed(tx)]
    of_rounds = [((run_id, round_id), at) for run_id, round_id, at in seats.waited_for(tx)]
    now, every = tx.now(), [at for _, at in (*of_sessions, *of_rounds)]
    return _Deadlines(
        sessions=[ids for ids, at in of_sessions if at <= now],
        rounds=[ids for ids, at in of_rounds if at <= now],
        seconds_until_next=(min(every) - now).total_seconds() if every else None,
    )
