"""What many answers to tasks are judged by: their senders' tokens, the tasks, their attempts and their runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from aggregator_service.domain.records import RoundRecord, RunRecord, TaskRecord, TokenRecord
from aggregator_service.storage import rounds, runs, tasks, tokens
from aggregator_service.storage.transactions import ReadTx


@dataclass(frozen=True, slots=True)
class Asked:
    """A token, by its hash, with which a task is answered."""

    token_hash: str
    task_id: str


@dataclass(frozen=True, slots=True)
class AskRecord:
    """A task with what it belongs to."""

    task: TaskRecord
    round: RoundRecord
    run: RunRecord


def get_all(tx: ReadTx, asked: Sequence[Asked]) -> list[tuple[TokenRecord | None, AskRecord | None]]:
    """Gives each token, and each task whoever holds it; None where there is none. It takes four statements for all."""
    known = tokens.get_all(tx, {each.token_hash for each in asked})
    held = tasks.get_all(tx, {each.task_id for each in asked})
    attempts = rounds.get_all(tx, {task.round_id for task in held.values()})
    owners = runs.get_all(tx, {task.run_id for task in held.values()})
    found = {task_id: AskRecord(task, attempts[task.round_id], owners[task.run_id]) for task_id, task in held.items()}
    return [(known.get(each.token_hash), found.get(each.task_id)) for each in asked]


def of_task(tx: ReadTx, task_id: str) -> AskRecord | None:
    """Gives a task with what it belongs to, by several statements; None where there is no such task."""
    task = tasks.get(tx, task_id)
    round_ = None if task is None else rounds.get(tx, task.round_id)
    run = None if task is None else runs.get(tx, task.run_id)
    return None if task is None or round_ is None or run is None else AskRecord(task, round_, run)
