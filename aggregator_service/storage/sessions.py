"""The sessions table and those of its members and what they send; a state changes only from the one that was read."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.sessions.records import MemberRecord, MessageKind, SessionRecord
from aggregator_service.domain.sessions.steps import SESSION_TRANSITIONS
from aggregator_service.storage.blobs import remove_blobs
from aggregator_service.storage.rows import StaleRowError, change_one, changes_one, fields, is_behind
from aggregator_service.storage.tables import runs, session_members, session_messages, sessions
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.runs import RunState
from fl_protocol.sessions import AbortCode, SessionState

OPEN_STATES: Final = tuple(state.value for state, targets in SESSION_TRANSITIONS.items() if targets)
_GET: Final = sa.select(sessions).where(sessions.c.session_id == sa.bindparam("session_id"))
_OPEN_OF_ROUND: Final = (
    sa.select(sessions)
    .where(sessions.c.round_id == sa.bindparam("round_id"), sessions.c.state.in_(OPEN_STATES))
    .order_by(sessions.c.created_at, sessions.c.session_id)
)
_DONE_OF_ROUND: Final = (
    sa.select(sessions)
    .where(sessions.c.round_id == sa.bindparam("round_id"), sessions.c.state == SessionState.DONE.value)
    .order_by(sessions.c.session_id)
)
_GOING_ON: Final = (
    sa.select(sessions)
    .join(runs, runs.c.run_id == sessions.c.run_id)
    .where(sessions.c.state.in_(OPEN_STATES), runs.c.state.in_([RunState.RUNNING.value, RunState.PAUSED.value]))
    .order_by(sessions.c.deadline_at)
)
_SUMMING: Final = _GOING_ON.where(sessions.c.state == SessionState.SUMMING.value)
_TIMED: Final = _GOING_ON.where(sessions.c.state != SessionState.SUMMING.value, runs.c.state == RunState.RUNNING.value)
_COUNT: Final = (
    sa.update(sessions)
    .where(sessions.c.session_id == sa.bindparam("of_session"), sessions.c.state == sa.bindparam("in_state"))
    .values(num_messages=sessions.c.num_messages + 1)
    .returning(sessions)
)
_POSTPONE: Final = (
    sa.update(sessions)
    .where(sessions.c.run_id == sa.bindparam("of_run"), sessions.c.state.in_(OPEN_STATES))
    .values(deadline_at=sa.type_coerce(sessions.c.deadline_at, sa.BigInteger) + sa.bindparam("microseconds"))
)
_MEMBERS: Final = (
    sa.select(session_members)
    .where(session_members.c.session_id == sa.bindparam("session_id"))
    .order_by(session_members.c.place)
)
_SOME_MEMBERS: Final = _MEMBERS.where(session_members.c.place.in_(sa.bindparam("places", expanding=True)))
_MEMBER: Final = sa.select(session_members).where(
    session_members.c.session_id == sa.bindparam("session_id"), session_members.c.client_id == sa.bindparam("client_id")
)
_BLAMED: Final = (
    sa.select(session_members.c.client_id)
    .where(session_members.c.session_id == sa.bindparam("session_id"), session_members.c.blamed)
    .order_by(session_members.c.place)
)
_SENDERS: Final = (
    sa.select(session_members.c.client_id)
    .where(session_members.c.session_id == sa.bindparam("session_id"), session_members.c.input_digest.is_not(None))
    .order_by(session_members.c.place)
)
_MESSAGES: Final = (
    sa.select(session_messages.c.place, session_messages.c.body)
    .where(session_messages.c.session_id == sa.bindparam("session_id"), session_messages.c.kind == sa.bindparam("kind"))
    .order_by(session_messages.c.place)
)
_SOME_MESSAGES: Final = _MESSAGES.where(session_messages.c.place.in_(sa.bindparam("places", expanding=True)))
_INSERT_MESSAGE: Final = sa.insert(session_messages)


def insert(tx: WriteTx, session: SessionRecord, members: Sequence[MemberRecord]) -> None:
    """Adds a session with its members."""
    values: dict[str, Any] = {column.name: getattr(session, column.name) for column in sessions.columns}
    tx.connection.execute(sa.insert(sessions).values(values | {"state": session.state.value}))
    tx.connection.execute(
        sa.insert(session_members),
        [{column.name: getattr(member, column.name) for column in session_members.columns} for member in members],
    )


def get(tx: ReadTx, session_id: str) -> SessionRecord | None:
    """Gives a session."""
    row = tx.connection.execute(_GET, {"session_id": session_id}).one_or_none()
    return None if row is None else _record(row)


def open_of_round(tx: ReadTx, round_id: str) -> list[SessionRecord]:
    """Lists the sessions of an attempt that have not ended."""
    return [_record(row) for row in tx.connection.execute(_OPEN_OF_ROUND, {"round_id": round_id})]


def done_of_round(tx: ReadTx, round_id: str) -> list[SessionRecord]:
    """Lists the sessions of an attempt that have a sum, in the order of their ids."""
    return [_record(row) for row in tx.connection.execute(_DONE_OF_ROUND, {"round_id": round_id})]


def summing(tx: ReadTx) -> list[SessionRecord]:
    """Lists the sessions that wait for their sum, in every run that still goes on."""
    return [_record(row) for row in tx.connection.execute(_SUMMING)]


def timed(tx: ReadTx) -> list[SessionRecord]:
    """Lists the sessions of running runs that have a deadline ahead, soonest first."""
    return [_record(row) for row in tx.connection.execute(_TIMED)]


def page(tx: ReadTx, round_id: str, *, after: tuple[datetime, str] | None, limit: int) -> list[SessionRecord]:
    """Lists the sessions of an attempt in the order of their beginning, from behind a given one."""
    query = (
        sa.select(sessions)
        .where(sessions.c.round_id == round_id)
        .order_by(sessions.c.created_at, sessions.c.session_id)
        .limit(limit)
    )
    if after is not None:
        query = query.where(is_behind((sessions.c.created_at, sessions.c.session_id), after))
    return [_record(row) for row in tx.connection.execute(query)]


def members(tx: ReadTx, session_id: str) -> list[MemberRecord]:
    """Lists a session's members in their order."""
    return [MemberRecord(**fields(row)) for row in tx.connection.execute(_MEMBERS, {"session_id": session_id})]


