"""A buffered run's places: who may begin at any time, and how a task that comes to nothing makes room for another."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

from aggregator_service.domain import cohort, topics
from aggregator_service.domain.records import RoundRecord, RunRecord, TaskRecord, TaskState
from aggregator_service.storage import rounds, tasks, updates
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.specs.rounds import BufferedRoundSpec
from fl_protocol.tasks import TaskKind


def is_free(tx: ReadTx, run: RunRecord, spec: BufferedRoundSpec, *, round_: RoundRecord, client_id: str) -> bool:
    """Tells whether a client that holds no task may be given one: at any time, while there are places."""
    has_room = cohort.has_room(
        round_,
        num_out=tasks.count_out(tx, run.run_id),
        latest_version=run.latest_version or 0,
        max_staleness=spec.max_staleness,
    )
    if not has_room or not cohort.counts_once(run.spec):
        return has_room
    return not updates.has_one_of(tx, client_id, round_id=round_.round_id)


def timed(tx: WriteTx, run: RunRecord, spec: BufferedRoundSpec, task: TaskRecord) -> TaskRecord:
    """Makes a new task one on the newest model, with a deadline of its own that the worker then knows of."""
    if tasks.count_out(tx, run.run_id) == 0:
        # A later task has a later deadline: the worker finds it when it looks at this one's.
        tx.wake(topics.DEADLINES)
    earlier = tasks.find(tx, round_id=task.round_id, client_id=task.client_id, kind=task.kind)
    return replace(
        task,
        base_version=run.latest_version or 0,
        deadline_at=tx.now() + timedelta(seconds=spec.deadline_seconds),
        turn=1 if earlier is None else earlier.turn + 1,
    )


def take_back(tx: WriteTx, task: TaskRecord) -> None:
    """Takes an open task back, whether its client gave it up or its time is over, and offers its place."""
    tasks.set_state(tx, task, TaskState.GIVEN_UP)
    if task.kind is TaskKind.TRAIN:
        rounds.count_task(tx, task.round_id, -1)
    tx.wake(topics.tasks_of(task.run_id))


def release_all(tx: WriteTx, run_id: str) -> None:
    """Takes back every task to train: after a rollback none comes from a model that the run goes on from."""
    _take_back_all(tx, tasks.out(tx, run_id))


def release_stale(tx: WriteTx, run_id: str, *, oldest_version: int) -> None:
    """Takes back every task made from an older model than an update may come from: nobody waits for it any more."""
    _take_back_all(tx, (task for task in tasks.out(tx, run_id) if task.base_version < oldest_version))


def release_overdue(tx: WriteTx, run_id: str) -> None:
    """Takes back every task that took longer than its deadline."""
    now = tx.now()
    _take_back_all(tx, (task for task in tasks.out(tx, run_id) if task.deadline_at and task.deadline_at <= now))


def offer_freed_places(tx: WriteTx, run: RunRecord, *, num_answered: int) -> None:
    """Calls those who wait for a place, if all were taken before so many tasks were answered."""
    if tasks.count_out(tx, run.run_id) + num_answered >= run.spec.round.cohort_size:
        tx.wake(topics.tasks_of(run.run_id))


def _take_back_all(tx: WriteTx, taken: Iterable[TaskRecord]) -> None:
    for task in taken:
        take_back(tx, task)
