"""How sessions end without a sum, and what is removed when one ends: inside a transaction that has locked the run."""

from collections.abc import Sequence

import structlog

from aggregator_service import failpoints
from aggregator_service.domain import topics
from aggregator_service.domain.records import AttendanceRecord, RoundRecord, RunRecord, TaskState
from aggregator_service.domain.sessions import steps
from aggregator_service.domain.sessions.records import MemberRecord, SessionRecord
from aggregator_service.flow import budget, buffers, cohorts
from aggregator_service.storage import attendance, seats, sessions, tasks
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.sessions import AbortCode, SeatState
from fl_protocol.specs.secure_aggregation import is_masked

_log = structlog.get_logger()


def abort(
    tx: WriteTx, run: RunRecord, session: SessionRecord, *, members: Sequence[MemberRecord], step: steps.Abort
) -> None:
    """Ends a session without a sum: what was sent is removed, and its members may mask anew or are spent."""
    sessions.abort(tx, session, code=step.code, reason=step.reason)
    if steps.was_let_go(session, members):
        budget.spend_unpublished(tx, run, session.round_id, num_survivors=sum(member.survived for member in members))
    sessions.forget_messages(tx, session.session_id)
    for place in step.blamed:
        sessions.change_member(tx, members[place], blamed=True)
    at_fault = [member for member in members if member.blamed or member.place in step.blamed]
    for state in (SeatState.FREE, SeatState.SPENT):
        leaving = [one.task_id for one in members if steps.seat_after(one, session) is state]
        if leaving:
            seats.move(tx, leaving, state, before=SeatState.SEATED)
    _exclude_by_policy(tx, run, session, at_fault=at_fault, members=members, code=step.code)
    for member in members:
        if step.code is not AbortCode.ROUND_ENDED and steps.seat_after(member, session) is SeatState.SPENT:
            _release(tx, member)
    failpoints.reach("session.aborting")
    tx.wake(topics.sessions_of(session.run_id))
    _log.info(
        "session_aborted",
        session_id=session.session_id,
        phase=session.state.value,
        code=step.code.value,
        blamed=[member.client_id for member in at_fault],
    )


def end_all(tx: WriteTx, run: RunRecord, round_: RoundRecord) -> None:
    """Ends what goes on in a masked round that was just closed or abandoned."""
    if not is_masked(run.spec):
        return
    for session in sessions.open_of_round(tx, round_.round_id):
        reason = f"round {round_.number} (attempt {round_.attempt}) ended before the session did"
        members = sessions.members(tx, session.session_id)
        abort(tx, run, session, members=members, step=steps.Abort(AbortCode.ROUND_ENDED, reason))
    waiting = [seat.task_id for seat in seats.waiting(tx, round_.round_id)]
    if waiting:
        seats.move(tx, waiting, SeatState.FREE, before=SeatState.WAITING)
    seats.forget_keys(tx, round_.round_id)
    tx.wake(topics.sessions_of(run.run_id))


def withdraw(tx: WriteTx, task_id: str) -> None:
    """Takes a client that waits for a session out of the queue: its task was given up."""
    seat = seats.get(tx, task_id)
    if seat is not None and seat.state is SeatState.WAITING:
        seats.move(tx, [task_id], SeatState.FREE, before=SeatState.WAITING)


def _exclude_by_policy(
    tx: WriteTx,
    run: RunRecord,
    session: SessionRecord,
    *,
    at_fault: Sequence[MemberRecord],
    members: Sequence[MemberRecord],
    code: AbortCode,
) -> None:
    for member in at_fault:
        _count_strike(tx, run, session, member)
    if code is AbortCode.RANGE_CHECK_FAILED:
        for member in members:
            if member.survived:
                _suspect(tx, run, session, member)


def _count_strike(tx: WriteTx, run: RunRecord, session: SessionRecord, member: MemberRecord) -> None:
    """Excludes a client that too many aborted sessions blame; what it has had counted stays."""
    num_strikes = sessions.count_strikes(tx, run.run_id, member.client_id)
    if num_strikes >= steps.MAX_STRIKES:
        reason = f"{num_strikes} sessions failed by wrong messages of this client, the last one {session.session_id}"
        _exclude(tx, run, member, reason=reason)


def _suspect(tx: WriteTx, run: RunRecord, session: SessionRecord, member: MemberRecord) -> None:
    """Excludes a client whose last sums all were out of range: an honest one is soon in a sum that is right."""
    codes = sessions.last_codes(tx, run.run_id, member.client_id, limit=steps.MAX_STRIKES)
    if codes.count(AbortCode.RANGE_CHECK_FAILED) == steps.MAX_STRIKES:
        reason = (
            f"the last {steps.MAX_STRIKES} sums with this client's input were out of range, the last one that of "
            f"{session.session_id}; a sum does not tell which of its members it was"
        )
        _exclude(tx, run, member, reason=reason)


def _exclude(tx: WriteTx, run: RunRecord, member: MemberRecord, *, reason: str) -> None:
    before = attendance.get(tx, run.run_id, member.client_id)
    if before is not None and before.excluded_at is not None:
        return
    seen_at = None if before is None else before.seen_at
    attendance.exclude(tx, AttendanceRecord(run.run_id, member.client_id, seen_at, tx.now(), reason))
    for task in tasks.open_of_client(tx, run.run_id, member.client_id):
        buffers.take_back(tx, task)
        cohorts.withdraw(tx, task.round_id, task.client_id)
    tx.wake(topics.tasks_of(run.run_id))
    _log.warning("client_excluded", run_id=run.run_id, client_id=member.client_id, reason=reason)


def _release(tx: WriteTx, member: MemberRecord) -> None:
    """Takes back the task of a client that is spent without having been counted, so that another can be asked."""
    task = tasks.get(tx, member.task_id)
    if task is not None and task.state is TaskState.OPEN:
        buffers.take_back(tx, task)
        cohorts.withdraw(tx, task.round_id, task.client_id)
