"""Opens, seals and abandons rounds, inside a transaction that has locked the run."""

from datetime import timedelta

from aggregator_service.domain import quorum
from aggregator_service.domain.quorum import QuorumDecision
from aggregator_service.domain.records import EvaluationState, RoundRecord, RunRecord
from aggregator_service.flow import buffers
from aggregator_service.flow.context import Flow
from aggregator_service.storage import events, rounds, runs
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.rounds import EventType, RoundKind, RoundState
from fl_protocol.runs import RunState
from fl_protocol.specs.rounds import BufferedRoundSpec


def advance(flow: Flow, tx: WriteTx, run: RunRecord) -> None:
    """Takes the next step of a running run: opens a round, tries one again, or ends the run.

    A buffer is opened when the one before is sealed, whether or not the run is running: see `close_if_due`.
    """
    newest = rounds.newest(tx, run.run_id)
    if newest is None:
        _open(flow, tx, run, number=1, attempt=1)
    elif newest.state is RoundState.ABANDONED:
        _try_again(flow, tx, run, newest)
    elif newest.state is RoundState.COMPLETED and newest.number < run.spec.num_rounds:
        _open(flow, tx, run, number=newest.number + 1, attempt=1)
    elif newest.state is RoundState.COMPLETED and not rounds.open_evaluations(tx, run.run_id):
        finish(tx, run, RunState.COMPLETED, reason=None)


def close_if_due(flow: Flow, tx: WriteTx, *, run: RunRecord, round_: RoundRecord) -> None:
    """Seals or abandons a collecting round when its counts or its deadline say so."""
    match quorum.decide(round_, quorum.deadline_clock(run, tx.now())):
        case QuorumDecision.COLLECT:
            return
        case QuorumDecision.SEAL:
            _seal(tx, round_)
            if round_.kind is RoundKind.BUFFERED and round_.number < run.spec.num_rounds:
                _open(flow, tx, run, number=round_.number + 1, attempt=1, num_waiting=_num_waiting(tx, run.run_id))
        case QuorumDecision.ABANDON:
            _abandon(tx, round_)
            flow.telemetry.round_ended("abandoned")
            if run.state is RunState.RUNNING:
                advance(flow, tx, run)


def abandon_open(flow: Flow, tx: WriteTx, run: RunRecord) -> None:
    """Abandons whatever rounds of a run are open, because the run ends."""
    for round_ in rounds.unfinished(tx, run.run_id):
        _abandon(tx, round_)
        flow.telemetry.round_ended("abandoned")
    for evaluated in rounds.open_evaluations(tx, run.run_id):
        rounds.complete_evaluation(tx, evaluated.round_id, None)


def finish(tx: WriteTx, run: RunRecord, state: RunState, *, reason: str | None) -> None:
    """Ends a run: completed, stopped or failed."""
    runs.set_state(tx, run, state, reason=reason, finished_at=tx.now())
    events.append(tx, run.run_id, EventType.RUN_STATE, {"state": state.value, "reason": reason})


def _num_waiting(tx: WriteTx, run_id: str) -> int:
    return sum(round_.state is RoundState.AGGREGATING for round_ in rounds.unfinished(tx, run_id))


def _open(flow: Flow, tx: WriteTx, run: RunRecord, *, number: int, attempt: int, num_waiting: int = 0) -> None:
    """Opens a round on the newest model, or on the one that so many sealed buffers will have made by their turn."""
    spec, latest_version = run.spec.round, run.latest_version or 0
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
    )
    rounds.insert(tx, round_)
    runs.set_progress(tx, run.run_id, current_round=number, latest_version=latest_version)
    if isinstance(spec, BufferedRoundSpec):
        buffers.release_stale(tx, run.run_id, oldest_version=base_version - spec.max_staleness)
    events.append(
        tx,
        run.run_id,
        EventType.ROUND_OPENED,
        _named(round_) | {"base_version": base_version, "quorum": spec.quorum, "cohort_size": spec.cohort_size},
    )


def _seal(tx: WriteTx, round_: RoundRecord) -> None:
    rounds.close(tx, round_, RoundState.AGGREGATING)
    events.append(
        tx,
        round_.run_id,
        EventType.ROUND_CLOSED,
        _named(round_) | {"num_updates": round_.num_updates, "num_examples": round_.num_examples},
    )


def _abandon(tx: WriteTx, round_: RoundRecord) -> None:
    rounds.close(tx, round_, RoundState.ABANDONED)
    events.append(
        tx,
        round_.run_id,
        EventType.ROUND_ABANDONED,
        _named(round_) | {"num_updates": round_.num_updates, "min_updates": round_.min_updates},
    )


def _try_again(flow: Flow, tx: WriteTx, run: RunRecord, abandoned: RoundRecord) -> None:
    spec = run.spec.round
    if isinstance(spec, BufferedRoundSpec) or abandoned.attempt < spec.max_attempts:
        _open(flow, tx, run, number=abandoned.number, attempt=abandoned.attempt + 1)
        return
    reason = (
        f"round {abandoned.number} was abandoned {abandoned.attempt} times: {abandoned.num_updates} of at least "
        f"{abandoned.min_updates} updates arrived within {spec.deadline_seconds:g} s"
    )
    abandon_open(flow, tx, run)
    finish(tx, run, RunState.FAILED, reason=reason)


def _named(round_: RoundRecord) -> dict[str, object]:
    return {"round": round_.number, "attempt": round_.attempt}
