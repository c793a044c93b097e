"""Opens, seals and abandons rounds, inside a transaction that has locked the run."""

from datetime import timedelta

from aggregator_service.domain import quorum
from aggregator_service.domain.quorum import QuorumDecision
from aggregator_service.domain.records import EvaluationState, RoundRecord, RunRecord
from aggregator_service.flow import budget, buffers, cohorts
from aggregator_service.flow.context import Flow
from aggregator_service.flow.helper_mode import closing
from aggregator_service.flow.sessions import endings, manifests
from aggregator_service.storage import events, noise_states, rounds, runs
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.rounds import EventType, RoundKind, RoundState
from fl_protocol.runs import RunState
from fl_protocol.specs.rounds import BufferedRoundSpec


def advance(flow: Flow, tx: WriteTx, run: RunRecord) -> None:
    """Takes the next step of a running run: opens a round, tries one again, or ends the run.

    A buffer is opened when the one before is sealed, whether or not the run is running: see `close_if_due`.
    """
    newest = rounds.newest(tx, run.run_id)
    if run.standing.stop_reason is not None:
        abandon_open(flow, tx, run)
        finish(tx, run, RunState.COMPLETED, reason=run.standing.stop_reason)
    elif newest is None:
        _open(flow, tx, run, number=1, attempt=1)
    elif newest.state is RoundState.ABANDONED:
        _try_again(flow, tx, run, newest)
    elif newest.state is RoundState.COMPLETED:
        _go_on(flow, tx, run, newest)


def close_if_due(flow: Flow, tx: WriteTx, *, run: RunRecord, round_: RoundRecord) -> None:
    """Seals or abandons a collecting round when its counts or its deadline say so."""
    match quorum.decide(round_, quorum.deadline_clock(run, tx.now())):
        case QuorumDecision.COLLECT:
            return
        case QuorumDecision.SEAL:
            _seal(flow, tx, run, round_)
            if round_.kind is RoundKind.BUFFERED and round_.number < run.spec.num_rounds:
                _open(flow, tx, run, number=round_.number + 1, attempt=1, num_waiting=_num_waiting(tx, run.run_id))
        case QuorumDecision.ABANDON:
            _abandon(tx, run, round_)
            flow.telemetry.round_ended("abandoned")
            if run.state is RunState.RUNNING:
                advance(flow, tx, run)


def abandon_sealed(flow: Flow, tx: WriteTx, *, run: RunRecord, round_: RoundRecord, reason: str) -> None:
    """Abandons a round that was sealed and can have no result, and tries it again."""
    _abandon(tx, run, round_, reason=reason)
    flow.telemetry.round_ended("abandoned")
    if run.state is RunState.RUNNING:
        advance(flow, tx, run)


def end_if_exhausted(flow: Flow, tx: WriteTx, *, run: RunRecord, round_: RoundRecord) -> bool:
    """Ends a run whose collecting round has let go of a sum that nobody counts, and cannot pay for another one."""
    exhausted = budget.refusal(run, budget.reserved(tx, round_.round_id))
    if exhausted is None:
        return False
    abandon_open(flow, tx, run)
    finish(tx, run, RunState.COMPLETED, reason=exhausted)
    return True


def abandon_open(flow: Flow, tx: WriteTx, run: RunRecord) -> None:
    """Abandons whatever rounds of a run are open, because the run ends."""
    for round_ in rounds.unfinished(tx, run.run_id):
        _abandon(tx, run, round_)
        flow.telemetry.round_ended("abandoned")
    for evaluated in rounds.open_evaluations(tx, run.run_id):
        rounds.complete_evaluation(tx, evaluated.round_id, None)


def finish(tx: WriteTx, run: RunRecord, state: RunState, *, reason: str | None) -> None:
    """Ends a run: completed, stopped or failed."""
    noise_states.forget(tx, run.run_id)
    runs.set_state(tx, run, state, reason=reason, finished_at=tx.now())
    events.append(tx, run.run_id, EventType.RUN_STATE, {"state": state.value, "reason": reason})


def _go_on(flow: Flow, tx: WriteTx, run: RunRecord, completed: RoundRecord) -> None:
    is_last = completed.number >= run.spec.num_rounds
    # Training from a version that its evaluation may yet condemn would be training in vain.
    waits = is_last or run.spec.evaluation.quarantine is not None
    if waits and rounds.open_evaluations(tx, run.run_id):
        return
    if is_last:
        finish(tx, run, RunState.COMPLETED, reason=None)
    else:
        _open(flow, tx, run, number=completed.number + 1, attempt=1)


