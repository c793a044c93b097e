"""Who is asked: a client claims a task, waits for one, or gives one up."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

from aggregator_service.domain import pace_steering, presence, topics
from aggregator_service.domain.admission import check_not_excluded, check_owner
from aggregator_service.domain.records import (
    ModelRecord,
    RoundRecord,
    RunRecord,
    TaskRecord,
    TaskState,
)
from aggregator_service.domain.sessions.records import ManifestRecord
from aggregator_service.flow import budget, buffers, cohorts, offers
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.flow.layouts import layout_of
from aggregator_service.flow.lifecycle import no_such_run
from aggregator_service.flow.offers import Opening, Sight
from aggregator_service.flow.sessions import endings
from aggregator_service.storage import attendance, clients, manifests, models, rounds, runs, tasks, updates
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.privacy_claims import PrivacyClaim
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.rounds import RoundState
from fl_protocol.runs import FINISHED_RUN_STATES, RunSpec
from fl_protocol.specs.algorithms import ScaffoldAlgorithm
from fl_protocol.specs.encodings import keeps_residual
from fl_protocol.specs.rounds import BufferedRoundSpec
from fl_protocol.specs.selection import OpenSelection
from fl_protocol.specs.skipping import NormSkipping
from fl_protocol.tasks import TaskKind
from fl_protocol.updates import max_update_bytes, update_layout

T = TypeVar("T")
Key = TypeVar("Key")

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
class _Asker:
    """A client that asks, and the identifier of the task that it may get."""

    client_id: str
    task_id: str


async def claim(flow: Flow, *, run_id: str, client_id: str, wait_seconds: float) -> Assignment | NothingNow:
    """Gives a client its task in a run, waiting for one if asked to.

    Raises `not-found` for an unknown run, `run-finished` for one that has ended and `forbidden` for an excluded client.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_seconds
    topic = topics.tasks_of(run_id)
    while True:
        seen = flow.wakeups.seen(topic)
        outlook = await _look(flow, run_id, client_id)
        if outlook.may_claim:
            assignment = await _try_claim(flow, run_id, client_id)
            if assignment is not None:
                return assignment
        elif outlook.is_unseen:
            # Being there may be all that a draw waits for, so look again.
            await _come(flow, run_id, client_id)
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


async def _look(flow: Flow, run_id: str, client_id: str) -> _Outlook:
    async def look(client_ids: Sequence[str]) -> Sequence[_Outlook | ProblemError]:
        return await flow.transactions.read("look_for_task", lambda tx: _look_together(tx, run_id, client_ids))

    return await flow.gatherings.ask(("look_for_task", run_id), client_id, look)


async def _come(flow: Flow, run_id: str, client_id: str) -> None:
    async def come(client_ids: Sequence[str]) -> Sequence[None]:
        await flow.transactions.write("mark_seen", lambda tx: _mark_seen(tx, run_id, client_ids))
        return [None] * len(client_ids)

    await flow.gatherings.ask(("mark_seen", run_id), client_id, come)


async def _try_claim(flow: Flow, run_id: str, client_id: str) -> Assignment | None:
    async def claim_together(askers: Sequence[_Asker]) -> Sequence[Assignment | ProblemError | None]:
        claimed = await flow.transactions.write("claim_task", lambda tx: _claim_together(tx, run_id, askers))
        return await _bounded(flow, claimed)

    asker = _Asker(client_id, flow.new_id("task"))
    return await flow.gatherings.ask(("claim_task", run_id), asker, claim_together)


async def _bounded(
    flow: Flow, outcomes: Sequence[Assignment | ProblemError | None]
) -> Sequence[Assignment | ProblemError | None]:
    """Adds how large an update may be, which is the same for all tasks of a run."""
    first = next((outcome for outcome in outcomes if isinstance(outcome, Assignment)), None)
    if first is None:
        return outcomes
    layout = update_layout(await layout_of(flow, first.model), first.run.spec)
    bound = max_update_bytes(layout, first.run.spec.encoding)
    return [replace(each, max_num_bytes=bound) if isinstance(each, Assignment) else each for each in outcomes]


