"""Takes an update in: checks it while it streams, makes its bytes durable, then counts it together with others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from aggregator_service import failpoints
from aggregator_service.domain import cohort
from aggregator_service.domain.admission import (
    check_kind,
    check_not_stale,
    check_owner,
    given_up,
    is_collecting,
    judge,
    no_such_task,
    round_closed,
)
from aggregator_service.domain.records import RoundRecord, RunRecord, TaskRecord, TaskState, UpdateRecord
from aggregator_service.domain.strategies.mean import weight_of
from aggregator_service.domain.tally import Accepted, Tally
from aggregator_service.domain.uploads import UploadRecord
from aggregator_service.flow import authentication, buffers
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.flow.layouts import layout_of_run
from aggregator_service.flow.measures import measure_of
from aggregator_service.flow.reception import Body, Received, Receiver, digest_of, discard, receive
from aggregator_service.storage import events, rounds, runs, tasks, updates, uploads
from aggregator_service.storage.asks import AskRecord
from aggregator_service.storage.blobs import BlobUpload
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.rounds import EventType, RoundKind
from fl_protocol.runs import RunSpec
from fl_protocol.specs.protection import NoPrivacy
from fl_protocol.specs.rounds import BufferedRoundSpec
from fl_protocol.specs.secure_aggregation import HelperSecureAggregation, is_masked
from fl_protocol.streaming import StreamDecoder
from fl_protocol.tasks import TaskKind
from fl_protocol.tensors import Header
from fl_protocol.updates import (
    UpdateMetadata,
    check_update_structure,
    is_skipped,
    max_update_bytes,
    update_header_limit,
    update_layout,
    update_metadata,
    update_seed,
)


@dataclass(frozen=True, slots=True)
class Ask:
    """What an update answers: the task with its round and run, what it may hold, what was accepted before.

    Where all this was known beforehand, `token_hash` is that of its sender's token, which may have been revoked since.
    """

    task: TaskRecord
    round: RoundRecord
    run: RunRecord
    layout: Header
    accepted: UpdateRecord | None
    token_hash: str | None = None

    @property
    def max_num_bytes(self) -> int:
        """The most bytes that an update may have."""
        return max_update_bytes(self.layout, self.run.spec.encoding)


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A checked update that asks to be counted."""

    ask: Ask
    received: Received
    metadata: UpdateMetadata
    max_abs: dict[str, float]
    update_id: str


async def look_up(
    flow: Flow, found: AskRecord | None, *, task_id: str, client_id: str, token_hash: str | None = None
) -> Ask:
    """Completes what a client's update answers; refuses what can be refused before any byte of it is read.

    With a `token_hash`, `found` is what was known of the task, and that token is judged when the update is counted.
    """
    if found is None:
        raise no_such_task(task_id)
    check_owner(found.task, task_id=task_id, client_id=client_id)
    check_kind(found.task, TaskKind.TRAIN)
    _check_unmasked(found.run)
    accepted, round_ = None, found.round
    if found.task.state is TaskState.DONE or isinstance(found.run.spec.round, BufferedRoundSpec):
        accepted, round_ = await flow.transactions.read("look_up_round", lambda tx: _counting(tx, found))
    if accepted is None:
        check_not_stale(found.task, found.run, round_)
        if found.task.state is TaskState.GIVEN_UP:
            raise given_up(found.task)
        if not is_collecting(round_):
            raise round_closed(round_)
    model = await layout_of_run(flow, found.run.run_id, version=found.task.base_version)
    return Ask(found.task, round_, found.run, update_layout(model, found.run.spec), accepted, token_hash)


def _check_unmasked(run: RunRecord) -> None:
    if not is_masked(run.spec):
        return
    right = "put your advertised keys to /v1/tasks/.../seat and send the update in the session that begins"
    if isinstance(run.spec.secure_aggregation, HelperSecureAggregation):
        right = "put the masked vector with its sealed seeds to /v1/tasks/.../contribution"
    raise ProblemError(ProblemType.STATE_CONFLICT, f"the run takes masked updates only: {right}")


def _counting(tx: ReadTx, found: AskRecord) -> tuple[UpdateRecord | None, RoundRecord]:
    """Gives what was accepted for a task, and the round that counts it or would count it now."""
    accepted = updates.of_task(tx, found.task.task_id) if found.task.state is TaskState.DONE else None
    round_ = rounds.newest(tx, found.run.run_id) if accepted is None else rounds.get(tx, accepted.round_id)
    return accepted, round_ or found.round


