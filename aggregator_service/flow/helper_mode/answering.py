"""Takes what helpers say: verdicts of the contributions, and then the sums of masks."""

from collections.abc import Mapping
from dataclasses import dataclass

from aggregator_service import failpoints
from aggregator_service.domain import topics
from aggregator_service.domain.helper_mode import steps
from aggregator_service.domain.helper_mode.records import MaskRequestRecord, MaskSumRecord, in_order
from aggregator_service.domain.records import RoundRecord, RunRecord
from aggregator_service.domain.sessions.admission import equivocation, invalid
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.flow.helper_mode.asking import Asked, of_caller
from aggregator_service.flow.helper_mode.closing import ask, digest_of
from aggregator_service.flow.reception import Body, HeadedBytes, store_behind_head
from aggregator_service.flow.reception import digest_of as digest_of_body
from aggregator_service.storage import contributions, mask_sums, rounds, runs
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.helper_mode import MaskRequestState, MaskSumState, Verdict
from fl_protocol.masking import keys
from fl_protocol.masking.errors import MessageError
from fl_protocol.masking.keys import SIGNATURE_BYTES
from fl_protocol.masking.mask_requests import mask_sum_message
from fl_protocol.problems import ProblemError, ProblemType


@dataclass(frozen=True, slots=True)
class _Locked:
    """A request and its round, in a transaction that has locked the run."""

    request: MaskRequestRecord
    mask_sum: MaskSumRecord
    run: RunRecord
    round: RoundRecord


async def take_verdict(flow: Flow, verdict: Verdict, *, request_id: str, signing_key: bytes) -> None:
    """Takes a helper's verdict; once all have found nothing wrong they may tell the sums of masks.

    Raises `not-found`, `phase-closed` or `round-closed`.
    """

    def body(tx: WriteTx) -> None:
        locked = _lock(tx, request_id, signing_key)
        if verdict.reason is not None:
            _check_waiting(locked)
            _fail(flow, tx, locked, f"helper {locked.request.name!r} refuses the round: {verdict.reason}")
        elif locked.request.state is MaskRequestState.ASKED or verdict.refused:
            steps.check_phase(locked.mask_sum, MaskSumState.CHECKING)
            _judge(flow, tx, locked, verdict.refused)

    await flow.transactions.write("take_verdict", body)
    failpoints.reach("helper.verdict_taken")


def check_length(asked: Asked, announced: int | None) -> None:
    """Raises `invalid-message` for an answer that is announced as shorter or longer than it must be."""
    if announced is not None and announced != asked.num_bytes:
        what = f"{announced} bytes instead of {asked.num_bytes}"
        raise invalid(MessageError("mask_sum", value=announced, bound=asked.num_bytes, what=what))


async def take_answer(flow: Flow, asked: Asked, body: Body) -> bool:
    """Takes a helper's sum of masks, and tells whether it is new; a repeated one is recognised.

    Raises `phase-closed`, `round-closed`, `equivocation` or `invalid-message`, and then keeps nothing.
    """
    if asked.request.digest is not None:
        _check_same(asked.request, await digest_of_body(body, max_num_bytes=asked.num_bytes))
        return False
    steps.check_phase(asked.mask_sum, MaskSumState.RELEASING)
    received = await store_behind_head(
        flow, body, num_head_bytes=SIGNATURE_BYTES, num_bytes=asked.num_bytes, what="mask_sum"
    )
    failpoints.reach("helper.answer_stored")
    try:
        is_new = await flow.transactions.write("take_mask_sum", lambda tx: _keep(flow, tx, asked, received))
    except Exception:
        await flow.blobs.discard(received.stored.upload)
        raise
    failpoints.reach("helper.answer_taken")
    if not is_new:
        await flow.blobs.discard(received.stored.upload)
    return is_new


