"""Who is asked: a client claims a task, waits for one, or gives one up."""

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from aggregator_service.domain import pace_steering, presence, topics
from aggregator_service.domain.admission import check_not_excluded, check_owner
from aggregator_service.domain.records import (
    AttendanceRecord,
    ModelRecord,
    RoundRecord,
    RunRecord,
    TaskRecord,
    TaskState,
)
from aggregator_service.domain.sessions.records import ManifestRecord
from aggregator_service.flow import budget, buffers, cohorts
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.cohorts import Prospect
from aggregator_service.flow.context import Flow
from aggregator_service.flow.layouts import layout_of
from aggregator_service.flow.lifecycle import no_such_run
from aggregator_service.flow.sessions import endings
from aggregator_service.storage import attendance, clients, manifests, models, rounds, runs, tasks, updates
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.privacy_claims import PrivacyClaim
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.rounds import RoundState
from fl_protocol.runs import FINISHED_RUN_STATES, RunSpec, RunState
from fl_protocol.specs.algorithms import ScaffoldAlgorithm
from fl_protocol.specs.encodings import keeps_residual
from fl_protocol.specs.evaluation import evaluation_terms
from fl_protocol.specs.rounds import BufferedRoundSpec
from fl_protocol.specs.selection import OpenSelection
from fl_protocol.specs.skipping import NormSkipping
from fl_protocol.tasks import TaskKind
from fl_protocol.updates import max_update_bytes, update_layout

POLL_SECONDS: Final = 10.0
"""How often a held request looks again without a hint, for a hint can be lost with a connection."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A task with all that its client must know; `is_new` unless the client held it already.

    `counted_update` is the digest of the client's newest update that a published model holds, where
    SCAFFOLD, error feedback or skipping needs it.
    """

    task: TaskRecord
    run: RunRecord
    round: RoundRecord
    model: ModelRecord
    max_num_bytes: int
    is_new: bool
    counted_update: str | None
    privacy_claim: PrivacyClaim | None
    manifest: ManifestRecord | None = None


@dataclass(frozen=True, slots=True)
class NothingNow:
    """There is no task for the client now; it should ask again after so many seconds."""

    retry_after_seconds: int


@dataclass(frozen=True, slots=True)
class _Outlook:
    """What a look shows: whether a claim is worth a transaction, and whether the client is to be marked as seen."""

    may_claim: bool
    is_unseen: bool
    seconds_until_draw: float | None = None


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