async def take_update(flow: Flow, ask: Ask, body: Body) -> Accepted:
    """Takes an update in and acknowledges it; raises the problems of the contract's table, and then stores nothing."""
    layout = ask.layout
    if ask.accepted is not None:
        digest = await digest_of(body, max_num_bytes=ask.max_num_bytes)
        judge(digest=digest, accepted_digest=ask.accepted.digest, task=ask.task, collecting=False, round_=ask.round)
        return Accepted(ask.accepted, ask.round, is_new=False)
    measure, decoder = measure_of(layout, ask.run.spec), _decoder(ask)
    received = await receive(flow, body, decoder=decoder, on_piece=measure)
    failpoints.reach("intake.received")
    return await _commit(flow, ask, received, max_abs=measure.max_abs)


class UpdateInParts:
    """Checks an update while somebody else stores it, and counts it where it lies."""

    def __init__(self, flow: Flow, ask: Ask, upload: BlobUpload) -> None:
        self._flow = flow
        self._ask = ask
        self._decoder = _decoder(ask)
        self._measure = measure_of(ask.layout, ask.run.spec)
        self.receiver = Receiver(upload, self._decoder, self._measure)

    async def commit(self, digest: str, part: UploadRecord) -> Accepted:
        """Counts the update and ends its upload; raises what `take_update` raises, and then the upload stays."""
        received = Received(self.receiver.upload, digest, self._decoder.header, part)
        return await _commit(self._flow, self._ask, received, max_abs=self._measure.max_abs)


def _decoder(ask: Ask) -> StreamDecoder:
    return StreamDecoder(
        max_header_bytes=update_header_limit(ask.layout, ask.run.spec.encoding),
        max_num_bytes=ask.max_num_bytes,
        check_header=lambda header: _check_header(header, ask),
    )


def _check_header(header: Header, ask: Ask) -> None:
    if not is_skipped(header, ask.run.spec.skipping):
        check_update_structure(header, ask.layout, ask.run.spec.encoding)
        update_seed(header, ask.run.spec.encoding)
    _metadata(header, ask.run.spec)


def _metadata(header: Header, spec: RunSpec) -> UpdateMetadata:
    """Reads what an update says of itself; in a private run, where that has no budget, nothing is read or kept."""
    if not isinstance(spec.privacy, NoPrivacy):
        return UpdateMetadata(num_examples=1)
    return update_metadata(header, spec.algorithm)


async def _commit(flow: Flow, ask: Ask, received: Received, *, max_abs: dict[str, float]) -> Accepted:
    metadata = _metadata(received.header, ask.run.spec)
    arrival = _Arrival(ask, received, metadata, max_abs, flow.new_id("update"))
    failpoints.reach("intake.before_commit")
    try:
        outcome = await flow.transactions.write_grouped("commit_update", arrival, partial(_count_all, flow))
    except Exception:
        await discard(flow, received)
        raise
    failpoints.reach("intake.after_commit")
    if outcome.is_new:
        flow.blobs.note_sealed(received.upload)
        flow.telemetry.accepted(outcome.update.num_bytes)
    else:
        await discard(flow, received)
    return outcome


def _count_all(flow: Flow, tx: WriteTx, arrivals: Sequence[_Arrival]) -> list[Accepted | ProblemError]:
    """Judges updates in the order of their arrival and writes those that are new, all by the same few statements.

    Those of a buffered run that come after one which filled its buffer are judged again once the next one is open.
    """
    locked = runs.lock_all(tx, {arrival.ask.run.run_id for arrival in arrivals})
    outcomes = _unauthenticated(tx, arrivals)
    while left := [arrival for arrival in arrivals if arrival.update_id not in outcomes]:
        tally = _tally(tx, locked, left)
        settled = [(arrival, _outcome(tally, _update(arrival, accepted_at=tx.now()))) for arrival in left]
        outcomes |= {arrival.update_id: outcome for arrival, outcome in settled if outcome is not None}
        _write(flow, tx, locked, settled)
    return [outcomes[arrival.update_id] for arrival in arrivals]


def _unauthenticated(tx: WriteTx, arrivals: Sequence[_Arrival]) -> dict[str, Accepted | ProblemError]:
    """Refuses those whose senders were known beforehand and whose tokens are not in force any more."""
    senders = {one.update_id: one.ask.token_hash for one in arrivals if one.ask.token_hash is not None}
    refused = authentication.not_in_force(tx, set(senders.values())) if senders else set()
    return {one: authentication.unauthenticated() for one, token_hash in senders.items() if token_hash in refused}


