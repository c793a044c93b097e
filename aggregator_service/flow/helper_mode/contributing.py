"""Takes a client's one message of helper mode: streamed, checked, counted once, like an update."""

from dataclasses import dataclass

from aggregator_service import failpoints
from aggregator_service.domain.admission import (
    Replay,
    check_kind,
    check_not_excluded,
    check_owner,
    given_up,
    is_collecting,
    judge,
    round_closed,
)
from aggregator_service.domain.helper_mode.records import ContributionRecord
from aggregator_service.domain.records import RoundRecord, RunRecord, TaskRecord, TaskState
from aggregator_service.domain.sessions.admission import client_bytes, invalid
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.flow.reception import Body, HeadedBytes, digest_of, store_behind_head
from aggregator_service.flow.sessions.vectors import vector_of_run
from aggregator_service.storage import attendance, contributions, events, identity_keys, manifests, rounds, runs, tasks
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.masking import keys
from fl_protocol.masking.contributions import contribution_message, head_bytes, parse_head
from fl_protocol.masking.errors import MessageError
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.rounds import EventType
from fl_protocol.specs.secure_aggregation import HelperSecureAggregation, is_masked
from fl_protocol.tasks import TaskKind


@dataclass(frozen=True, slots=True)
class Awaited:
    """What a task may be answered with: a message of exactly so many bytes; `earlier` is what was accepted before."""

    task: TaskRecord
    round: RoundRecord
    run: RunRecord
    identity_key: bytes
    context: bytes
    num_helpers: int
    num_bytes: int
    earlier: ContributionRecord | None


@dataclass(frozen=True, slots=True)
class Contributed:
    """An acknowledged contribution; `is_new` unless the same bytes were acknowledged before."""

    contribution: ContributionRecord
    round: RoundRecord
    is_new: bool


@dataclass(frozen=True, slots=True)
class _Found:
    task: TaskRecord
    round: RoundRecord
    run: RunRecord
    earlier: ContributionRecord | None


async def look_up(flow: Flow, *, task_id: str, client_id: str) -> Awaited:
    """Finds what a client may send for a task; refuses what can be refused before any byte of it is read."""

    def body(tx: ReadTx) -> tuple[_Found, bytes, bytes]:
        found = _find(tx, task_id, client_id)
        if found.earlier is None:
            _check_open(tx, found)
        key = identity_keys.get(tx, client_id)
        if key is None:
            raise ProblemError(
                ProblemType.STATE_CONFLICT,
                f"no identity key is registered; put it to /v1/clients/{client_id}/identity-key first",
            )
        return found, key.public_key, keys.context(manifests.body_of_round(tx, found.task.round_id))

    found, identity_key, context = await flow.transactions.read("look_up_contribution", body)
    num_helpers = len(_helper_mode(found.run).helpers)
    vector = await vector_of_run(flow, found.run)
    return Awaited(
        task=found.task,
        round=found.round,
        run=found.run,
        identity_key=identity_key,
        context=context,
        num_helpers=num_helpers,
        num_bytes=head_bytes(num_helpers) + vector.num_bytes,
        earlier=found.earlier,
    )


def check_length(awaited: Awaited, announced: int | None) -> None:
    """Raises `invalid-message` for a message that is announced as shorter or longer than it must be."""
    if announced is not None and announced != awaited.num_bytes:
        what = f"{announced} bytes instead of {awaited.num_bytes}"
        raise invalid(MessageError("contribution", value=announced, bound=awaited.num_bytes, what=what))


async def take(flow: Flow, awaited: Awaited, body: Body) -> Contributed:
    """Takes a contribution in and acknowledges it; raises the problems of the wire's table, and then keeps nothing."""
    if awaited.earlier is not None:
        digest = await digest_of(body, max_num_bytes=awaited.num_bytes)
        _judge(digest, awaited.task, awaited.round, awaited.earlier)
        return Contributed(awaited.earlier, awaited.round, is_new=False)
    num_head_bytes = head_bytes(awaited.num_helpers)
    received = await store_behind_head(
        flow, body, num_head_bytes=num_head_bytes, num_bytes=awaited.num_bytes, what="contribution"
    )
    failpoints.reach("helper.contribution_stored")
    try:
        _check_signed(awaited, received)
        taken = await flow.transactions.write("take_contribution", lambda tx: _count(flow, tx, awaited, received))
    except Exception:
        await flow.blobs.discard(received.stored.upload)
        raise
    failpoints.reach("helper.contribution_taken")
    if taken.is_new:
        flow.telemetry.accepted(taken.contribution.num_bytes)
    else:
        await flow.blobs.discard(received.stored.upload)
    return taken