def _claim_together(tx: WriteTx, run_id: str, askers: Sequence[_Asker]) -> list[Assignment | ProblemError | None]:
    run = runs.lock(tx, run_id)
    if run is None or run.state in FINISHED_RUN_STATES:
        return [_over(run, run_id) for _ in askers]
    lots = [askers] if offers.are_alike(run) else [[asker] for asker in askers]
    return [outcome for lot in lots for outcome in _claim_lot(tx, run, lot)]


def _claim_lot(tx: WriteTx, run: RunRecord, lot: Sequence[_Asker]) -> list[Assignment | ProblemError | None]:
    sight = offers.see(tx, run, {asker.client_id for asker in lot})
    _mark_seen(tx, run.run_id, [one.client_id for one in lot if sight.is_due(one.client_id, tx.now())])
    read = _Read(tx, run)
    outcomes: list[Assignment | ProblemError | None] = []
    new: list[TaskRecord] = []
    for asker in lot:
        try:
            check_not_excluded(sight.attended.get(asker.client_id))
        except ProblemError as refusal:
            outcomes.append(refusal)
            continue
        opening = offers.choose(tx, sight, asker.client_id)[0]
        if opening is None or not _has_place(tx, run, opening, asker.client_id):
            outcomes.append(None)
            continue
        is_new = asker.client_id not in opening.tasks
        if is_new:
            new.append(_assign(tx, run, opening, asker))
        outcomes.append(read.assignment(opening, asker.client_id, is_new=is_new))
    _insert(tx, new)
    return outcomes


def _keeps_something(spec: RunSpec) -> bool:
    """Tells whether a client keeps, beside each update, what only counts once that update does."""
    keeps = isinstance(spec.algorithm, ScaffoldAlgorithm) or isinstance(spec.skipping, NormSkipping)
    return keeps or keeps_residual(spec.encoding)


async def _pause_seconds(flow: Flow, run_id: str) -> int:
    """Gives when a client should ask again, from how many others do and how long rounds take."""

    def body(tx: ReadTx) -> Callable[..., int]:
        run = _unfinished(runs.get(tx, run_id), run_id)
        return partial(
            pace_steering.pause_seconds,
            num_clients=attendance.count_seen(tx, run_id, since=tx.now() - presence.seen_within(run.spec.selection)),
            cohort_size=run.spec.round.cohort_size,
            round_seconds=_round_seconds(tx, run_id),
            is_drawn=not isinstance(run.spec.selection, OpenSelection),
        )

    async def look(askers: Sequence[None]) -> Sequence[Callable[..., int]]:
        return [await flow.transactions.read("steer_pace", body)] * len(askers)

    pause_seconds = await flow.gatherings.ask(("steer_pace", run_id), None, look)
    return pause_seconds(fraction=int.from_bytes(flow.entropy(4)) / 2**32)


def _round_seconds(tx: ReadTx, run_id: str) -> float:
    """Gives how long a round is expected to take: as the last one, or longer if the open one has lasted longer."""
    last, newest = rounds.last_closed(tx, run_id), rounds.newest(tx, run_id)
    spans = [(round_.closed_at or tx.now()) - round_.opened_at for round_ in (last, newest) if round_ is not None]
    return max((span.total_seconds() for span in spans), default=0.0)


def _unfinished(run: RunRecord | None, run_id: str) -> RunRecord:
    if run is None or run.state in FINISHED_RUN_STATES:
        raise _over(run, run_id)
    return run


def _over(run: RunRecord | None, run_id: str) -> ProblemError:
    if run is None:
        return no_such_run(run_id)
    reason = f": {run.reason}" if run.reason else ""
    return ProblemError(ProblemType.RUN_FINISHED, f"the run is {run.state.value}{reason}; there is nothing left to do")


def _look_together(tx: ReadTx, run_id: str, client_ids: Sequence[str]) -> list[_Outlook | ProblemError]:
    run = runs.get(tx, run_id)
    if run is None or run.state in FINISHED_RUN_STATES:
        return [_over(run, run_id) for _ in client_ids]
    sight = offers.see(tx, run, set(client_ids))
    return [_outlook(tx, sight, client_id) for client_id in client_ids]


