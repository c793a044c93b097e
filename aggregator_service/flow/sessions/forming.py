"""Makes sessions of those who wait, inside a transaction that has locked the run."""

from collections.abc import Sequence
from datetime import timedelta

from aggregator_service import failpoints
from aggregator_service.domain import topics
from aggregator_service.domain.quorum import deadline_clock
from aggregator_service.domain.records import RoundRecord, RunRecord
from aggregator_service.domain.sessions import steps
from aggregator_service.domain.sessions.records import MemberRecord, SeatRecord, SessionRecord
from aggregator_service.flow.context import Flow
from aggregator_service.storage import manifests, seats, sessions
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.masking import keys, messages
from fl_protocol.masking.graph import graph_of
from fl_protocol.masking.messages import Roster
from fl_protocol.rounds import RoundState
from fl_protocol.sessions import SessionState
from fl_protocol.specs.secure_aggregation import PairwiseSecureAggregation, target_members


def form_if_due(flow: Flow, tx: WriteTx, *, run: RunRecord, round_: RoundRecord) -> None:
    """Makes a session of those who wait in a collecting round, or several, if it is time."""
    masked = run.spec.secure_aggregation
    if not isinstance(masked, PairwiseSecureAggregation) or round_.state is not RoundState.COLLECTING:
        return
    target = target_members(run.spec)
    while _may_form(tx, run, round_, masked, target=target):
        chosen = seats.waiting(tx, round_.round_id)[:target]
        _form(flow, tx, run=run, round_=round_, masked=masked, chosen=chosen)


def _may_form(
    tx: WriteTx, run: RunRecord, round_: RoundRecord, masked: PairwiseSecureAggregation, *, target: int
) -> bool:
    waiting = seats.count_waiting(tx, round_.round_id)
    if waiting.since is None or waiting.num_waiting < masked.min_members:
        return False
    forms_at = waiting.since + timedelta(seconds=masked.enrol_seconds)
    num_places = round_.cohort_size if round_.num_awaited is None else round_.num_awaited
    return steps.may_form(
        masked,
        num_waiting=waiting.num_waiting,
        target=target,
        others_may_come=round_.num_tasks < num_places or seats.count_at_work(tx, round_.round_id) > 0,
        is_overdue=deadline_clock(run, tx.now()) >= forms_at,
    )


def _form(
    flow: Flow,
    tx: WriteTx,
    *,
    run: RunRecord,
    round_: RoundRecord,
    masked: PairwiseSecureAggregation,
    chosen: Sequence[SeatRecord],
) -> None:
    manifest = manifests.of_round(tx, round_.round_id)
    if manifest is None:
        raise LookupError(f"round {round_.round_id} is masked and has no manifest")
    context = keys.context(manifests.body_of_round(tx, round_.round_id))
    roster = Roster(graph_of(len(chosen)).threshold, tuple(messages.parse_advertise(seat.advertise) for seat in chosen))
    length = steps.phase_length(SessionState.SHARES, masked, num_bytes=0)
    session = SessionRecord(
        session_id=flow.new_id("session"),
        run_id=run.run_id,
        round_id=round_.round_id,
        manifest_digest=manifest.digest,
        state=SessionState.SHARES,
        revision=1,
        num_members=len(chosen),
        num_expected=len(chosen),
        num_messages=0,
        deadline_at=deadline_clock(run, tx.now()) + length,
        created_at=tx.now(),
        ended_at=None,
        abort_code=None,
        reason=None,
        context=context,
        identity=messages.session_id(roster, context=context),
        survivors=None,
        total_weight=None,
        totals=None,
        sum_digest=None,
        sum_blob_id=None,
    )
    members = [
        MemberRecord(session.session_id, place, seat.client_id, seat.task_id, seat.advertise)
        for place, seat in enumerate(chosen)
    ]
    sessions.insert(tx, session, members)
    seats.seat_all(tx, chosen, session.session_id)
    failpoints.reach("session.forming")
    tx.wake(topics.sessions_of(run.run_id))
    # The worker has another deadline to watch.
    tx.wake(topics.DEADLINES)
