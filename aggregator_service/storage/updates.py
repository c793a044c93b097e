"""The updates and evaluations tables: what clients sent and the server acknowledged."""

from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.records import EvaluationRecord, UpdateRecord
from aggregator_service.storage.rows import fields
from aggregator_service.storage.tables import clients, evaluations, updates
from aggregator_service.storage.transactions import ReadTx, WriteTx

_INSERT: Final = sa.insert(updates)
_OF_TASK: Final = sa.select(updates).where(updates.c.task_id == sa.bindparam("task_id"))


def _values(table: sa.Table, record: UpdateRecord | EvaluationRecord) -> dict[str, Any]:
    return {column.name: getattr(record, column.name) for column in table.columns}


def insert(tx: WriteTx, update: UpdateRecord) -> None:
    """Adds an accepted update; the database itself refuses a second one of a task or of a client in an attempt."""
    values = _values(updates, update)
    values |= {"metrics": dict(update.metrics), "max_abs": dict(update.max_abs)}
    tx.connection.execute(_INSERT, values)


def of_task(tx: ReadTx, task_id: str) -> UpdateRecord | None:
    """Gives the update that was accepted for a task."""
    row = tx.connection.execute(_OF_TASK, {"task_id": task_id}).one_or_none()
    return None if row is None else UpdateRecord(**fields(row))


def of_round(tx: ReadTx, round_id: str) -> list[UpdateRecord]:
    """Lists the accepted updates of an attempt in the order of their digests, which is the canonical one."""
    query = sa.select(updates).where(updates.c.round_id == round_id).order_by(updates.c.digest, updates.c.client_id)
    return [UpdateRecord(**fields(row)) for row in tx.connection.execute(query)]


def attributes_of_round(tx: ReadTx, round_id: str, name: str) -> dict[str, str | None]:
    """Gives the value of a client attribute behind each accepted update of an attempt, by the update's id."""
    query = (
        sa.select(updates.c.update_id, clients.c.attributes[name].as_string())
        .join(clients, clients.c.client_id == updates.c.client_id)
        .where(updates.c.round_id == round_id)
    )
    return dict(tx.connection.execute(query).tuples().all())


def page(tx: ReadTx, round_id: str, *, after_client_id: str, limit: int) -> list[UpdateRecord]:
    """Lists the accepted updates of an attempt by client, from behind a given one."""
    query = (
        sa.select(updates)
        .where(updates.c.round_id == round_id, updates.c.client_id > after_client_id)
        .order_by(updates.c.client_id)
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


def evaluations_of_round(tx: ReadTx, round_id: str) -> list[EvaluationRecord]:
    """Lists the accepted evaluation reports of a round by client."""
    query = sa.select(evaluations).where(evaluations.c.round_id == round_id).order_by(evaluations.c.client_id)
    return [EvaluationRecord(**fields(row)) for row in tx.connection.execute(query)]