def _lock(tx: WriteTx, request_id: str, signing_key: bytes) -> _Locked:
    found = of_caller(tx, request_id, signing_key)
    run = runs.lock(tx, found.run_id)
    request = of_caller(tx, request_id, signing_key)
    mask_sum, round_ = mask_sums.get(tx, request.round_id), rounds.get(tx, request.round_id)
    if run is None or mask_sum is None or round_ is None:
        raise LookupError(f"request {request_id} lacks its run or round")
    return _Locked(request, mask_sum, run, round_)


def _check_waiting(locked: _Locked) -> None:
    if locked.mask_sum.state not in steps.WAITING:
        steps.check_phase(locked.mask_sum, MaskSumState.RELEASING)


def _judge(flow: Flow, tx: WriteTx, locked: _Locked, refused: Mapping[str, str]) -> None:
    if not refused:
        mask_sums.change_request(tx, locked.request, MaskRequestState.READY)
        _move_on(tx, locked)
        return
    members = in_order(contributions.of_round(tx, locked.round.round_id))
    named = [one for one in members if one.client_id in refused]
    if len(named) < len(refused):
        raise ProblemError(
            ProblemType.INVALID_MESSAGE, "verdict.refused names a client whose contribution is not in the request"
        )
    for one in named:
        contributions.refuse(tx, one, f"helper {locked.request.name!r}: {refused[one.client_id]}")
    rounds.drop_updates(tx, locked.round.round_id, len(named))
    left = [one for one in members if one.client_id not in refused]
    if len(left) < locked.round.min_updates:
        reason = steps.too_few(locked.request.name, refused, num_left=len(left), min_updates=locked.round.min_updates)
        _fail(flow, tx, locked, reason)
        return
    mask_sums.move(tx, locked.mask_sum, MaskSumState.CHECKING, members_digest=digest_of(left), num_members=len(left))
    ask(flow, tx, locked.run, locked.round.round_id)


def _move_on(tx: WriteTx, locked: _Locked) -> None:
    state = steps.following(locked.mask_sum, mask_sums.requests(tx, locked.round.round_id))
    if state is not locked.mask_sum.state:
        mask_sums.move(tx, locked.mask_sum, state)
        # Helpers may answer now, or the worker has a sum to make.
        tx.wake(topics.MASK_REQUESTS)
        tx.wake(topics.SUMMING)


def _fail(flow: Flow, tx: WriteTx, locked: _Locked, reason: str) -> None:
    round_ = rounds.get(tx, locked.round.round_id) or locked.round
    round_steps.abandon_sealed(flow, tx, run=locked.run, round_=round_, reason=reason)


def _keep(flow: Flow, tx: WriteTx, asked: Asked, received: HeadedBytes) -> bool:
    locked = _lock(tx, asked.request.request_id, asked.request.signing_key)
    request, mask_sum = locked.request, locked.mask_sum
    if request.digest is not None:
        _check_same(request, received.digest)
        return False
    steps.check_phase(mask_sum, MaskSumState.RELEASING)
    message = mask_sum_message(
        context=mask_sum.context,
        helper=request.helper,
        members_digest=mask_sum.members_digest,
        sum_digest=bytes.fromhex(received.stored.digest.partition(":")[2]),
    )
    if not keys.is_signed(request.signing_key, message, received.head):
        raise ProblemError(
            ProblemType.INVALID_MESSAGE,
            "mask_sum.signature is not that of the helper's signing key over the round's context, its number, the "
            "members' digest and the sum's",
        )
    _name(flow, tx, request, received)
    _move_on(tx, locked)
    return True


def _name(flow: Flow, tx: WriteTx, request: MaskRequestRecord, received: HeadedBytes) -> None:
    flow.blobs.seal(tx, received.stored.upload)
    mask_sums.change_request(
        tx,
        request,
        MaskRequestState.ANSWERED,
        signature=received.head,
        digest=received.digest,
        sum_digest=received.stored.digest,
        blob_id=received.stored.upload.blob_id,
    )


def _check_same(request: MaskRequestRecord, digest: str) -> None:
    if request.digest != digest:
        raise equivocation("the sum of masks for this request")
