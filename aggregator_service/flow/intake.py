"""Takes an update in: checks it while it streams, makes its bytes durable, then counts it in one transaction."""

from dataclasses import dataclass

from aggregator_service import failpoints
from aggregator_service.domain.admission import (
    Replay,
    check_kind,
    check_owner,
    given_up,
    is_collecting,
    judge,
    no_such_task,
    round_closed,
)
from aggregator_service.domain.records import RoundRecord, RunRecord, TaskRecord, TaskState, UpdateRecord
from aggregator_service.domain.strategies.mean import weight_of
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.flow.layouts import layout_of_run
from aggregator_service.flow.measures import UpdateMeasure
from aggregator_service.flow.reception import Body, Received, digest_of, receive
from aggregator_service.storage import asks, events, rounds, runs, tasks, updates
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.rounds import EventType
from fl_protocol.streaming import StreamDecoder
from fl_protocol.tasks import TaskKind
from fl_protocol.tensors import Header
from fl_protocol.updates import (
    UpdateMetadata,
    check_update_structure,
    max_update_bytes,
    update_header_limit,
    update_metadata,
)


@dataclass(frozen=True, slots=True)
class Ask:
    """What an update answers: the task with its round, run and layout, and what was accepted for it before."""

    task: TaskRecord
    round: RoundRecord
    run: RunRecord
    layout: Header
    accepted: UpdateRecord | None

    @property
    def max_num_bytes(self) -> int:
        """The most bytes that an update may have."""
        return max_update_bytes(self.layout)


@dataclass(frozen=True, slots=True)
class Accepted:
    """An acknowledged update; `is_new` unless the same bytes were acknowledged before."""

    update: UpdateRecord
    round: RoundRecord
    is_new: bool


async def look_up(flow: Flow, *, task_id: str, client_id: str) -> Ask:
    """Finds what a client's update answers; refuses what can be refused before any byte of it is read."""
    found = await flow.transactions.read_one("look_up_task", lambda tx: asks.get(tx, task_id))
    if found is None:
        raise no_such_task(task_id)
    check_owner(found.task, task_id=task_id, client_id=client_id)
    check_kind(found.task, TaskKind.TRAIN)
    accepted = None
    if found.task.state is TaskState.DONE:
        accepted = await flow.transactions.read_one("look_up_update", lambda tx: updates.of_task(tx, task_id))
    elif found.task.state is TaskState.GIVEN_UP:
        raise given_up(found.task)
    elif not is_collecting(found.round):
        raise round_closed(found.round)
    layout = await layout_of_run(flow, found.run.run_id, version=found.round.base_version)
    return Ask(found.task, found.round, found.run, layout, accepted)


async def take_update(flow: Flow, ask: Ask, body: Body) -> Accepted:
    """Takes an update in and acknowledges it; raises the problems of the contract's table, and then stores nothing."""
    layout = ask.layout
    if ask.accepted is not None:
        digest = await digest_of(body, max_num_bytes=ask.max_num_bytes)
        judge(digest=digest, accepted_digest=ask.accepted.digest, task=ask.task, collecting=False, round_=ask.round)
        return Accepted(ask.accepted, ask.round, is_new=False)
    measure = UpdateMeasure(layout, ask.run.spec.strategy)
    decoder = StreamDecoder(
        max_header_bytes=update_header_limit(layout),
        max_num_bytes=ask.max_num_bytes,
        check_header=lambda header: _check_header(header, layout),
    )
    received = await receive(flow, body, decoder=decoder, on_piece=measure)
    failpoints.reach("intake.received")
    return await _commit(flow, ask, received, max_abs=measure.max_abs)


def _check_header(header: Header, layout: Header) -> None:
    check_update_structure(header, layout)
    update_metadata(header)


async def _commit(flow: Flow, ask: Ask, received: Received, *, max_abs: dict[str, float]) -> Accepted:
    metadata = update_metadata(received.header)
    update_id = flow.new_id("update")

    def body(tx: WriteTx) -> Accepted:
        runs.hold(tx, ask.run.run_id)
        now = asks.get(tx, ask.task.task_id)
        if now is None:
            raise LookupError(f"task {ask.task.task_id} vanished")
        accepted = updates.of_task(tx, now.task.task_id) if now.task.state is TaskState.DONE else None
        verdict = judge(
            digest=received.digest,
            accepted_digest=None if accepted is None else accepted.digest,
            task=now.task,
            collecting=is_collecting(now.round),
            round_=now.round,
        )
        if isinstance(verdict, Replay) and accepted is not None:
            return Accepted(accepted, now.round, is_new=False)
        update = _update(tx, ask, received, metadata, update_id=update_id, max_abs=max_abs)
        flow.blobs.seal(tx, received.upload)
        _count(flow, tx, run=now.run, task=now.task, update=update)
        return Accepted(update, now.round, is_new=True)

    failpoints.reach("intake.before_commit")
    try:
        outcome = await flow.transactions.write("commit_update", body)
    except Exception:
        await flow.blobs.discard(received.upload)
        raise
    failpoints.reach("intake.after_commit")
    if outcome.is_new:
        flow.telemetry.accepted(outcome.update.num_bytes)
    else:
        await flow.blobs.discard(received.upload)
    return outcome


def _update(
    tx: WriteTx, ask: Ask, received: Received, metadata: UpdateMetadata, *, update_id: str, max_abs: dict[str, float]
) -> UpdateRecord:
    return UpdateRecord(
        update_id=update_id,
        task_id=ask.task.task_id,
        run_id=ask.run.run_id,
        round_id=ask.round.round_id,
        client_id=ask.task.client_id,
        digest=received.digest,
        num_bytes=received.upload.num_bytes,
        num_examples=metadata.num_examples,
        weight=weight_of(metadata.num_examples, ask.run.spec.strategy),
        metrics=metadata.metrics,
        max_abs=max_abs,
        blob_id=received.upload.blob_id,
        accepted_at=tx.now(),
    )


def _count(flow: Flow, tx: WriteTx, *, run: RunRecord, task: TaskRecord, update: UpdateRecord) -> None:
    updates.insert(tx, update)
    tasks.set_state(tx, task, TaskState.DONE)
    counted = rounds.count_update(tx, task.round_id, update.num_examples)
    events.append(
        tx,
        task.run_id,
        EventType.UPDATE_ACCEPTED,
        {
            "round": counted.number,
            "attempt": counted.attempt,
            "client_id": task.client_id,
            "num_updates": counted.num_updates,
            "quorum": counted.quorum,
            "num_bytes": update.num_bytes,
            "digest": update.digest,
        },
    )
    round_steps.close_if_due(flow, tx, run=run, round_=counted)
