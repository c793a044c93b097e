"""What the answer to a task is judged by: the task with its attempt at a round and its run, in one statement."""

from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import sqlalchemy as sa

from aggregator_service.domain.records import RoundRecord, RunRecord, TaskRecord
from aggregator_service.storage import rounds, runs, tables, tasks
from aggregator_service.storage.transactions import ReadTx

_GET: Final = (
    sa.select(*tables.tasks.columns, *tables.rounds.columns, *tables.runs.columns)
    .select_from(tables.tasks)
    .join(tables.rounds, tables.rounds.c.round_id == tables.tasks.c.round_id)
    .join(tables.runs, tables.runs.c.run_id == tables.tasks.c.run_id)
    .where(tables.tasks.c.task_id == sa.bindparam("task_id"))
)


@dataclass(frozen=True, slots=True)
class AskRecord:
    """A task with what it belongs to."""

    task: TaskRecord
    round: RoundRecord
    run: RunRecord


def get(tx: ReadTx, task_id: str) -> AskRecord | None:
    """Gives a task with its attempt and run; None where there is no such task."""
    row = tx.connection.execute(_GET, {"task_id": task_id}).one_or_none()
    if row is None:
        return None
    values = iter(row)

    def take(table: sa.Table) -> dict[str, Any]:
        return dict(zip(table.columns.keys(), islice(values, len(table.columns)), strict=True))

    return AskRecord(
        tasks.record(take(tables.tasks)), rounds.record(take(tables.rounds)), runs.record(take(tables.runs))
    )
