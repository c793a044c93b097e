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
