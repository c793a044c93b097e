"""What the answer to a task is judged by, in one statement: the sender's token, the task, its attempt and its run."""

from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.records import RoundRecord, RunRecord, TaskRecord, TokenRecord
from aggregator_service.storage import rounds, runs, tables, tasks, tokens
from aggregator_service.storage.transactions import ReadTx

_GET: Final = (
    sa.select(*tables.tokens.columns, *tables.tasks.columns, *tables.rounds.columns, *tables.runs.columns)
    .select_from(tables.tokens)
    .outerjoin(tables.tasks, tables.tasks.c.task_id == sa.bindparam("task_id"))
    .outerjoin(tables.rounds, tables.rounds.c.round_id == tables.tasks.c.round_id)
    .outerjoin(tables.runs, tables.runs.c.run_id == tables.tasks.c.run_id)
    .where(tables.tokens.c.token_hash == sa.bindparam("token_hash"))
)


@dataclass(frozen=True, slots=True)
class AskRecord:
    """A task with what it belongs to."""

    task: TaskRecord
    round: RoundRecord
    run: RunRecord


def get(tx: ReadTx, *, token_hash: str, task_id: str) -> tuple[TokenRecord, AskRecord | None] | None:
    """Gives a token, and a task whoever holds it; None where the token is not known, and for a task that is not."""
    row = tx.connection.execute(_GET, {"token_hash": token_hash, "task_id": task_id}).one_or_none()
    if row is None:
        return None
    values = iter(row)

    def take(table: sa.Table) -> dict[str, Any]:
        return dict(zip(table.columns.keys(), islice(values, len(table.columns)), strict=True))

    token, task, round_, run = take(tables.tokens), take(tables.tasks), take(tables.rounds), take(tables.runs)
    if task["task_id"] is None:
        return tokens.record(token), None
    return tokens.record(token), AskRecord(tasks.record(task), rounds.record(round_), runs.record(run))


def of_task(tx: ReadTx, task_id: str) -> AskRecord | None:
    """Gives a task with what it belongs to, by several statements; None where there is no such task."""
    task = tasks.get(tx, task_id)
    round_ = None if task is None else rounds.get(tx, task.round_id)
    run = None if task is None else runs.get(tx, task.run_id)
    return None if task is None or round_ is None or run is None else AskRecord(task, round_, run)
