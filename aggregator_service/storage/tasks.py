"""The tasks table: what each client of a cohort was asked to do."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.records import TaskRecord, TaskState
from aggregator_service.storage.rows import change_all, change_one, fields
from aggregator_service.storage.tables import runs, tasks
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.runs import RunState
from fl_protocol.tasks import TaskKind

_GET: Final = sa.select(tasks).where(tasks.c.task_id == sa.bindparam("task_id"))
_GET_ALL: Final = sa.select(tasks).where(tasks.c.task_id.in_(sa.bindparam("task_ids", expanding=True)))
_OF_CLIENT: Final = sa.select(tasks).where(
    tasks.c.round_id == sa.bindparam("round_id"),
    tasks.c.client_id == sa.bindparam("client_id"),
    tasks.c.kind == sa.bindparam("kind"),
)
_FIND: Final = _OF_CLIENT.order_by(tasks.c.turn.desc()).limit(1)
_OF_CLIENTS: Final = tasks.c.client_id.in_(sa.bindparam("client_ids", expanding=True))
_NEWEST: Final = (
    sa.select(tasks)
    .where(tasks.c.round_id == sa.bindparam("round_id"), tasks.c.kind == sa.bindparam("kind"), _OF_CLIENTS)
    .order_by(tasks.c.turn)
)
_IS_OUT: Final = (
    (tasks.c.run_id == sa.bindparam("of_run"))
    & (tasks.c.kind == TaskKind.TRAIN.value)
    & (tasks.c.state == TaskState.OPEN.value)
)
_OUT: Final = sa.select(tasks).where(_IS_OUT).order_by(tasks.c.task_id)
_COUNT_OUT: Final = sa.select(sa.func.count()).select_from(tasks).where(_IS_OUT)
_HELD: Final = sa.select(tasks).where(_IS_OUT, _OF_CLIENTS)
_POSTPONE: Final = (
    sa.update(tasks)
    .where(_IS_OUT, tasks.c.deadline_at.is_not(None))
    .values(deadline_at=sa.type_coerce(tasks.c.deadline_at, sa.BigInteger) + sa.bindparam("microseconds"))
)
_DEADLINES: Final = (
    sa.select(tasks.c.run_id, sa.func.min(tasks.c.deadline_at).label("deadline"))
    .join(runs, runs.c.run_id == tasks.c.run_id)
    .where(
        runs.c.state == RunState.RUNNING.value,
        tasks.c.kind == TaskKind.TRAIN.value,
        tasks.c.state == TaskState.OPEN.value,
        tasks.c.deadline_at.is_not(None),
    )
    .group_by(tasks.c.run_id)
)
_INSERT: Final = sa.insert(tasks)
_SET_STATE: Final = (
    sa.update(tasks)
    .where(tasks.c.task_id == sa.bindparam("of_task"), tasks.c.state == sa.bindparam("from_state"))
    .values(state=sa.bindparam("to_state"))
)

_MARK_DONE: Final = (
    sa.update(tasks)
    .where(tasks.c.task_id.in_(sa.bindparam("task_ids", expanding=True)), tasks.c.state == TaskState.OPEN.value)
    .values(state=TaskState.DONE.value)
)


_MARK_COUNTED: Final = (
    sa.update(tasks)
    .where(tasks.c.task_id.in_(sa.bindparam("task_ids", expanding=True)), tasks.c.state != TaskState.DONE.value)
    .values(state=TaskState.DONE.value)
)


def record(values: dict[str, Any]) -> TaskRecord:
    """Makes a task of its columns by name."""
    return TaskRecord(**values | {"kind": TaskKind(values["kind"]), "state": TaskState(values["state"])})


def _record(row: sa.Row[Any] | None) -> TaskRecord | None:
    return None if row is None else record(fields(row))


def _by_client(tx: ReadTx, query: Any, parameters: Mapping[str, Any]) -> dict[str, TaskRecord]:
    found = [record(fields(row)) for row in tx.connection.execute(query, parameters)]
    return {task.client_id: task for task in found}


def insert(tx: WriteTx, *new: TaskRecord) -> None:
    """Adds tasks, at least one; a client has at most one of a kind in an attempt and turn."""
    tx.connection.execute(
        _INSERT,
        [
            {
                "task_id": task.task_id,
                "run_id": task.run_id,
                "round_id": task.round_id,
                "client_id": task.client_id,
                "kind": task.kind.value,
                "state": task.state.value,
                "base_version": task.base_version,
                "assigned_at": task.assigned_at,
                "deadline_at": task.deadline_at,
                "turn": task.turn,
            }
            for task in new
        ],
    )


def get(tx: ReadTx, task_id: str) -> TaskRecord | None:
    """Gives a task; None where there is no such task."""
    return _record(tx.connection.execute(_GET, {"task_id": task_id}).one_or_none())


def get_all(tx: ReadTx, task_ids: Collection[str]) -> dict[str, TaskRecord]:
    """Gives tasks by their ids; one that does not exist is left out."""
    found = [record(fields(row)) for row in tx.connection.execute(_GET_ALL, {"task_ids": list(task_ids)})]
    return {task.task_id: task for task in found}


def find(tx: ReadTx, *, round_id: str, client_id: str, kind: TaskKind) -> TaskRecord | None:
    """Gives a client's newest task of a kind in an attempt, in whatever state."""
    parameters = {"round_id": round_id, "client_id": client_id, "kind": kind.value}
    return _record(tx.connection.execute(_FIND, parameters).one_or_none())


