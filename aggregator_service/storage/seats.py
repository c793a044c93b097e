"""The seats table: where each task of a masked round stands; and the advertised_keys, each used once in a round."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from aggregator_service.domain.records import TaskState
from aggregator_service.domain.sessions.records import SeatRecord
from aggregator_service.domain.sessions.steps import SEAT_TRANSITIONS
from aggregator_service.storage.rows import change_all, change_one, fields
from aggregator_service.storage.tables import advertised_keys, rounds, runs, seats, tasks
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.rounds import RoundState
from fl_protocol.runs import RunState
from fl_protocol.sessions import SeatState
from fl_protocol.tasks import TaskKind

_GET: Final = sa.select(seats).where(seats.c.task_id == sa.bindparam("task_id"))
_WAITING: Final = (
    sa.select(seats)
    .where(seats.c.round_id == sa.bindparam("round_id"), seats.c.state == SeatState.WAITING.value)
    .order_by(seats.c.waiting_since, seats.c.task_id)
)
_NUM_WAITING: Final = sa.select(sa.func.count(), sa.func.min(seats.c.waiting_since)).where(
    seats.c.round_id == sa.bindparam("round_id"), seats.c.state == SeatState.WAITING.value
)
_NUM_AT_WORK: Final = (
    sa.select(sa.func.count())
    .select_from(tasks.outerjoin(seats, seats.c.task_id == tasks.c.task_id))
    .where(
        tasks.c.round_id == sa.bindparam("round_id"),
        tasks.c.kind == TaskKind.TRAIN.value,
        tasks.c.state == TaskState.OPEN.value,
        sa.or_(seats.c.state.is_(None), seats.c.state == SeatState.FREE.value),
    )
)
_MASKED: Final = runs.c.spec["secure_aggregation"]
_WAITED_FOR: Final = (
    sa.select(
        seats.c.run_id,
        seats.c.round_id,
        sa.func.count().label("num_waiting"),
        sa.func.min(seats.c.waiting_since).label("since"),
        sa.func.min(_MASKED["min_members"].as_integer()).label("least"),
        sa.func.min(_MASKED["enrol_seconds"].as_float()).label("seconds"),
    )
    .join(runs, runs.c.run_id == seats.c.run_id)
    .join(rounds, rounds.c.round_id == seats.c.round_id)
    .where(
        seats.c.state == SeatState.WAITING.value,
        runs.c.state == RunState.RUNNING.value,
        rounds.c.state == RoundState.COLLECTING.value,
    )
    .group_by(seats.c.run_id, seats.c.round_id)
)
_UPSERT: Final = {
    name: dialect.insert(seats).on_conflict_do_update(
        index_elements=["task_id"],
        set_={
            column: dialect.insert(seats).excluded[column]
            for column in ("state", "advertise", "session_id", "place", "waiting_since")
        },
    )
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql))
}
_MOVE: Final = (
    sa.update(seats)
    .where(seats.c.task_id.in_(sa.bindparam("task_ids", expanding=True)), seats.c.state == sa.bindparam("from_state"))
    .values(state=sa.bindparam("to_state"))
)
_POSTPONE: Final = (
    sa.update(seats)
    .where(seats.c.run_id == sa.bindparam("of_run"), seats.c.state == SeatState.WAITING.value)
    .values(waiting_since=sa.type_coerce(seats.c.waiting_since, sa.BigInteger) + sa.bindparam("microseconds"))
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many wait in a round for a session to begin, and since when the first of them."""

    num_waiting: int
    since: datetime | None


def get(tx: ReadTx, task_id: str) -> SeatRecord | None:
    """Gives a task's seat; None if its client has not asked for one."""
    row = tx.connection.execute(_GET, {"task_id": task_id}).one_or_none()
    return None if row is None else _record(row)


def put(tx: WriteTx, seat: SeatRecord) -> None:
    """Sets a task's seat, new or again."""
    values: dict[str, Any] = {column.name: getattr(seat, column.name) for column in seats.columns}
    tx.connection.execute(_UPSERT[tx.dialect], values | {"state": seat.state.value})


def waiting(tx: ReadTx, round_id: str) -> list[SeatRecord]:
    """Lists those who wait for a session, whoever came first at the front."""
    return [_record(row) for row in tx.connection.execute(_WAITING, {"round_id": round_id})]


def count_waiting(tx: ReadTx, round_id: str) -> Waiting:
    """Counts those who wait for a session."""
    return Waiting(*tx.connection.execute(_NUM_WAITING, {"round_id": round_id}).one())


def count_at_work(tx: ReadTx, round_id: str) -> int:
    """Counts the open tasks to train whose clients may yet ask for a seat."""
    total: int = tx.connection.execute(_NUM_AT_WORK, {"round_id": round_id}).scalar_one()
    return total


def waited_for(tx: ReadTx) -> list[tuple[str, str, datetime]]:
    """Lists the (run, round) of running runs in which enough wait for a session, and until when for more."""
    return [
        (row.run_id, row.round_id, row.since + timedelta(seconds=row.seconds))
        for row in tx.connection.execute(_WAITED_FOR)
        if row.num_waiting >= row.least
    ]


def seat_all(tx: WriteTx, members: Sequence[SeatRecord], session_id: str) -> None:
    """Gives those who waited their places in a session, in their order; raises StaleRowError."""
    for place, seat in enumerate(members):
        change_one(
            tx,
            sa.update(seats)
            .where(seats.c.task_id == seat.task_id, seats.c.state == SeatState.WAITING.value)
            .values(state=SeatState.SEATED.value, session_id=session_id, place=place),
        )


def move(tx: WriteTx, task_ids: Collection[str], state: SeatState, *, before: SeatState) -> None:
    """Moves seats from one state to another; raises StaleRowError unless every one of them was in it."""
    if state not in SEAT_TRANSITIONS[before]:
        raise ValueError(f"a seat does not become {state} that is {before}")
    parameters = {"task_ids": list(task_ids), "from_state": before.value, "to_state": state.value}
    change_all(tx, _MOVE, parameters, number=len(task_ids))


def postpone(tx: WriteTx, run_id: str, by: timedelta) -> None:
    """Moves on since when those wait who do, after a pause."""
    microseconds = by // timedelta(microseconds=1)
    tx.connection.execute(_POSTPONE, {"of_run": run_id, "microseconds": microseconds})


def used_keys(tx: ReadTx, round_id: str, public_keys: Collection[bytes]) -> set[bytes]:
    """Gives those of some public keys that were advertised before in a round."""
    query = sa.select(advertised_keys.c.public_key).where(
        advertised_keys.c.round_id == round_id, advertised_keys.c.public_key.in_(public_keys)
    )
    return set(tx.connection.execute(query).scalars())


def note_keys(tx: WriteTx, round_id: str, public_keys: Collection[bytes]) -> None:
    """Notes keys as used in a round; the database itself refuses one that was."""
    values = [{"round_id": round_id, "public_key": key} for key in public_keys]
    tx.connection.execute(sa.insert(advertised_keys), values)


def forget_keys(tx: WriteTx, round_id: str) -> None:
    """Forgets which keys were used in a round that has ended."""
    tx.connection.execute(sa.delete(advertised_keys).where(advertised_keys.c.round_id == round_id))


def _record(row: sa.Row[Any]) -> SeatRecord:
    values = fields(row)
    return SeatRecord(**values | {"state": SeatState(values["state"])})
