"""Who is asked: a client claims a task, waits for one, or gives one up."""

import asyncio
from dataclasses import dataclass
from typing import Final

from aggregator_service.domain import cohort, topics
from aggregator_service.domain.admission import check_owner
from aggregator_service.domain.records import (
    ModelRecord,
    RoundRecord,
    RunRecord,
    TaskRecord,
    TaskState,
)
from aggregator_service.flow.context import Flow
from aggregator_service.flow.layouts import layout_of
from aggregator_service.flow.lifecycle import no_such_run
from aggregator_service.storage import clients, models, rounds, runs, tasks
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.rounds import RoundState
from fl_protocol.runs import FINISHED_RUN_STATES, RunState
from fl_protocol.specs.evaluation import evaluation_terms
from fl_protocol.tasks import TaskKind
from fl_protocol.updates import max_update_bytes

POLL_SECONDS: Final = 10.0
"""How often a held request looks again without a hint, for a hint can be lost with a connection."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task with all that its client must know; `is_new` unless the client held it already."""

    task: TaskRecord
    run: RunRecord
    round: RoundRecord
    model: ModelRecord
    max_num_bytes: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class _Offer:
    """What clients of a run can be asked now, with the task that this client was given of it before, if any."""

    kind: TaskKind
    round: RoundRecord
    task: TaskRecord | None

    @property
    def is_held(self) -> bool:
        return self.task is not None and self.task.state is TaskState.OPEN


async def claim(flow: Flow, *, run_id: str, client_id: str, wait_seconds: float) -> Assignment | None:
    """Gives a client its task in a run, waiting for one if asked to; None if there is nothing to do now.

    Raises `not-found` for an unknown run and `run-finished` for one that has ended.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_seconds
    topic = topics.tasks_of(run_id)
    while True:
        seen = flow.wakeups.seen(topic)
        if await flow.transactions.read("look_for_task", lambda tx: _may_have_task(tx, run_id, client_id)):
            assignment = await _try_claim(flow, run_id, client_id)
            if assignment is not None:
                return assignment
        remaining = deadline - loop.time()
        if remaining <= 0 or flow.wakeups.closed:
            return None
        await flow.wakeups.wait(topic, seen, timeout_seconds=min(remaining, POLL_SECONDS))


async def give_up(flow: Flow, *, task_id: str, client_id: str) -> None:
    """Gives a task up, so that another client can be asked; giving it up again changes nothing."""

    def body(tx: WriteTx) -> None:
        task = check_owner(tasks.get(tx, task_id), task_id=task_id, client_id=client_id)
        runs.lock(tx, task.run_id)
        task = check_owner(tasks.get(tx, task_id), task_id=task_id, client_id=client_id)
        if task.state is TaskState.DONE:
            raise ProblemError(
                ProblemType.ALREADY_SUBMITTED, "the task has been answered and is counted; it cannot be given up"
            )
        if task.state is TaskState.OPEN:
            tasks.set_state(tx, task, TaskState.GIVEN_UP)
            if task.kind is TaskKind.TRAIN:
                rounds.count_task(tx, task.round_id, -1)
            tx.wake(topics.tasks_of(task.run_id))

    await flow.transactions.write("give_up_task", body)


async def _try_claim(flow: Flow, run_id: str, client_id: str) -> Assignment | None:
    task_id = flow.new_id("task")

    def body(tx: WriteTx) -> tuple[TaskRecord, RunRecord, RoundRecord, ModelRecord, bool] | None:
        run = _running(tx, run_id, locked=True)
        if run is None:
            return None
        offer = _choose(tx, run, client_id)
        if offer is None:
            return None
        is_new = offer.task is None
        task, round_ = offer.task or _assign(tx, run, offer, client_id=client_id, task_id=task_id), offer.round
        version = round_.result_version if task.kind is TaskKind.EVALUATE else round_.base_version
        model = models.get(tx, run_id, version or 0)
        if model is None:
            raise LookupError(f"run {run_id} has no model version {version}")
        return task, run, round_, model, is_new

    claimed = await flow.transactions.write("claim_task", body)
    if claimed is None:
        return None
    task, run, round_, model, is_new = claimed
    layout = await layout_of(flow, model)
    return Assignment(task, run, round_, model, max_update_bytes(layout), is_new)


def _running(tx: ReadTx, run_id: str, *, locked: bool = False) -> RunRecord | None:
    run = runs.lock(tx, run_id) if locked and isinstance(tx, WriteTx) else runs.get(tx, run_id)
    if run is None:
        raise no_such_run(run_id)
    if run.state in FINISHED_RUN_STATES:
        reason = f": {run.reason}" if run.reason else ""
        raise ProblemError(
            ProblemType.RUN_FINISHED, f"the run is {run.state.value}{reason}; there is nothing left to do"
        )
    return run if run.state is RunState.RUNNING else None


def _may_have_task(tx: ReadTx, run_id: str, client_id: str) -> bool:
    run = _running(tx, run_id)
    if run is None:
        return False
    return _choose(tx, run, client_id) is not None


def _choose(tx: ReadTx, run: RunRecord, client_id: str) -> _Offer | None:
    """Takes what the client holds already, else the first offer that is free."""
    offers = _offers(tx, run, client_id)
    held = next((offer for offer in offers if offer.is_held), None)
    return held or next((offer for offer in offers if _is_free(tx, run, offer)), None)


def _offers(tx: ReadTx, run: RunRecord, client_id: str) -> list[_Offer]:
    """Lists what clients of a run can be asked now; an evaluation goes first, for it is short."""
    open_now = [(TaskKind.EVALUATE, round_) for round_ in rounds.open_evaluations(tx, run.run_id)]
    newest = rounds.newest(tx, run.run_id)
    if newest is not None and newest.state is RoundState.COLLECTING:
        open_now.append((TaskKind.TRAIN, newest))
    return [
        _Offer(kind, round_, tasks.find(tx, round_id=round_.round_id, client_id=client_id, kind=kind))
        for kind, round_ in open_now
    ]


def _is_free(tx: ReadTx, run: RunRecord, offer: _Offer) -> bool:
    if offer.task is not None:
        return False
    if offer.kind is TaskKind.TRAIN:
        return cohort.has_place(offer.round)
    terms = evaluation_terms(run.spec.evaluation, run.spec.round)
    return tasks.count(tx, round_id=offer.round.round_id, kind=offer.kind) < terms.cohort_size


def _assign(tx: WriteTx, run: RunRecord, offer: _Offer, *, client_id: str, task_id: str) -> TaskRecord:
    task = TaskRecord(task_id, run.run_id, offer.round.round_id, client_id, offer.kind, TaskState.OPEN, tx.now())
    tasks.insert(tx, task)
    if offer.kind is TaskKind.TRAIN:
        rounds.count_task(tx, offer.round.round_id, 1)
    client = clients.get(tx, client_id)
    if client is not None:
        clients.mark_seen(tx, client)
    return task
