"""Seats: a client that has trained advertises its keys and waits for a session."""

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from aggregator_service import failpoints
from aggregator_service.domain import topics
from aggregator_service.domain.admission import (
    check_kind,
    check_not_excluded,
    check_owner,
    given_up,
    is_collecting,
    round_closed,
)
from aggregator_service.domain.records import RoundRecord, RunRecord, TaskRecord, TaskState
from aggregator_service.domain.sessions.admission import Repeated, check_advertise, check_fresh, judge_seat
from aggregator_service.domain.sessions.records import SeatRecord, SessionRecord
from aggregator_service.flow.context import Flow
from aggregator_service.flow.selection import POLL_SECONDS
from aggregator_service.flow.sessions.forming import form_if_due
from aggregator_service.storage import attendance, identity_keys, manifests, rounds, runs, seats, sessions, tasks
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.masking import keys
from fl_protocol.masking.messages import Advertise
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.sessions import SeatState
from fl_protocol.specs.secure_aggregation import PairwiseSecureAggregation, is_masked
from fl_protocol.tasks import TaskKind


@dataclass(frozen=True, slots=True)
class Seating:
    """Where a client's seat stands, and the session it is or was in; `deadline_at` is when that, or waiting, ends."""

    seat: SeatRecord
    session: SessionRecord | None
    num_waiting: int
    deadline_at: datetime
    is_new: bool = False


async def take_seat(flow: Flow, *, task_id: str, client_id: str, data: bytes) -> Seating:
    """Takes a client's advertised keys; the session begins if it is the last one that was waited for.

    Raises the problems of the wire's table, and then keeps nothing.
    """

    def body(tx: WriteTx) -> Seating:
        task = check_owner(tasks.get(tx, task_id), task_id=task_id, client_id=client_id)
        run = _masked(runs.lock(tx, task.run_id))
        task = check_owner(tasks.get(tx, task_id), task_id=task_id, client_id=client_id)
        check_kind(task, TaskKind.TRAIN)
        round_, earlier = _round(tx, task), seats.get(tx, task_id)
        if isinstance(judge_seat(earlier, data), Repeated):
            return _seating(tx, run, round_, seats.get(tx, task_id))
        _check_open(tx, task, round_)
        advertise = _checked(tx, task, data)
        seats.note_keys(tx, round_.round_id, [advertise.share_key, advertise.mask_key])
        seats.put(tx, _waiting(tx, run, task, data))
        # The worker has another deadline to watch, if this is the first.
        tx.wake(topics.DEADLINES)
        form_if_due(flow, tx, run=run, round_=round_)
        return replace(_seating(tx, run, round_, seats.get(tx, task_id)), is_new=True)

    taken = await flow.transactions.write("take_seat", body)
    failpoints.reach("session.seat_taken")
    return taken


async def get_seat(flow: Flow, *, task_id: str, client_id: str, wait_seconds: float) -> Seating:
    """Gives where a client's seat stands, and waits while it waits for a session.

    Raises `not-found` for a task without one and `round-closed` where it can no longer lead to anything.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_seconds
    topic: str | None = None
    while True:
        seen = 0 if topic is None else flow.wakeups.seen(topic)
        found = await flow.transactions.read("look_at_seat", lambda tx: _look(tx, task_id, client_id))
        remaining = deadline - loop.time()
        if found.seat.state is not SeatState.WAITING or remaining <= 0 or flow.wakeups.closed:
            return found
        if topic is None:
            topic = topics.sessions_of(found.seat.run_id)
            continue
        await flow.wakeups.wait(topic, seen, timeout_seconds=min(remaining, POLL_SECONDS))


def _look(tx: ReadTx, task_id: str, client_id: str) -> Seating:
    task = check_owner(tasks.get(tx, task_id), task_id=task_id, client_id=client_id)
    run, round_, seat = _masked(runs.get(tx, task.run_id)), _round(tx, task), seats.get(tx, task_id)
    if seat is None:
        raise ProblemError(ProblemType.NOT_FOUND, "the task has no seat yet; put your advertised keys there")
    if seat.state in (SeatState.WAITING, SeatState.FREE):
        _check_open(tx, task, round_)
    return _seating(tx, run, round_, seat)


def _masked(run: RunRecord | None) -> RunRecord:
    if run is None:
        raise LookupError("a task lacks its run")
    if not isinstance(run.spec.secure_aggregation, PairwiseSecureAggregation):
        what = "contribution" if is_masked(run.spec) else "update"
        raise ProblemError(
            ProblemType.STATE_CONFLICT, f"the run has no masked sessions; put the {what} to /v1/tasks/.../{what}"
        )
    return run


def _round(tx: ReadTx, task: TaskRecord) -> RoundRecord:
    round_ = rounds.get(tx, task.round_id)
    if round_ is None:
        raise LookupError(f"task {task.task_id} lacks its round")
    return round_


def _check_open(tx: ReadTx, task: TaskRecord, round_: RoundRecord) -> None:
    check_not_excluded(attendance.get(tx, task.run_id, task.client_id))
    if task.state is TaskState.GIVEN_UP:
        raise given_up(task)
    if not is_collecting(round_):
        raise round_closed(round_)


def _checked(tx: WriteTx, task: TaskRecord, data: bytes) -> Advertise:
    registered = identity_keys.get(tx, task.client_id)
    context = keys.context(manifests.body_of_round(tx, task.round_id))
    advertise = check_advertise(data, client_id=task.client_id, registered=registered, context=context)
    check_fresh(advertise, seats.used_keys(tx, task.round_id, [advertise.share_key, advertise.mask_key]))
    if registered is not None and identity_keys.is_seated_by_another(tx, registered, round_id=task.round_id):
        raise ProblemError(
            ProblemType.INVALID_MESSAGE, "advertise.identity_key is that of another client in this round, too"
        )
    return advertise


def _waiting(tx: WriteTx, run: RunRecord, task: TaskRecord, data: bytes) -> SeatRecord:
    return SeatRecord(
        task_id=task.task_id,
        run_id=task.run_id,
        round_id=task.round_id,
        client_id=task.client_id,
        state=SeatState.WAITING,
        advertise=data,
        session_id=None,
        place=None,
        waiting_since=run.paused_at or tx.now(),
    )


def _seating(tx: ReadTx, run: RunRecord, round_: RoundRecord, seat: SeatRecord | None) -> Seating:
    masked = run.spec.secure_aggregation
    if seat is None or not isinstance(masked, PairwiseSecureAggregation):
        raise LookupError("a seat was taken and is not there")
    session = None if seat.session_id is None else sessions.get(tx, seat.session_id)
    waiting = seats.count_waiting(tx, round_.round_id)
    deadline = round_.deadline_at
    if session is not None and session.ended_at is None:
        deadline = session.deadline_at
    elif waiting.since is not None and seat.state is SeatState.WAITING:
        deadline = min(deadline, waiting.since + timedelta(seconds=masked.enrol_seconds))
    return Seating(seat, session, waiting.num_waiting, deadline)
