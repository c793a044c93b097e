"""Who is asked: a client claims a task, waits for one, or gives one up."""

import asyncio
from dataclasses import dataclass, replace
from datetime import timedelta
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
from aggregator_service.flow import buffers
from aggregator_service.flow.context import Flow
from aggregator_service.flow.layouts import layout_of
from aggregator_service.flow.lifecycle import no_such_run
from aggregator_service.storage import clients, models, rounds, runs, tasks, updates
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.rounds import RoundState
from fl_protocol.runs import FINISHED_RUN_STATES, RunState
from fl_protocol.specs.algorithms import ScaffoldAlgorithm
from fl_protocol.specs.rounds import BufferedRoundSpec
from fl_protocol.tasks import TaskKind
from fl_protocol.updates import max_update_bytes, update_layout

POLL_SECONDS: Final = 10.0
"""How often a held request looks again without a hint, for a hint can be lost with a connection."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task with all that its client must know; `is_new` unless the client held it already.

    `counted_update` is the digest of the client's newest update that a published model holds, where SCAFFOLD needs it.
    """

    task: TaskRecord
    run: RunRecord
    round: RoundRecord
    model: ModelRecord
    max_num_bytes: int
    is_new: bool
    counted_update: str | None


@dataclass(frozen=True, slots=True)
class _Offer:
    """What clients of a run can be asked now, with the task that this client was given of it before, if any."""

    kind: TaskKind
    round: RoundRecord
    task: TaskRecord | None

    @property
    def base_version(self) -> int:
        """The model that the round asks about."""
        version = self.round.result_version if self.kind is TaskKind.EVALUATE else self.round.base_version
        return version or 0

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
            buffers.release(tx, task)

    await flow.transactions.write("give_up_task", body)


async def _try_claim(flow: Flow, run_id: str, client_id: str) -> Assignment | None:
    task_id = flow.new_id("task")

    def body(tx: WriteTx) -> tuple[TaskRecord, RunRecord, RoundRecord, ModelRecord, bool, str | None] | None:
        run = _running(tx, run_id, locked=True)
        if run is None:
            return None
        offer = _choose(tx, run, client_id)
        if offer is None:
            return None
        is_new = offer.task is None
        task = offer.task or _assign(tx, run, offer, client_id=client_id, task_id=task_id)
        round_ = offer.round if task.round_id == offer.round.round_id else rounds.get(tx, task.round_id)
        model = models.get(tx, run_id, task.base_version)
        if round_ is None or model is None:
            raise LookupError(f"task {task.task_id} lacks its round or its model, version {task.base_version}")
        counted = None
        if isinstance(run.spec.algorithm, ScaffoldAlgorithm):
            counted = updates.last_counted(tx, run_id=run_id, client_id=client_id)
        return task, run, round_, model, is_new, counted

    claimed = await flow.transactions.write("claim_task", body)
    if claimed is None:
        return None
    task, run, round_, model, is_new, counted = claimed
    layout = update_layout(await layout_of(flow, model), run.spec)
    return Assignment(task, run, round_, model, max_update_bytes(layout), is_new, counted)


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
    return held or next((offer for offer in offers if _is_free(tx, run, offer, client_id=client_id)), None)


def _offers(tx: ReadTx, run: RunRecord, client_id: str) -> list[_Offer]:
    """Lists what clients of a run can be asked now; an evaluation goes first, for it is short."""
    open_now = [(TaskKind.EVALUATE, round_) for round_ in rounds.open_evaluations(tx, run.run_id)]
    newest = rounds.newest(tx, run.run_id)
    if newest is not None and newest.state is RoundState.COLLECTING:
        open_now.append((TaskKind.TRAIN, newest))
    return [_Offer(kind, round_, _task(tx, run, round_, kind=kind, client_id=client_id)) for kind, round_ in open_now]


def _task(tx: ReadTx, run: RunRecord, round_: RoundRecord, *, kind: TaskKind, client_id: str) -> TaskRecord | None:
    if kind is TaskKind.TRAIN and isinstance(run.spec.round, BufferedRoundSpec):
        return tasks.held(tx, run.run_id, client_id)
    return tasks.find(tx, round_id=round_.round_id, client_id=client_id, kind=kind)


def _is_free(tx: ReadTx, run: RunRecord, offer: _Offer, *, client_id: str) -> bool:
    if offer.task is not None:
        return False
    if offer.kind is TaskKind.TRAIN and isinstance(run.spec.round, BufferedRoundSpec):
        return buffers.is_free(tx, run, run.spec.round, round_=offer.round, client_id=client_id)
    if offer.kind is TaskKind.TRAIN:
        return cohort.has_place(offer.round)
    return tasks.count(tx, round_id=offer.round.round_id, kind=offer.kind) < offer.round.cohort_size


def _assign(tx: WriteTx, run: RunRecord, offer: _Offer, *, client_id: str, task_id: str) -> TaskRecord:
    task = _new_task(tx, run, offer, client_id=client_id, task_id=task_id)
    tasks.insert(tx, task)
    if offer.kind is TaskKind.TRAIN:
        rounds.count_task(tx, offer.round.round_id, 1)
    client = clients.get(tx, client_id)
    if client is not None:
        clients.mark_seen(tx, client)
    return task


def _new_task(tx: ReadTx, run: RunRecord, offer: _Offer, *, client_id: str, task_id: str) -> TaskRecord:
    task = TaskRecord(
        task_id=task_id,
        run_id=run.run_id,
        round_id=offer.round.round_id,
        client_id=client_id,
        kind=offer.kind,
        state=TaskState.OPEN,
        base_version=offer.base_version,
        assigned_at=tx.now(),
    )
    if offer.kind is TaskKind.TRAIN and isinstance(run.spec.round, BufferedRoundSpec):
        earlier = tasks.find(tx, round_id=task.round_id, client_id=client_id, kind=task.kind)
        return replace(
            task,
            base_version=run.latest_version or 0,
            deadline_at=tx.now() + timedelta(seconds=run.spec.round.deadline_seconds),
            turn=1 if earlier is None else earlier.turn + 1,
        )
    return task
