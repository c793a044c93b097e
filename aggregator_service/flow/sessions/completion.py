"""Ends a summing session: its sum is named and its survivors are counted, once, in one transaction."""

from collections.abc import Sequence
from datetime import datetime

from aggregator_service import failpoints
from aggregator_service.domain import cohort, topics
from aggregator_service.domain.records import RoundRecord, UpdateRecord
from aggregator_service.domain.sessions.records import MemberRecord, SessionRecord
from aggregator_service.domain.sessions.steps import Abort
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.flow.sessions import phases
from aggregator_service.flow.sessions.forming import form_if_due
from aggregator_service.flow.sessions.sums import SessionSum
from aggregator_service.flow.sessions.unmasking import Summing
from aggregator_service.storage import events, rounds, runs, seats, sessions, tasks, updates
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.rounds import EventType, RoundState
from fl_protocol.sessions import SeatState, SessionState


async def settle(flow: Flow, summing: Summing, outcome: SessionSum | Abort) -> bool:
    """Ends a session by what came of its sum; False if somebody else ended it meanwhile."""
    settled = await flow.transactions.write("settle_session", lambda tx: _settle(flow, tx, summing, outcome))
    failpoints.reach("session.settled")
    if isinstance(outcome, SessionSum) and not settled:
        await flow.blobs.discard(outcome.upload)
    return settled


def _settle(flow: Flow, tx: WriteTx, summing: Summing, outcome: SessionSum | Abort) -> bool:
    run, session = runs.lock(tx, summing.run.run_id), sessions.get(tx, summing.session.session_id)
    if run is None or session is None or session.state is not SessionState.SUMMING:
        return False
    round_ = rounds.get(tx, session.round_id)
    if round_ is None or round_.state is not RoundState.COLLECTING:
        raise LookupError(f"session {session.session_id} goes on and its round does not")
    if isinstance(outcome, Abort):
        members = sessions.members(tx, session.session_id)
        phases.abort(flow, tx, run=run, session=session, members=members, step=outcome)
        return True
    _complete(flow, tx, session, summing=summing, total=outcome)
    counted = rounds.count_updates(
        tx, session.round_id, num_updates=len(summing.survivors), num_examples=len(summing.survivors)
    )
    _announce(tx, session, counted, summing.survivors, num_before=round_.num_updates)
    failpoints.reach("session.settling")
    round_steps.close_if_due(flow, tx, run=run, round_=counted)
    form_if_due(flow, tx, run=run, round_=rounds.get(tx, session.round_id) or counted)
    return True


def _complete(flow: Flow, tx: WriteTx, session: SessionRecord, *, summing: Summing, total: SessionSum) -> None:
    flow.blobs.seal(tx, total.upload)
    won = sessions.complete(
        tx,
        session,
        sum_blob_id=total.upload.blob_id,
        sum_digest=total.digest,
        total_weight=total.total_weight,
        totals=total.totals,
    )
    if not won:
        raise LookupError(f"session {session.session_id} was ended while its run was locked")
    sessions.forget_messages(tx, session.session_id)
    stayed = [member.task_id for member in summing.survivors]
    left = [member.task_id for member in summing.members if not member.survived]
    seats.move(tx, stayed, SeatState.SPENT, before=SeatState.SEATED)
    if left:
        seats.move(tx, left, SeatState.FREE, before=SeatState.SEATED)
    tasks.mark_counted(tx, stayed)
    accepted = [
        _update(flow, member, summing=summing, blob_id=total.upload.blob_id, accepted_at=tx.now())
        for member in summing.survivors
    ]
    updates.insert(tx, *accepted)
    tx.wake(topics.sessions_of(session.run_id))


def _update(flow: Flow, member: MemberRecord, *, summing: Summing, blob_id: str, accepted_at: datetime) -> UpdateRecord:
    """Gives the row that says that a member took part: of its update nothing is known but the masked input's digest."""
    return UpdateRecord(
        update_id=flow.new_id("update"),
        task_id=member.task_id,
        run_id=summing.run.run_id,
        round_id=summing.session.round_id,
        client_id=member.client_id,
        digest=str(member.input_digest),
        num_bytes=summing.vector.num_bytes,
        num_examples=1,
        weight=1,
        staleness=0,
        metrics={},
        max_abs={},
        blob_id=blob_id,
        accepted_at=accepted_at,
        counts_once=cohort.counts_once(summing.run.spec),
    )


def _announce(
    tx: WriteTx, session: SessionRecord, round_: RoundRecord, survivors: Sequence[MemberRecord], *, num_before: int
) -> None:
    told = [
        {
            "round": round_.number,
            "attempt": round_.attempt,
            "client_id": member.client_id,
            "num_updates": num_before + count,
            "quorum": round_.quorum,
            "staleness": 0,
            "session_id": session.session_id,
        }
        for count, member in enumerate(survivors, start=1)
    ]
    events.append_all(tx, session.run_id, EventType.UPDATE_ACCEPTED, told)
