"""The updates and evaluations tables: what clients sent and the server acknowledged."""

from collections.abc import Collection
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.records import EvaluationRecord, UpdateRecord
from aggregator_service.storage.rows import fields, is_behind
from aggregator_service.storage.tables import clients, evaluations, models, rounds, tasks, updates
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.rounds import RoundState

_INSERT: Final = sa.insert(updates)
_OF_TASK: Final = sa.select(updates).where(updates.c.task_id == sa.bindparam("task_id"))
_OF_CLIENT: Final = sa.select(updates.c.update_id).where(
    updates.c.round_id == sa.bindparam("round_id"), updates.c.client_id == sa.bindparam("client_id")
)
_OF_TASKS: Final = sa.select(updates).where(updates.c.task_id.in_(sa.bindparam("task_ids", expanding=True)))


# With a version that is published again SCAFFOLD's control variates begin anew, so that older rounds do not count.
_BEGAN_ANEW: Final = (
    sa.select(sa.func.coalesce(sa.func.max(models.c.version), 0))
    .where(models.c.run_id == sa.bindparam("run_id"), models.c.restored_from.is_not(None))
    .scalar_subquery()
)
# By the client's tasks, which have an index; a client has one for each round that it was asked in.
_LAST_COUNTED: Final = (
    sa.select(updates.c.digest)
    .select_from(tasks.join(updates, updates.c.task_id == tasks.c.task_id).join(rounds))
    .where(
        tasks.c.client_id == sa.bindparam("client_id"),
        tasks.c.run_id == sa.bindparam("run_id"),
        rounds.c.state == RoundState.COMPLETED.value,
        rounds.c.base_version >= _BEGAN_ANEW,
    )
    .order_by(rounds.c.number.desc())
    .limit(1)
)


def _values(table: sa.Table, record: UpdateRecord | EvaluationRecord) -> dict[str, Any]:
    return {column.name: getattr(record, column.name) for column in table.columns}


def insert(tx: WriteTx, *accepted: UpdateRecord) -> None:
    """Adds accepted updates; the database itself refuses a second one of a task, or of a client that counts once."""
    values = [
        _values(updates, update) | {"metrics": dict(update.metrics), "max_abs": dict(update.max_abs)}
        for update in accepted
    ]
    tx.connection.execute(_INSERT, values)


def of_task(tx: ReadTx, task_id: str) -> UpdateRecord | None:
    """Gives the update that was accepted for a task."""
    row = tx.connection.execute(_OF_TASK, {"task_id": task_id}).one_or_none()
    return None if row is None else UpdateRecord(**fields(row))


def of_tasks(tx: ReadTx, task_ids: Collection[str]) -> dict[str, UpdateRecord]:
    """Gives the updates that were accepted for some tasks, by the tasks' ids."""
    rows = tx.connection.execute(_OF_TASKS, {"task_ids": list(task_ids)})
    return {row.task_id: UpdateRecord(**fields(row)) for row in rows}


def has_one_of(tx: ReadTx, client_id: str, *, round_id: str) -> bool:
    """Tells whether an attempt counts an update of a client."""
    parameters = {"round_id": round_id, "client_id": client_id}
    return tx.connection.execute(_OF_CLIENT, parameters).first() is not None


def of_round(tx: ReadTx, round_id: str) -> list[UpdateRecord]:
    """Lists the accepted updates of an attempt in the order of their digests, which is the canonical one."""
    query = sa.select(updates).where(updates.c.round_id == round_id).order_by(updates.c.digest, updates.c.client_id)
    return [UpdateRecord(**fields(row)) for row in tx.connection.execute(query)]


def mean_num_bytes(tx: ReadTx, round_id: str) -> int:
    """Gives how many bytes the accepted updates of an attempt have on average, 0 if there are none."""
    query = sa.select(sa.func.avg(updates.c.num_bytes)).where(updates.c.round_id == round_id)
    return int(tx.connection.execute(query).scalar_one() or 0)


def last_counted(tx: ReadTx, *, run_id: str, client_id: str) -> str | None:
    """Gives the digest of a client's newest update that counts for its control variate; None if there is none."""
    return tx.connection.execute(_LAST_COUNTED, {"run_id": run_id, "client_id": client_id}).scalar_one_or_none()


def attributes_of_round(tx: ReadTx, round_id: str, name: str) -> dict[str, str | None]:
    """Gives the value of a client attribute behind each accepted update of an attempt, by the update's id."""
    query = (
        sa.select(updates.c.update_id, clients.c.attributes[name].as_string())
        .join(clients, clients.c.client_id == updates.c.client_id)
        .where(updates.c.round_id == round_id)
    )
    return dict(tx.connection.execute(query).all())


def page(tx: ReadTx, round_id: str, *, after: tuple[str, str], limit: int) -> list[UpdateRecord]:
    """Lists the accepted updates of an attempt by client and update, from behind a given pair of their ids."""
    query = (
        sa.select(updates)
        .where(updates.c.round_id == round_id, is_behind((updates.c.client_id, updates.c.update_id), after))
        .order_by(updates.c.client_id, updates.c.update_id)
        .limit(limit)
    )
    return [UpdateRecord(**fields(row)) for row in tx.connection.execute(query)]


def insert_evaluation(tx: WriteTx, evaluation: EvaluationRecord) -> None:
    """Adds an accepted evaluation report."""
    values = _values(evaluations, evaluation) | {"metrics": dict(evaluation.metrics)}
    tx.connection.execute(sa.insert(evaluations).values(values))


def evaluation_of_task(tx: ReadTx, task_id: str) -> EvaluationRecord | None:
    """Gives the evaluation report that was accepted for a task."""
    row = tx.connection.execute(sa.select(evaluations).where(evaluations.c.task_id == task_id)).one_or_none()
    return None if row is None else EvaluationRecord(**fields(row))


def count_evaluations(tx: ReadTx, round_id: str) -> int:
    """Counts the accepted evaluation reports of a round."""
    query = sa.select(sa.func.count()).where(evaluations.c.round_id == round_id)
    total: int = tx.connection.execute(query).scalar_one()
    return total


def strata_of_round(tx: ReadTx, round_id: str, *, attribute: str) -> dict[str, str]:
    """Gives the value of an attribute of each client that reported on a round's model; empty where it has none."""
    query = (
        sa.select(clients.c.client_id, clients.c.attributes)
        .join(evaluations, evaluations.c.client_id == clients.c.client_id)
        .where(evaluations.c.round_id == round_id)
    )
    return {row.client_id: row.attributes.get(attribute, "") for row in tx.connection.execute(query)}


def evaluations_of_round(tx: ReadTx, round_id: str) -> list[EvaluationRecord]:
    """Lists the accepted evaluation reports of a round by client."""
    query = sa.select(evaluations).where(evaluations.c.round_id == round_id).order_by(evaluations.c.client_id)
    return [EvaluationRecord(**fields(row)) for row in tx.connection.execute(query)]