def _outlook(tx: ReadTx, sight: Sight, client_id: str) -> _Outlook | ProblemError:
    try:
        check_not_excluded(sight.attended.get(client_id))
    except ProblemError as refusal:
        return refusal
    is_unseen = sight.is_due(client_id, tx.now())
    if is_unseen and not isinstance(sight.run.spec.selection, OpenSelection):
        return _Outlook(may_claim=False, is_unseen=True)
    opening, draw_at = offers.choose(tx, sight, client_id)
    until_draw = None if draw_at is None or draw_at <= tx.now() else (draw_at - tx.now()).total_seconds()
    return _Outlook(opening is not None, is_unseen, until_draw)


def _mark_seen(tx: WriteTx, run_id: str, client_ids: Sequence[str]) -> None:
    if client_ids:
        attendance.mark_seen(tx, run_id, *client_ids)
        clients.mark_seen(tx, client_ids)


def _has_place(tx: WriteTx, run: RunRecord, opening: Opening, client_id: str) -> bool:
    """Makes the choice that was due; an open place was found free by looking."""
    if opening.kind is TaskKind.EVALUATE or opening.is_held(client_id):
        return True
    return cohorts.take_place(tx, run, opening.round, client_id)


def _assign(tx: WriteTx, run: RunRecord, opening: Opening, asker: _Asker) -> TaskRecord:
    task = TaskRecord(
        task_id=asker.task_id,
        run_id=run.run_id,
        round_id=opening.round.round_id,
        client_id=asker.client_id,
        kind=opening.kind,
        state=TaskState.OPEN,
        base_version=opening.base_version,
        assigned_at=tx.now(),
    )
    if opening.kind is TaskKind.TRAIN and isinstance(run.spec.round, BufferedRoundSpec):
        task = buffers.timed(tx, run, run.spec.round, task)
    opening.hand_out(task)
    return task


def _insert(tx: WriteTx, new: Sequence[TaskRecord]) -> None:
    if new:
        tasks.insert(tx, *new)
    for round_id, number in Counter(task.round_id for task in new if task.kind is TaskKind.TRAIN).items():
        rounds.count_task(tx, round_id, number)


class _Read:
    """Completes the tasks of a lot; what they share is read once."""

    def __init__(self, tx: ReadTx, run: RunRecord) -> None:
        self._tx = tx
        self._run = run
        self._rounds: dict[str, RoundRecord | None] = {}
        self._models: dict[int, ModelRecord | None] = {}
        self._manifests: dict[str, ManifestRecord | None] = {}

    def assignment(self, opening: Opening, client_id: str, *, is_new: bool) -> Assignment:
        """Gives the task that a client holds of an opening with all that the client must know."""
        tx, run, task = self._tx, self._run, opening.tasks[client_id]
        round_: RoundRecord | None = opening.round
        if task.round_id != opening.round.round_id:
            round_ = _once(self._rounds, task.round_id, lambda round_id: rounds.get(tx, round_id))
        model = _once(self._models, task.base_version, lambda version: models.get(tx, run.run_id, version))
        if round_ is None or model is None:
            raise LookupError(f"task {task.task_id} lacks its round or its model, version {task.base_version}")
        counted = None
        if _keeps_something(run.spec):
            counted = updates.last_counted(tx, run_id=run.run_id, client_id=client_id)
        claim = budget.claim(tx, run, client_id, round_number=round_.number)
        manifest = None
        if task.kind is TaskKind.TRAIN:
            manifest = _once(self._manifests, round_.round_id, lambda round_id: manifests.of_round(tx, round_id))
        return Assignment(task, run, round_, model, 0, is_new, counted, claim, manifest)


def _once(known: dict[Key, T | None], key: Key, read: Callable[[Key], T | None]) -> T | None:
    if key not in known:
        known[key] = read(key)
    return known[key]