def _find(tx: ReadTx, task_id: str, client_id: str) -> _Found:
    task = check_owner(tasks.get(tx, task_id), task_id=task_id, client_id=client_id)
    check_kind(task, TaskKind.TRAIN)
    run, round_ = runs.get(tx, task.run_id), rounds.get(tx, task.round_id)
    if run is None or round_ is None:
        raise LookupError(f"task {task_id} lacks its run or round")
    _helper_mode(run)
    return _Found(task, round_, run, contributions.of_task(tx, task_id))


def _helper_mode(run: RunRecord) -> HelperSecureAggregation:
    masked = run.spec.secure_aggregation
    if isinstance(masked, HelperSecureAggregation):
        return masked
    right = "put your advertised keys to /v1/tasks/.../seat" if is_masked(run.spec) else "put the update to .../update"
    raise ProblemError(
        ProblemType.STATE_CONFLICT, f"the run's secure_aggregation.kind is {masked.kind!r}, not 'helper'; {right}"
    )


def _check_open(tx: ReadTx, found: _Found) -> None:
    check_not_excluded(attendance.get(tx, found.run.run_id, found.task.client_id))
    if found.task.state is TaskState.GIVEN_UP:
        raise given_up(found.task)
    if not is_collecting(found.round):
        raise round_closed(found.round)


def _check_signed(awaited: Awaited, received: HeadedBytes) -> None:
    head = parse_head(received.head, num_helpers=awaited.num_helpers)
    message = contribution_message(
        context=awaited.context,
        client_id=client_bytes(awaited.task.client_id),
        vector_digest=_raw(received.stored.digest),
        sealed=head.sealed,
    )
    if not keys.is_signed(awaited.identity_key, message, head.signature):
        raise ProblemError(
            ProblemType.INVALID_MESSAGE,
            "contribution.signature is not that of your registered identity key over this round's context, the hash "
            "of its manifest, your identifier, the vector's digest and the sealed seeds",
        )


def _judge(digest: str, task: TaskRecord, round_: RoundRecord, earlier: ContributionRecord | None) -> bool:
    """Tells whether the same bytes were accepted before; raises the problem for which others are refused."""
    verdict = judge(
        digest=digest,
        accepted_digest=None if earlier is None else earlier.digest,
        task=task,
        collecting=is_collecting(round_),
        round_=round_,
    )
    return isinstance(verdict, Replay)


def _count(flow: Flow, tx: WriteTx, awaited: Awaited, received: HeadedBytes) -> Contributed:
    run = runs.lock(tx, awaited.run.run_id)
    found = _find(tx, awaited.task.task_id, awaited.task.client_id)
    if run is None:
        raise LookupError(f"task {awaited.task.task_id} lacks its run")
    if _judge(received.digest, found.task, found.round, found.earlier) and found.earlier is not None:
        return Contributed(found.earlier, found.round, is_new=False)
    _check_open(tx, found)
    contribution = _record(flow, tx, awaited, received)
    if contributions.is_key_of_another(
        tx, round_id=contribution.round_id, client_id=contribution.client_id, identity_key=contribution.identity_key
    ):
        raise ProblemError(
            ProblemType.INVALID_MESSAGE, "your identity key is that of another client in this round, too"
        )
    flow.blobs.seal(tx, received.stored.upload)
    contributions.insert(tx, contribution)
    tasks.mark_done(tx, [contribution.task_id])
    counted = rounds.count_updates(tx, contribution.round_id, num_updates=1, num_examples=1)
    _announce(tx, counted, contribution)
    round_steps.close_if_due(flow, tx, run=run, round_=counted)
    return Contributed(contribution, counted, is_new=True)


def _record(flow: Flow, tx: WriteTx, awaited: Awaited, received: HeadedBytes) -> ContributionRecord:
    head = parse_head(received.head, num_helpers=awaited.num_helpers)
    return ContributionRecord(
        task_id=awaited.task.task_id,
        run_id=awaited.run.run_id,
        round_id=awaited.task.round_id,
        client_id=awaited.task.client_id,
        update_id=flow.new_id("update"),
        identity_key=awaited.identity_key,
        digest=received.digest,
        num_bytes=awaited.num_bytes,
        vector_digest=_raw(received.stored.digest),
        signature=head.signature,
        sealed=b"".join(head.sealed),
        blob_id=received.stored.upload.blob_id,
        refused=None,
        accepted_at=tx.now(),
    )


def _announce(tx: WriteTx, round_: RoundRecord, contribution: ContributionRecord) -> None:
    told = {
        "round": round_.number,
        "attempt": round_.attempt,
        "client_id": contribution.client_id,
        "num_updates": round_.num_updates,
        "quorum": round_.quorum,
        "staleness": 0,
    }
    events.append_all(tx, contribution.run_id, EventType.UPDATE_ACCEPTED, [told])


def _raw(digest: str) -> bytes:
    return bytes.fromhex(digest.partition(":")[2])