def newest(tx: ReadTx, *, round_id: str, client_ids: Collection[str], kind: TaskKind) -> dict[str, TaskRecord]:
    """Does the same for several clients; one that never had such a task is left out."""
    parameters = {"round_id": round_id, "client_ids": list(client_ids), "kind": kind.value}
    return _by_client(tx, _NEWEST, parameters)


def out(tx: ReadTx, run_id: str) -> list[TaskRecord]:
    """Lists the tasks to train that a run waits for, of whatever round."""
    return [record(fields(row)) for row in tx.connection.execute(_OUT, {"of_run": run_id})]


def count_out(tx: ReadTx, run_id: str) -> int:
    """Counts the tasks to train that a run waits for."""
    total: int = tx.connection.execute(_COUNT_OUT, {"of_run": run_id}).scalar_one()
    return total


def held(tx: ReadTx, run_id: str, client_ids: Collection[str]) -> dict[str, TaskRecord]:
    """Gives the task to train that each client of a buffered run is at work on; it has one at most."""
    return _by_client(tx, _HELD, {"of_run": run_id, "client_ids": list(client_ids)})


def deadlines(tx: ReadTx) -> dict[str, datetime]:
    """Gives the soonest deadline of a task in each running run that has tasks with deadlines of their own."""
    return {row.run_id: row.deadline for row in tx.connection.execute(_DEADLINES)}


def postpone(tx: WriteTx, run_id: str, by: timedelta) -> None:
    """Moves the deadlines of the tasks that a run waits for, after a pause."""
    microseconds = by // timedelta(microseconds=1)
    tx.connection.execute(_POSTPONE, {"of_run": run_id, "microseconds": microseconds})


def count(tx: ReadTx, *, round_id: str, kind: TaskKind) -> int:
    """Counts the tasks of a kind that are out or answered in an attempt."""
    query = sa.select(sa.func.count()).where(
        tasks.c.round_id == round_id, tasks.c.kind == kind.value, tasks.c.state != TaskState.GIVEN_UP.value
    )
    total: int = tx.connection.execute(query).scalar_one()
    return total


def open_of_client(tx: ReadTx, run_id: str, client_id: str) -> list[TaskRecord]:
    """Lists what a client holds in a run and has not answered."""
    query = (
        sa.select(tasks)
        .where(tasks.c.client_id == client_id, tasks.c.run_id == run_id, tasks.c.state == TaskState.OPEN.value)
        .order_by(tasks.c.task_id)
    )
    return [record(fields(row)) for row in tx.connection.execute(query)]


def set_state(tx: WriteTx, task: TaskRecord, state: TaskState) -> None:
    """Moves a task from the state that was read to another; raises StaleRowError."""
    change_one(tx, _SET_STATE, {"of_task": task.task_id, "from_state": task.state.value, "to_state": state.value})


def mark_done(tx: WriteTx, task_ids: Collection[str]) -> None:
    """Moves tasks from open to done; raises StaleRowError unless every one of them was open."""
    change_all(tx, _MARK_DONE, {"task_ids": list(task_ids)}, number=len(task_ids))


def mark_counted(tx: WriteTx, task_ids: Collection[str]) -> None:
    """Makes tasks done that a sum holds, even one that was given up meanwhile; raises StaleRowError for a done one."""
    change_all(tx, _MARK_COUNTED, {"task_ids": list(task_ids)}, number=len(task_ids))