def _write(
    flow: Flow,
    tx: WriteTx,
    locked: Mapping[str, RunRecord],
    settled: Sequence[tuple[_Arrival, Accepted | ProblemError | None]],
) -> None:
    new = [outcome for _, outcome in settled if isinstance(outcome, Accepted) and outcome.is_new]
    if not new:
        return
    named = {accepted.update.blob_id for accepted in new}
    sealed = [arrival.received for arrival, _ in settled if arrival.received.upload.blob_id in named]
    flow.blobs.seal(tx, *(received.upload for received in sealed))
    for received in sealed:
        if received.part is not None:
            uploads.hand_over(tx, received.part)
    updates.insert(tx, *(accepted.update for accepted in new))
    tasks.mark_done(tx, [accepted.update.task_id for accepted in new])
    for round_id in dict.fromkeys(accepted.round.round_id for accepted in new):
        members = [accepted for accepted in new if accepted.round.round_id == round_id]
        _count(flow, tx, run=locked[members[0].round.run_id], members=members)


def _tally(tx: WriteTx, locked: Mapping[str, RunRecord], arrivals: Sequence[_Arrival]) -> Tally:
    asked = tasks.get_all(tx, {arrival.ask.task.task_id for arrival in arrivals})
    done = [task.task_id for task in asked.values() if task.state is TaskState.DONE]
    accepted = updates.of_tasks(tx, done) if done else {}
    named = [task.round_id for task in asked.values()] + [update.round_id for update in accepted.values()]
    return Tally(
        now=tx.now(),
        runs=locked,
        rounds=rounds.get_all(tx, set(named)),
        tasks=asked,
        accepted=accepted,
        buffers=_buffers(tx, locked.values()),
    )


def _buffers(tx: WriteTx, locked: Iterable[RunRecord]) -> dict[str, RoundRecord]:
    """Gives the newest round of each buffered run, which is the only one that may collect."""
    buffered = [run.run_id for run in locked if isinstance(run.spec.round, BufferedRoundSpec)]
    found = [rounds.newest(tx, run_id) for run_id in buffered]
    return {round_.run_id: round_ for round_ in found if round_ is not None}


def _outcome(tally: Tally, update: UpdateRecord) -> Accepted | ProblemError | None:
    try:
        return tally.take(update)
    except ProblemError as refusal:
        return refusal


def _update(arrival: _Arrival, *, accepted_at: datetime) -> UpdateRecord:
    task, received, metadata = arrival.ask.task, arrival.received, arrival.metadata
    return UpdateRecord(
        update_id=arrival.update_id,
        task_id=task.task_id,
        run_id=task.run_id,
        round_id=task.round_id,
        client_id=task.client_id,
        digest=received.digest,
        num_bytes=received.upload.num_bytes,
        num_examples=metadata.num_examples,
        weight=weight_of(metadata.num_examples, arrival.ask.run.spec.strategy),
        staleness=0,
        metrics=metadata.metrics,
        max_abs=arrival.max_abs,
        blob_id=received.upload.blob_id,
        accepted_at=accepted_at,
        counts_once=cohort.counts_once(arrival.ask.run.spec),
        local_steps=metadata.local_steps,
        skipped=is_skipped(received.header, arrival.ask.run.spec.skipping),
    )


def _count(flow: Flow, tx: WriteTx, *, run: RunRecord, members: Sequence[Accepted]) -> None:
    """Counts the new updates of one attempt at a round, tells of them, and closes it if it is due."""
    counted = rounds.count_updates(
        tx,
        members[0].round.round_id,
        num_updates=len(members),
        num_examples=sum(accepted.update.num_examples for accepted in members),
    )
    events.append_all(tx, run.run_id, EventType.UPDATE_ACCEPTED, [_event(run, accepted) for accepted in members])
    if counted.kind is RoundKind.BUFFERED:
        buffers.offer_freed_places(tx, run, num_answered=len(members))
    round_steps.close_if_due(flow, tx, run=run, round_=counted)


def _event(run: RunRecord, accepted: Accepted) -> dict[str, object]:
    update, round_ = accepted.update, accepted.round
    told = {
        "round": round_.number,
        "attempt": round_.attempt,
        "client_id": update.client_id,
        "num_updates": round_.num_updates,
        "quorum": round_.quorum,
        "staleness": update.staleness,
    }
    if not isinstance(run.spec.privacy, NoPrivacy):
        # By its digest anyone could tell whether an update is the one they guess, and its size tells of its metadata.
        return told
    return told | {"num_bytes": update.num_bytes, "digest": update.digest}
