"""A run's life as its operator steers it: create, start, pause, resume, stop."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from aggregator_service.domain import exact_sum
from aggregator_service.domain.records import RunRecord
from aggregator_service.domain.standing import Standing
from aggregator_service.domain.transitions import check_run_transition
from aggregator_service.flow import idempotency
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.flow.idempotency import IdempotentCreate
from aggregator_service.flow.layouts import layout_of
from aggregator_service.flow.versions import take_over
from aggregator_service.storage import events, mask_sums, models, rounds, runs, seats, sessions, tasks
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.masked_vectors import check_masked_model
from fl_protocol.privacy.accounting import calibrated
from fl_protocol.privacy.message_range import check_message_range
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.rounds import EventType, RoundState
from fl_protocol.runs import RunSpec, RunState
from fl_protocol.specs.initial_model import PreviousModel
from fl_protocol.specs.protection import NoPrivacy
from fl_protocol.updates import check_model


def no_such_run(run_id: str) -> ProblemError:
    """Gives the problem of an unknown run."""
    return ProblemError(ProblemType.NOT_FOUND, f"there is no run {run_id!r}; list them with GET /v1/runs")


async def create_run(flow: Flow, spec: RunSpec, create: IdempotentCreate | None) -> RunRecord:
    """Makes a draft of a run, with its model if that is another run's; the same key and spec give the same run."""
    await _check_previous(flow, spec)
    spec = await _calibrated(spec)
    run_id = flow.new_id("run")

    def body(tx: WriteTx) -> RunRecord:
        earlier_id = idempotency.recall(tx, create)
        if earlier_id is not None and (earlier := runs.get(tx, earlier_id)) is not None:
            return earlier
        run = RunRecord(
            run_id=run_id,
            name=spec.name,
            state=RunState.DRAFT,
            reason=None,
            spec=spec,
            current_round=0,
            latest_version=None,
            created_at=tx.now(),
            started_at=None,
            finished_at=None,
            paused_at=None,
            standing=Standing(),
        )
        runs.insert(tx, run)
        idempotency.remember(tx, create, run_id)
        events.append(tx, run_id, EventType.RUN_STATE, {"state": RunState.DRAFT.value, "reason": None})
        if not isinstance(spec.initial_model, PreviousModel):
            return run
        take_over(tx, run, spec.initial_model)
        return replace(run, latest_version=0)

    return await flow.transactions.write("create_run", body)


async def _calibrated(spec: RunSpec) -> RunSpec:
    """Fills in the noise that keeps a private run's budget; raises `invalid-request` where none does."""
    if isinstance(spec.privacy, NoPrivacy):
        return spec
    try:
        # Seconds, the first time: the accounting library is large.
        spec = await asyncio.to_thread(calibrated, spec)
        check_message_range(spec)
    except ValueError as error:
        raise ProblemError(ProblemType.INVALID_REQUEST, str(error)) from None
    return spec


async def _check_previous(flow: Flow, spec: RunSpec) -> None:
    """Refuses another run's model that cannot be trained by the spec; that there is none is told by `take_over`."""
    previous = spec.initial_model
    if not isinstance(previous, PreviousModel):
        return
    model = await flow.transactions.read_one(
        "look_up_model", lambda tx: models.get(tx, previous.run_id, previous.version)
    )
    if model is not None:
        layout = await layout_of(flow, model)
        check_model(layout, spec)
        check_masked_model(layout, spec)


async def start_run(flow: Flow, run_id: str) -> RunRecord:
    """Starts a draft that has its initial model; a run that is running already is answered as it is."""

    def start(tx: WriteTx, run: RunRecord) -> None:
        if run.state is RunState.PAUSED:
            raise ProblemError(ProblemType.STATE_CONFLICT, "the run is paused; continue it with /resume")
        check_run_transition(run.state, RunState.RUNNING, action="be started")
        if models.get(tx, run.run_id, 0) is None:
            raise ProblemError(
                ProblemType.STATE_CONFLICT,
                f"the run has no initial model yet; put it to /v1/runs/{run.run_id}/models/0 first",
            )
        _move(tx, run, RunState.RUNNING, started=True)
        _advance(flow, tx, run_id)

    # The compiler needs tens of MiB for a moment: now, and not beside the windows of the first aggregate.
    await asyncio.to_thread(exact_sum.prepare)
    return await _steer(flow, run_id, RunState.RUNNING, start)


