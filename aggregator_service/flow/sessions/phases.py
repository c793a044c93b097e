"""Moves a session from phase to phase, inside a transaction that has locked the run."""

from collections.abc import Sequence

from aggregator_service import failpoints
from aggregator_service.domain import topics
from aggregator_service.domain.quorum import deadline_clock
from aggregator_service.domain.records import RunRecord
from aggregator_service.domain.sessions import steps
from aggregator_service.domain.sessions.records import MemberRecord, SessionRecord
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.flow.sessions import endings
from aggregator_service.flow.sessions.vectors import num_input_bytes
from aggregator_service.storage import rounds, sessions
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.masking import messages
from fl_protocol.rounds import RoundState
from fl_protocol.sessions import SessionState
from fl_protocol.specs.secure_aggregation import PairwiseSecureAggregation


def count_message(flow: Flow, tx: WriteTx, *, run: RunRecord, session: SessionRecord) -> SessionRecord:
    """Counts a message that was just kept and moves the session on if it was the last; gives the session then."""
    counted = sessions.count_message(tx, session)
    if steps.is_worth_a_look(counted):
        return advance_if_due(flow, tx, run=run, session=counted)
    return counted


def advance_if_due(flow: Flow, tx: WriteTx, *, run: RunRecord, session: SessionRecord) -> SessionRecord:
    """Moves a session to its next phase, or ends it, if its messages or its deadline say so."""
    masked = run.spec.secure_aggregation
    if not isinstance(masked, PairwiseSecureAggregation):
        raise TypeError(f"session {session.session_id} is of a run without secure aggregation")
    members = sessions.members(tx, session.session_id)
    is_due = deadline_clock(run, tx.now()) >= session.deadline_at
    match steps.next_step(session, members, min_members=masked.min_members, is_due=is_due):
        case steps.Enter() as step:
            _enter(flow, tx, run=run, session=session, masked=masked, members=members, step=step)
        case steps.Abort() as step:
            abort(flow, tx, run=run, session=session, members=members, step=step)
        case steps.Stay():
            return session
    return sessions.get(tx, session.session_id) or session


def abort(
    flow: Flow,
    tx: WriteTx,
    *,
    run: RunRecord,
    session: SessionRecord,
    members: Sequence[MemberRecord],
    step: steps.Abort,
) -> None:
    """Ends a session without a sum, and the round if it no longer waits for anybody or may not go on."""
    endings.abort(tx, run, session, members=members, step=step)
    round_ = rounds.get(tx, session.round_id)
    if round_ is None or round_.state is not RoundState.COLLECTING:
        return
    if not round_steps.end_if_exhausted(flow, tx, run=run, round_=round_):
        round_steps.close_if_due(flow, tx, run=run, round_=round_)


def _enter(
    flow: Flow,
    tx: WriteTx,
    *,
    run: RunRecord,
    session: SessionRecord,
    masked: PairwiseSecureAggregation,
    members: Sequence[MemberRecord],
    step: steps.Enter,
) -> None:
    survivors = None
    if step.state is SessionState.CONSISTENCY:
        stayed = [member.place for member in members if member.survived]
        survivors = messages.render_bitmap(stayed, num_members=session.num_members)
    num_bytes = num_input_bytes(flow, tx, run) if step.state is SessionState.INPUT else 0
    length = steps.phase_length(step.state, masked, num_bytes=num_bytes)
    sessions.enter(
        tx,
        session,
        step.state,
        num_expected=step.num_expected,
        deadline_at=deadline_clock(run, tx.now()) + length,
        survivors=survivors,
    )
    failpoints.reach("session.entering")
    tx.wake(topics.sessions_of(run.run_id))
    # The worker has another deadline to watch, or a sum to make.
    tx.wake(topics.DEADLINES)
    tx.wake(topics.SUMMING)
