"""Ends the sum of a round in helper mode: it is named and its clients are counted, once, in one transaction."""

from collections.abc import Callable
from datetime import datetime

from aggregator_service import failpoints
from aggregator_service.domain import cohort, topics
from aggregator_service.domain.helper_mode import steps
from aggregator_service.domain.helper_mode.records import ContributionRecord
from aggregator_service.domain.quorum import deadline_clock
from aggregator_service.domain.records import UpdateRecord
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.flow.helper_mode.summing import MaskSumming
from aggregator_service.flow.sessions.sums import SessionSum
from aggregator_service.storage import contributions, mask_sums, rounds, runs, updates
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.helper_mode import MaskSumState
from fl_protocol.runs import RunState
from fl_protocol.specs.secure_aggregation import HelperSecureAggregation


async def settle(flow: Flow, summing: MaskSumming, outcome: SessionSum | str) -> bool:
    """Ends a round's sum by what came of it; False if somebody else ended it meanwhile."""
    settled = await flow.transactions.write("settle_mask_sum", lambda tx: _settle(flow, tx, summing, outcome))
    failpoints.reach("helper.settled")
    if isinstance(outcome, SessionSum) and not settled:
        await flow.blobs.discard(outcome.upload)
    return settled


async def expire(flow: Flow) -> float | None:
    """Abandons every round whose helpers have not answered in time.

    Gives the seconds until the next deadline: 0 if there may be one that has passed already, None if there is none.
    """

    def body(tx: ReadTx) -> tuple[list[tuple[str, str]], float | None]:
        waiting, now = mask_sums.timed(tx), tx.now()
        due = [(one.run_id, one.round_id) for one in waiting if one.deadline_at <= now]
        following = min((one.deadline_at for one in waiting), default=None)
        return due, None if following is None else (following - now).total_seconds()

    due, seconds_until_next = await flow.transactions.read("find_helper_deadlines", body)
    for run_id, round_id in due:
        await flow.transactions.write("expire_helpers", _expiring(flow, run_id=run_id, round_id=round_id))
    return 0.0 if due else seconds_until_next


def _expiring(flow: Flow, *, run_id: str, round_id: str) -> Callable[[WriteTx], None]:
    def body(tx: WriteTx) -> None:
        run = runs.lock(tx, run_id)
        mask_sum, round_ = mask_sums.get(tx, round_id), rounds.get(tx, round_id)
        if run is None or mask_sum is None or round_ is None or run.state is not RunState.RUNNING:
            return
        masked = run.spec.secure_aggregation
        is_due = deadline_clock(run, tx.now()) >= mask_sum.deadline_at
        if not is_due or mask_sum.state not in steps.WAITING or not isinstance(masked, HelperSecureAggregation):
            return
        reason = steps.silence(mask_sum, mask_sums.requests(tx, round_id), seconds=masked.helper_seconds)
        round_steps.abandon_sealed(flow, tx, run=run, round_=round_, reason=reason)

    return body


def _settle(flow: Flow, tx: WriteTx, summing: MaskSumming, outcome: SessionSum | str) -> bool:
    round_id = summing.mask_sum.round_id
    run, mask_sum, round_ = runs.lock(tx, summing.run.run_id), mask_sums.get(tx, round_id), rounds.get(tx, round_id)
    if run is None or round_ is None or mask_sum is None or mask_sum.state is not MaskSumState.SUMMING:
        return False
    if isinstance(outcome, str):
        round_steps.abandon_sealed(flow, tx, run=run, round_=round_, reason=outcome)
        return True
    flow.blobs.seal(tx, outcome.upload)
    won = mask_sums.complete(
        tx,
        mask_sum,
        sum_blob_id=outcome.upload.blob_id,
        sum_digest=outcome.digest,
        total_weight=outcome.total_weight,
        totals=outcome.totals,
    )
    if not won:
        raise LookupError(f"the sum of round {round_id} was ended while its run was locked")
    mask_sums.forget_answers(tx, round_id)
    contributions.forget(tx, round_id)
    blob_id, now = outcome.upload.blob_id, tx.now()
    updates.insert(tx, *(_update(one, summing, blob_id=blob_id, accepted_at=now) for one in summing.members))
    failpoints.reach("helper.settling")
    # The worker has a model to make.
    tx.wake(topics.SEALED)
    return True


def _update(
    contribution: ContributionRecord, summing: MaskSumming, *, blob_id: str, accepted_at: datetime
) -> UpdateRecord:
    """Gives the row that says that a client took part: of its update nothing is known but its message's digest."""
    return UpdateRecord(
        update_id=contribution.update_id,
        task_id=contribution.task_id,
        run_id=contribution.run_id,
        round_id=contribution.round_id,
        client_id=contribution.client_id,
        digest=contribution.digest,
        num_bytes=contribution.num_bytes,
        num_examples=1,
        weight=1,
        staleness=0,
        metrics={},
        max_abs={},
        blob_id=blob_id,
        accepted_at=accepted_at,
        counts_once=cohort.counts_once(summing.run.spec),
    )