async def pause_run(flow: Flow, run_id: str) -> RunRecord:
    """Pauses a run: no task is handed out, updates under way are still taken, deadlines stand still."""

    def pause(tx: WriteTx, run: RunRecord) -> None:
        check_run_transition(run.state, RunState.PAUSED, action="be paused")
        runs.set_state(tx, run, RunState.PAUSED, paused_at=tx.now())
        _announce(tx, run_id, RunState.PAUSED)

    return await _steer(flow, run_id, RunState.PAUSED, pause)


async def resume_run(flow: Flow, run_id: str) -> RunRecord:
    """Continues a paused run; deadlines move by the length of the pause."""

    def resume(tx: WriteTx, run: RunRecord) -> None:
        if run.state is RunState.DRAFT:
            raise ProblemError(ProblemType.STATE_CONFLICT, "the run is a draft; begin it with /start")
        check_run_transition(run.state, RunState.RUNNING, action="be resumed")
        _postpone_deadlines(tx, run)
        _move(tx, run, RunState.RUNNING, started=False)
        _advance(flow, tx, run_id)

    return await _steer(flow, run_id, RunState.RUNNING, resume)


async def stop_run(flow: Flow, run_id: str) -> RunRecord:
    """Ends a run for good; an open round is abandoned and its late updates are refused."""

    def stop(tx: WriteTx, run: RunRecord) -> None:
        check_run_transition(run.state, RunState.STOPPED, action="be stopped")
        round_steps.abandon_open(flow, tx, run)
        round_steps.finish(tx, run, RunState.STOPPED, reason="stopped by the operator")

    return await _steer(flow, run_id, RunState.STOPPED, stop)


async def fail_run(flow: Flow, run_id: str, reason: str) -> RunRecord:
    """Ends a run that cannot go on, with the reason that its operator will read."""

    def fail(tx: WriteTx, run: RunRecord) -> None:
        if run.finished_at is None:
            round_steps.abandon_open(flow, tx, run)
            round_steps.finish(tx, run, RunState.FAILED, reason=reason)

    return await _steer(flow, run_id, RunState.FAILED, fail)


async def _steer(flow: Flow, run_id: str, wanted: RunState, step: Callable[[WriteTx, RunRecord], None]) -> RunRecord:
    def body(tx: WriteTx) -> RunRecord:
        run = runs.lock(tx, run_id)
        if run is None:
            raise no_such_run(run_id)
        if run.state is not wanted:
            step(tx, run)
            run = runs.get(tx, run_id)
        if run is None:
            raise no_such_run(run_id)
        return run

    return await flow.transactions.write("steer_run", body)


def _move(tx: WriteTx, run: RunRecord, state: RunState, *, started: bool) -> None:
    runs.set_state(tx, run, state, started_at=tx.now() if started else None)
    _announce(tx, run.run_id, state)


def _announce(tx: WriteTx, run_id: str, state: RunState) -> None:
    events.append(tx, run_id, EventType.RUN_STATE, {"state": state.value, "reason": None})


def _advance(flow: Flow, tx: WriteTx, run_id: str) -> None:
    moved = runs.get(tx, run_id)
    if moved is not None:
        round_steps.advance(flow, tx, moved)


def _postpone_deadlines(tx: WriteTx, run: RunRecord) -> None:
    pause = tx.now() - (run.paused_at or tx.now())
    affected = {evaluated.round_id: evaluated for evaluated in rounds.open_evaluations(tx, run.run_id)}
    newest = rounds.newest(tx, run.run_id)
    if newest is not None and newest.state is RoundState.COLLECTING:
        affected[newest.round_id] = newest
    tasks.postpone(tx, run.run_id, pause)
    sessions.postpone(tx, run.run_id, pause)
    mask_sums.postpone(tx, run.run_id, pause)
    seats.postpone(tx, run.run_id, pause)
    for round_ in affected.values():
        evaluation_deadline = round_.evaluation_deadline_at
        rounds.postpone(
            tx,
            round_,
            deadline_at=round_.deadline_at + pause,
            evaluation_deadline_at=None if evaluation_deadline is None else evaluation_deadline + pause,
        )
