"""What becomes of contributions when their round closes or is abandoned, in a transaction that has locked the run."""

from collections.abc import Sequence
from datetime import timedelta

import structlog

from aggregator_service import failpoints
from aggregator_service.domain import topics
from aggregator_service.domain.helper_mode.records import (
    ContributionRecord,
    MaskRequestRecord,
    MaskSumRecord,
    in_order,
)
from aggregator_service.domain.quorum import deadline_clock
from aggregator_service.domain.records import RoundRecord, RunRecord
from aggregator_service.flow.context import Flow
from aggregator_service.storage import contributions, manifests, mask_sums
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.helper_mode import MaskRequestState, MaskSumState
from fl_protocol.masking import keys
from fl_protocol.masking.mask_requests import members_digest
from fl_protocol.specs.secure_aggregation import HelperSecureAggregation

_log = structlog.get_logger()


def begin(flow: Flow, tx: WriteTx, run: RunRecord, round_: RoundRecord) -> None:
    """Asks the helpers of a round that was just sealed, if it has any."""
    masked = run.spec.secure_aggregation
    if not isinstance(masked, HelperSecureAggregation):
        return
    members = in_order(contributions.of_round(tx, round_.round_id))
    mask_sums.insert(
        tx,
        MaskSumRecord(
            round_id=round_.round_id,
            run_id=run.run_id,
            state=MaskSumState.CHECKING,
            deadline_at=deadline_clock(run, tx.now()) + timedelta(seconds=masked.helper_seconds),
            created_at=tx.now(),
            ended_at=None,
            reason=None,
            context=keys.context(manifests.body_of_round(tx, round_.round_id)),
            members_digest=digest_of(members),
            num_members=len(members),
        ),
    )
    ask(flow, tx, run, round_.round_id)


def ask(flow: Flow, tx: WriteTx, run: RunRecord, round_id: str) -> None:
    """Asks all helpers of a round to look at its contributions, under fresh names."""
    masked = run.spec.secure_aggregation
    if not isinstance(masked, HelperSecureAggregation):
        raise TypeError(f"run {run.run_id} has no helpers")
    requests = [
        MaskRequestRecord(
            request_id=flow.new_id("ask"),
            run_id=run.run_id,
            round_id=round_id,
            helper=number,
            name=helper.name,
            signing_key=bytes.fromhex(helper.signing_key),
            state=MaskRequestState.ASKED,
            created_at=tx.now(),
        )
        for number, helper in enumerate(masked.helpers)
    ]
    mask_sums.ask(tx, requests)
    failpoints.reach("helper.asking")
    tx.wake(topics.MASK_REQUESTS)
    # The worker has another deadline to watch.
    tx.wake(topics.DEADLINES)


def end(tx: WriteTx, run: RunRecord, round_: RoundRecord, reason: str | None) -> None:
    """Removes what a round in helper mode held that was abandoned, and says why."""
    if not isinstance(run.spec.secure_aggregation, HelperSecureAggregation):
        return
    contributions.forget(tx, round_.round_id)
    mask_sum = mask_sums.get(tx, round_.round_id)
    if mask_sum is None:
        return
    mask_sums.forget_answers(tx, round_.round_id)
    if mask_sum.ended_at is None:
        told = reason or f"round {round_.number} (attempt {round_.attempt}) was abandoned while it waited for helpers"
        mask_sums.move(tx, mask_sum, MaskSumState.FAILED, reason=told, ended_at=tx.now())
        _log.info("mask_sum_failed", round_id=round_.round_id, run_id=run.run_id, reason=told)
    failpoints.reach("helper.failing")
    tx.wake(topics.MASK_REQUESTS)


def reason_of(tx: WriteTx, round_: RoundRecord) -> str | None:
    """Gives why an abandoned round got no sum from its helpers; None where that was not the reason."""
    mask_sum = mask_sums.get(tx, round_.round_id)
    return None if mask_sum is None else mask_sum.reason


def digest_of(members: Sequence[ContributionRecord]) -> bytes:
    """Gives the hash that names a set of contributions in a request and in each helper's signature."""
    return members_digest([one.member() for one in members])