def _num_waiting(tx: WriteTx, run_id: str) -> int:
    return sum(round_.state is RoundState.AGGREGATING for round_ in rounds.unfinished(tx, run_id))


def _open(flow: Flow, tx: WriteTx, run: RunRecord, *, number: int, attempt: int, num_waiting: int = 0) -> None:
    """Opens a round on the newest model, or on the one that so many sealed buffers will have made by their turn."""
    spec, latest_version = run.spec.round, run.latest_version or 0
    charge = budget.next_charge(tx, run)
    if exhausted := budget.refusal(run, charge):
        finish(tx, run, RunState.COMPLETED, reason=exhausted)
        return
    base_version = latest_version + num_waiting
    round_ = RoundRecord(
        round_id=flow.new_id("round"),
        run_id=run.run_id,
        kind=RoundKind(spec.kind),
        number=number,
        attempt=attempt,
        state=RoundState.COLLECTING,
        base_version=base_version,
        result_version=None,
        quorum=spec.quorum,
        cohort_size=spec.cohort_size,
        min_updates=spec.min_updates,
        num_tasks=0,
        num_updates=0,
        num_examples=0,
        opened_at=tx.now(),
        deadline_at=tx.now() + timedelta(seconds=spec.deadline_seconds),
        closed_at=None,
        completed_at=None,
        metrics={},
        evaluation_state=EvaluationState.NONE,
        evaluation_deadline_at=None,
        evaluation=None,
        evaluation_by_stratum=None,
    )
    rounds.insert(tx, round_)
    manifests.write(flow, tx, run, round_)
    budget.reserve(tx, run, round_, charge)
    runs.set_progress(tx, run.run_id, current_round=number, latest_version=latest_version)
    if isinstance(spec, BufferedRoundSpec):
        buffers.release_stale(tx, run.run_id, oldest_version=base_version - spec.max_staleness)
    events.append(
        tx,
        run.run_id,
        EventType.ROUND_OPENED,
        _named(round_) | {"base_version": base_version, "quorum": spec.quorum, "cohort_size": spec.cohort_size},
    )
    try:
        cohorts.open_cohort(flow, tx, run, round_)
    except cohorts.CohortTooLargeError as error:
        abandon_open(flow, tx, run)
        finish(tx, run, RunState.FAILED, reason=str(error))


def _seal(flow: Flow, tx: WriteTx, run: RunRecord, round_: RoundRecord) -> None:
    rounds.close(tx, round_, RoundState.AGGREGATING)
    budget.draw_key(flow, tx, run, round_)
    endings.end_all(tx, run, round_)
    closing.begin(flow, tx, run, round_)
    events.append(
        tx,
        round_.run_id,
        EventType.ROUND_CLOSED,
        _named(round_) | {"num_updates": round_.num_updates, "num_examples": round_.num_examples},
    )


def _abandon(tx: WriteTx, run: RunRecord, round_: RoundRecord, *, reason: str | None = None) -> None:
    rounds.close(tx, round_, RoundState.ABANDONED)
    # What its sessions have let go of is charged before the rest is given back.
    endings.end_all(tx, run, round_)
    closing.end(tx, run, round_, reason)
    budget.give_back(tx, run, round_)
    told = _named(round_) | {"num_updates": round_.num_updates, "min_updates": round_.min_updates}
    if reason is not None:
        told["reason"] = reason
    events.append(tx, round_.run_id, EventType.ROUND_ABANDONED, told)


def _try_again(flow: Flow, tx: WriteTx, run: RunRecord, abandoned: RoundRecord) -> None:
    spec = run.spec.round
    # After a rollback the round begins from another version, and all its attempts are before it again.
    base_version = run.latest_version or 0
    num_attempts = rounds.count_attempts(tx, run.run_id, number=abandoned.number, base_version=base_version)
    if isinstance(spec, BufferedRoundSpec) or num_attempts < spec.max_attempts:
        _open(flow, tx, run, number=abandoned.number, attempt=abandoned.attempt + 1)
        return
    why = closing.reason_of(tx, abandoned) or (
        f"{abandoned.num_updates} of at least {abandoned.min_updates} updates arrived within "
        f"{spec.deadline_seconds:g} s"
    )
    reason = f"round {abandoned.number} was abandoned {num_attempts} times: {why}"
    num_admitted = cohorts.count_admitted(tx, run, abandoned)
    if num_admitted < abandoned.min_updates:
        reason += f"; of the enrolled clients selection admits {num_admitted} to that round"
    abandon_open(flow, tx, run)
    finish(tx, run, RunState.FAILED, reason=reason)


def _named(round_: RoundRecord) -> dict[str, object]:
    return {"round": round_.number, "attempt": round_.attempt}