async def claim(flow: Flow, *, run_id: str, client_id: str, wait_seconds: float) -> Assignment | NothingNow:
    """Gives a client its task in a run, waiting for one if asked to.

    Raises `not-found` for an unknown run, `run-finished` for one that has ended and `forbidden` for an excluded client.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_seconds
    topic = topics.tasks_of(run_id)
    while True:
        seen = flow.wakeups.seen(topic)
        outlook = await flow.transactions.read("look_for_task", lambda tx: _look(tx, run_id, client_id))
        if outlook.may_claim:
            assignment = await _try_claim(flow, run_id, client_id)
            if assignment is not None:
                return assignment
        elif outlook.is_unseen:
            # Being there may be all that a draw waits for, so look again.
            await flow.transactions.write("mark_seen", lambda tx: _mark_seen(tx, run_id, client_id))
            continue
        remaining = deadline - loop.time()
        if remaining <= 0 or flow.wakeups.closed:
            return NothingNow(await _pause_seconds(flow, run_id))
        pause = min(remaining, POLL_SECONDS, outlook.seconds_until_draw or POLL_SECONDS)
        await flow.wakeups.wait(topic, seen, timeout_seconds=pause)


async def give_up(flow: Flow, *, task_id: str, client_id: str) -> None:
    """Gives a task up, so that another client can be asked; giving it up again changes nothing."""

    def body(tx: WriteTx) -> None:
        task = check_owner(tasks.get(tx, task_id), task_id=task_id, client_id=client_id)
        run = runs.lock(tx, task.run_id)
        if run is None:
            raise no_such_run(task.run_id)
        task = check_owner(tasks.get(tx, task_id), task_id=task_id, client_id=client_id)
        if task.state is TaskState.DONE:
            raise ProblemError(
                ProblemType.ALREADY_SUBMITTED, "the task has been answered and is counted; it cannot be given up"
            )
        if task.state is TaskState.OPEN:
            release(flow, tx, run, task)

    await flow.transactions.write("give_up_task", body)


def release(flow: Flow, tx: WriteTx, run: RunRecord, task: TaskRecord) -> None:
    """Takes an open task from its client and frees the place, in a transaction that has locked the run."""
    buffers.take_back(tx, task)
    endings.withdraw(tx, task.task_id)
    if task.kind is TaskKind.TRAIN:
        cohorts.withdraw(tx, task.round_id, task.client_id)
        round_ = rounds.get(tx, task.round_id)
        if round_ is not None and round_.state is RoundState.COLLECTING:
            round_steps.close_if_due(flow, tx, run=run, round_=round_)


async def _try_claim(flow: Flow, run_id: str, client_id: str) -> Assignment | None:
    task_id = flow.new_id("task")

    def body(tx: WriteTx) -> Assignment | None:
        run = _unfinished(runs.lock(tx, run_id), run_id)
        attended = check_not_excluded(attendance.get(tx, run_id, client_id))
        if _is_unseen(tx, run, attended):
            _mark_seen(tx, run_id, client_id)
        offer = _choose(tx, run, client_id)[0]
        if offer is None or not _has_place(tx, run, offer, client_id):
            return None
        is_new = offer.task is None
        task = offer.task or _assign(tx, run, offer, client_id=client_id, task_id=task_id)
        round_ = offer.round if task.round_id == offer.round.round_id else rounds.get(tx, task.round_id)
        model = models.get(tx, run_id, task.base_version)
        if round_ is None or model is None:
            raise LookupError(f"task {task.task_id} lacks its round or its model, version {task.base_version}")
        counted = None
        if _keeps_something(run.spec):
            counted = updates.last_counted(tx, run_id=run_id, client_id=client_id)
        claim = budget.claim(tx, run, client_id, round_number=round_.number)
        manifest = manifests.of_round(tx, round_.round_id) if task.kind is TaskKind.TRAIN else None
        return Assignment(task, run, round_, model, 0, is_new, counted, claim, manifest)

    claimed = await flow.transactions.write("claim_task", body)
    if claimed is None:
        return None
    layout = update_layout(await layout_of(flow, claimed.model), claimed.run.spec)
    return replace(claimed, max_num_bytes=max_update_bytes(layout, claimed.run.spec.encoding))


def _keeps_something(spec: RunSpec) -> bool:
    """Tells whether a client keeps, beside each update, what only counts once that update does."""
    keeps = isinstance(spec.algorithm, ScaffoldAlgorithm) or isinstance(spec.skipping, NormSkipping)
    return keeps or keeps_residual(spec.encoding)


async def _pause_seconds(flow: Flow, run_id: str) -> int:
    """Gives when a client should ask again, from how many others do and how long rounds take."""
    fraction = int.from_bytes(flow.entropy(4)) / 2**32

    def body(tx: ReadTx) -> int:
        run = _unfinished(runs.get(tx, run_id), run_id)
        return pace_steering.pause_seconds(
            num_clients=attendance.count_seen(tx, run_id, since=tx.now() - presence.seen_within(run.spec.selection)),
            cohort_size=run.spec.round.cohort_size,
            round_seconds=_round_seconds(tx, run_id),
            is_drawn=not isinstance(run.spec.selection, OpenSelection),
            fraction=fraction,
        )

    return await flow.transactions.read("steer_pace", body)


def _round_seconds(tx: ReadTx, run_id: str) -> float:
    """Gives how long a round is expected to take: as the last one, or longer if the open one has lasted longer."""
    last, newest = rounds.last_closed(tx, run_id), rounds.newest(tx, run_id)
    spans = [(round_.closed_at or tx.now()) - round_.opened_at for round_ in (last, newest) if round_ is not None]
    return max((span.total_seconds() for span in spans), default=0.0)


def _unfinished(run: RunRecord | None, run_id: str) -> RunRecord:
    if run is None:
        raise no_such_run(run_id)
    if run.state in FINISHED_RUN_STATES:
        reason = f": {run.reason}" if run.reason else ""
        raise ProblemError(
            ProblemType.RUN_FINISHED, f"the run is {run.state.value}{reason}; there is nothing left to do"
        )
    return run


def _look(tx: ReadTx, run_id: str, client_id: str) -> _Outlook:
    run = _unfinished(runs.get(tx, run_id), run_id)
    is_unseen = _is_unseen(tx, run, check_not_excluded(attendance.get(tx, run_id, client_id)))
    if is_unseen and not isinstance(run.spec.selection, OpenSelection):
        return _Outlook(may_claim=False, is_unseen=True)
    offer, draw_at = _choose(tx, run, client_id)
    until_draw = None if draw_at is None or draw_at <= tx.now() else (draw_at - tx.now()).total_seconds()
    return _Outlook(offer is not None, is_unseen, until_draw)


def _is_unseen(tx: ReadTx, run: RunRecord, attended: AttendanceRecord | None) -> bool:
    seen_at = None if attended is None else attended.seen_at
    return presence.is_due(run.spec.selection, seen_at=seen_at, now=tx.now())


def _mark_seen(tx: WriteTx, run_id: str, client_id: str) -> None:
    attendance.mark_seen(tx, run_id, client_id)
    client = clients.get(tx, client_id)
    if client is not None:
        clients.mark_seen(tx, client)


def _choose(tx: ReadTx, run: RunRecord, client_id: str) -> tuple[_Offer | None, datetime | None]:
    """Takes what the client holds already, else the first offer that may be free; or says when a draw is due."""
    offers = _offers(tx, run, client_id)
    held = next((offer for offer in offers if offer.is_held), None)
    if held is not None:
        return held, None
    prospect = Prospect(may_claim=False)
    for offer in offers:
        prospect = _prospect(tx, run, offer, client_id)
        if prospect.may_claim:
            return offer, None
    return None, prospect.draw_at


def _offers(tx: ReadTx, run: RunRecord, client_id: str) -> list[_Offer]:
    """Lists what clients of a run can be asked now; an evaluation goes first, for it is short."""
    if run.state is not RunState.RUNNING:
        return []
    evaluated = rounds.open_evaluations(tx, run.run_id) if run.spec.evaluation.every else []
    open_now = [(TaskKind.EVALUATE, round_) for round_ in evaluated]
    newest = rounds.newest(tx, run.run_id)
    if newest is not None and newest.state is RoundState.COLLECTING:
        open_now.append((TaskKind.TRAIN, newest))
    return [_Offer(kind, round_, _task(tx, run, round_, kind=kind, client_id=client_id)) for kind, round_ in open_now]


def _task(tx: ReadTx, run: RunRecord, round_: RoundRecord, *, kind: TaskKind, client_id: str) -> TaskRecord | None:
    if kind is TaskKind.TRAIN and isinstance(run.spec.round, BufferedRoundSpec):
        return tasks.held(tx, run.run_id, client_id)
    return tasks.find(tx, round_id=round_.round_id, client_id=client_id, kind=kind)


def _prospect(tx: ReadTx, run: RunRecord, offer: _Offer, client_id: str) -> Prospect:
    if offer.task is not None:
        return Prospect(may_claim=False)
    if offer.kind is TaskKind.TRAIN:
        return cohorts.prospect(tx, run, offer.round, client_id)
    terms = evaluation_terms(run.spec.evaluation, run.spec.round)
    has_place = tasks.count(tx, round_id=offer.round.round_id, kind=offer.kind) < terms.cohort_size
    return Prospect(has_place and cohorts.may_evaluate(tx, run, client_id))


def _has_place(tx: WriteTx, run: RunRecord, offer: _Offer, client_id: str) -> bool:
    """Makes the choice that was due; an open place was found free by looking."""
    if offer.is_held or offer.kind is TaskKind.EVALUATE:
        return True
    return cohorts.take_place(tx, run, offer.round, client_id)


def _assign(tx: WriteTx, run: RunRecord, offer: _Offer, *, client_id: str, task_id: str) -> TaskRecord:
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
        task = buffers.timed(tx, run, run.spec.round, task)
    tasks.insert(tx, task)
    if offer.kind is TaskKind.TRAIN:
        rounds.count_task(tx, offer.round.round_id, 1)
    return task