def members_at(tx: ReadTx, session_id: str, places: Collection[int]) -> list[MemberRecord]:
    """Lists the members at some places, in their order."""
    rows = tx.connection.execute(_SOME_MEMBERS, {"session_id": session_id, "places": list(places)})
    return [MemberRecord(**fields(row)) for row in rows]


def member(tx: ReadTx, session_id: str, client_id: str) -> MemberRecord | None:
    """Gives what a client is in a session; None if it is not a member."""
    row = tx.connection.execute(_MEMBER, {"session_id": session_id, "client_id": client_id}).one_or_none()
    return None if row is None else MemberRecord(**fields(row))


def blamed(tx: ReadTx, session_id: str) -> list[str]:
    """Lists the clients that a session blames, in the order of its members."""
    return list(tx.connection.execute(_BLAMED, {"session_id": session_id}).scalars())


def senders(tx: ReadTx, session_id: str) -> list[str]:
    """Lists the clients that have sent a masked input, in the order of a session's members."""
    return list(tx.connection.execute(_SENDERS, {"session_id": session_id}).scalars())


def change_member(tx: WriteTx, member: MemberRecord, **values: object) -> None:
    """Notes what has come of a member."""
    change_one(
        tx,
        sa.update(session_members)
        .where(session_members.c.session_id == member.session_id, session_members.c.place == member.place)
        .values(values),
    )


def add_message(tx: WriteTx, member: MemberRecord, kind: MessageKind, body: bytes) -> None:
    """Keeps a member's message; there is one of each kind."""
    tx.connection.execute(
        _INSERT_MESSAGE,
        {"session_id": member.session_id, "place": member.place, "kind": kind.value, "body": body},
    )


def messages(tx: ReadTx, session_id: str, kind: MessageKind, places: Collection[int] | None = None) -> dict[int, bytes]:
    """Gives the messages of a kind, of all members or of those at some places, by their senders."""
    parameters: dict[str, Any] = {"session_id": session_id, "kind": kind.value}
    query = _MESSAGES
    if places is not None:
        query, parameters = _SOME_MESSAGES, parameters | {"places": list(places)}
    return {row.place: row.body for row in tx.connection.execute(query, parameters)}


def count_message(tx: WriteTx, session: SessionRecord) -> SessionRecord:
    """Counts a message of the present phase and gives the session after it; raises StaleRowError."""
    parameters = {"of_session": session.session_id, "in_state": session.state.value}
    row = tx.connection.execute(_COUNT, parameters).one_or_none()
    if row is None:
        raise StaleRowError(f"session {session.session_id} has left the phase {session.state}")
    return _record(row)


def enter(
    tx: WriteTx,
    session: SessionRecord,
    state: SessionState,
    *,
    num_expected: int,
    deadline_at: datetime,
    survivors: bytes | None = None,
) -> None:
    """Moves a session from the state that was read to its next phase; raises StaleRowError."""
    change_one(
        tx,
        _moving(session, state).values(
            state=state.value,
            revision=session.revision + 1,
            num_messages=0,
            num_expected=num_expected,
            deadline_at=deadline_at,
            survivors=session.survivors if survivors is None else survivors,
        ),
    )


def abort(tx: WriteTx, session: SessionRecord, *, code: AbortCode, reason: str) -> None:
    """Ends a session without a sum; raises StaleRowError."""
    change_one(
        tx,
        _moving(session, SessionState.ABORTED).values(
            state=SessionState.ABORTED.value,
            revision=session.revision + 1,
            ended_at=tx.now(),
            abort_code=code.value,
            reason=reason,
        ),
    )


def complete(
    tx: WriteTx,
    session: SessionRecord,
    *,
    sum_blob_id: str,
    sum_digest: str,
    total_weight: int,
    totals: Sequence[int],
) -> bool:
    """Ends a summing session with its sum; False if somebody else ended it first."""
    return changes_one(
        tx,
        _moving(session, SessionState.DONE).values(
            state=SessionState.DONE.value,
            revision=session.revision + 1,
            ended_at=tx.now(),
            sum_blob_id=sum_blob_id,
            sum_digest=sum_digest,
            total_weight=total_weight,
            totals=list(totals),
        ),
    )


def forget_messages(tx: WriteTx, session_id: str) -> None:
    """Removes the messages and the masked inputs of a session that has ended; their digests stay."""
    tx.connection.execute(sa.delete(session_messages).where(session_messages.c.session_id == session_id))
    named = sa.select(session_members.c.input_blob_id).where(
        session_members.c.session_id == session_id, session_members.c.input_blob_id.is_not(None)
    )
    inputs = tx.connection.execute(named).scalars().all()
    tx.connection.execute(
        sa.update(session_members)
        .where(session_members.c.session_id == session_id)
        .values(input_blob_id=None, right_shares=None)
    )
    remove_blobs(tx, *inputs)


def count_strikes(tx: ReadTx, run_id: str, client_id: str) -> int:
    """Counts the aborted sessions of a run that blame a client."""
    query = (
        sa.select(sa.func.count())
        .select_from(sessions.join(session_members, session_members.c.session_id == sessions.c.session_id))
        .where(
            sessions.c.run_id == run_id,
            sessions.c.state == SessionState.ABORTED.value,
            session_members.c.client_id == client_id,
            session_members.c.blamed,
        )
    )
    total: int = tx.connection.execute(query).scalar_one()
    return total


def last_codes(tx: ReadTx, run_id: str, client_id: str, limit: int) -> list[AbortCode | None]:
    """Gives how the last sessions ended whose sum held a client's input, the newest first; None: with a sum."""
    query = (
        sa.select(sessions.c.abort_code)
        .select_from(sessions.join(session_members, session_members.c.session_id == sessions.c.session_id))
        .where(
            sessions.c.run_id == run_id,
            sessions.c.ended_at.is_not(None),
            sa.or_(sessions.c.abort_code.is_(None), sessions.c.abort_code == AbortCode.RANGE_CHECK_FAILED.value),
            session_members.c.client_id == client_id,
            session_members.c.input_digest.is_not(None),
        )
        .order_by(sessions.c.ended_at.desc())
        .limit(limit)
    )
    return [None if code is None else AbortCode(code) for code in tx.connection.execute(query).scalars()]


def postpone(tx: WriteTx, run_id: str, by: timedelta) -> None:
    """Moves the deadlines of a run's sessions, after a pause."""
    microseconds = by // timedelta(microseconds=1)
    tx.connection.execute(_POSTPONE, {"of_run": run_id, "microseconds": microseconds})


def _moving(session: SessionRecord, state: SessionState) -> Any:
    if state not in SESSION_TRANSITIONS[session.state]:
        raise ValueError(f"a session does not become {state} that is {session.state}")
    return sa.update(sessions).where(
        sessions.c.session_id == session.session_id, sessions.c.state == session.state.value
    )


def _record(row: sa.Row[Any]) -> SessionRecord:
    values = fields(row)
    code = values["abort_code"]
    return SessionRecord(
        **values | {"state": SessionState(values["state"]), "abort_code": None if code is None else AbortCode(code)}
    )
