"""What callers may look at: runs, rounds, models, clients, contributions and events, in pages and with waits."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from aggregator_service.domain import topics
from aggregator_service.domain.records import (
    ClientRecord,
    EventRecord,
    ModelRecord,
    RoundRecord,
    RunRecord,
    TensorFile,
    UpdateRecord,
)
from aggregator_service.flow.context import Flow
from aggregator_service.flow.lifecycle import no_such_run
from aggregator_service.flow.sealed_rounds import effective_weights
from aggregator_service.flow.selection import POLL_SECONDS
from aggregator_service.storage import clients, events, models, rounds, runs, updates
from aggregator_service.storage.transactions import ReadTx
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.rounds import RoundState
from fl_protocol.runs import FINISHED_RUN_STATES

Position = tuple[datetime, str]

_EVENTS_A_READ: Final = 200


async def get_run(flow: Flow, run_id: str) -> RunRecord:
    """Gives a run; raises `not-found`."""
    return await flow.transactions.read("get_run", lambda tx: _run(tx, run_id))


async def list_runs(flow: Flow, *, after: Position | None, limit: int) -> list[RunRecord]:
    """Lists runs from behind a position."""
    return await flow.transactions.read("list_runs", lambda tx: runs.page(tx, after=after, limit=limit))


async def list_clients(flow: Flow, *, after: Position | None, limit: int) -> list[ClientRecord]:
    """Lists clients from behind a position."""
    return await flow.transactions.read("list_clients", lambda tx: clients.page(tx, after=after, limit=limit))


async def list_rounds(flow: Flow, run_id: str, *, after: tuple[int, int], limit: int) -> list[RoundRecord]:
    """Lists attempts at rounds from behind a (number, attempt)."""

    def body(tx: ReadTx) -> list[RoundRecord]:
        _run(tx, run_id)
        return rounds.page(tx, run_id, after=after, limit=limit)

    return await flow.transactions.read("list_rounds", body)


async def get_round(flow: Flow, run_id: str, number: int) -> RoundRecord:
    """Gives the newest attempt at a round; raises `not-found`."""
    return await flow.transactions.read("get_round", lambda tx: _round(tx, run_id, number))


async def list_contributions(
    flow: Flow, run_id: str, *, number: int, after: tuple[str, str], limit: int
) -> list[UpdateRecord]:
    """Lists who contributed to the newest attempt at a round; once it is sealed, with the weights in its mean."""

    def body(tx: ReadTx) -> list[UpdateRecord]:
        run, round_ = _run(tx, run_id), _round(tx, run_id, number)
        found = updates.page(tx, round_.round_id, after=after, limit=limit)
        if round_.state not in (RoundState.AGGREGATING, RoundState.COMPLETED):
            return found
        accepted = updates.of_round(tx, round_.round_id)
        weights = effective_weights(tx, run, accepted)
        weight_of = {update.update_id: weight for update, weight in zip(accepted, weights, strict=True)}
        return [replace(update, weight=weight_of[update.update_id]) for update in found]

    return await flow.transactions.read("list_contributions", body)


async def list_models(
    flow: Flow, run_id: str, *, after_version: int, limit: int
) -> tuple[RunRecord, list[ModelRecord]]:
    """Lists model versions newer than a given one, with the run that says which of them stand out."""

    def body(tx: ReadTx) -> tuple[RunRecord, list[ModelRecord]]:
        return _run(tx, run_id), models.page(tx, run_id, after_version=after_version, limit=limit)

    return await flow.transactions.read("list_models", body)


def no_such_version(run: RunRecord, version: int) -> ProblemError:
    """Gives the problem of a model version that a run does not have."""
    newest = "it has none yet" if run.latest_version is None else f"the newest is {run.latest_version}"
    return ProblemError(ProblemType.NOT_FOUND, f"the run has no model version {version}; {newest}")


async def get_model(flow: Flow, run_id: str, version: int) -> ModelRecord:
    """Gives a model version; raises `not-found`."""

    def body(tx: ReadTx) -> ModelRecord:
        run = _run(tx, run_id)
        model = models.get(tx, run_id, version)
        if model is None:
            raise no_such_version(run, version)
        return model

    return await flow.transactions.read("get_model", body)


async def get_control(flow: Flow, run_id: str, version: int) -> tuple[ModelRecord, TensorFile]:
    """Gives a model version and its server control variate; raises `not-found` where there is none."""
    model = await get_model(flow, run_id, version)
    if model.control is None:
        raise ProblemError(
            ProblemType.NOT_FOUND,
            f"model version {version} has no control variate; those that a round of a SCAFFOLD run made have one",
        )
    return model, model.control


async def get_best_model(flow: Flow, run_id: str) -> ModelRecord:
    """Gives the best evaluated version; raises `not-found` where none is known."""

    def body(tx: ReadTx) -> ModelRecord:
        run = _run(tx, run_id)
        best = None if run.standing.best is None else models.get(tx, run_id, run.standing.best.version)
        if best is None:
            watched = run.spec.evaluation.watched
            missing = "its evaluation names no metric" if watched is None else f"nobody reported {watched.metric!r} yet"
            raise ProblemError(ProblemType.NOT_FOUND, f"the run has no best model version: {missing}")
        return best

    return await flow.transactions.read("get_best_model", body)


async def wait_for_model(flow: Flow, run_id: str, *, after_version: int, wait_seconds: float) -> ModelRecord | None:
    """Gives the newest model once it is newer than a version; None when the time is up or the run has ended first."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_seconds
    topic = topics.models_of(run_id)

    def body(tx: ReadTx) -> tuple[bool, ModelRecord | None]:
        run = _run(tx, run_id)
        newest = None if run.latest_version is None else models.get(tx, run_id, run.latest_version)
        return run.state in FINISHED_RUN_STATES, newest

    async def look(askers: Sequence[None]) -> Sequence[tuple[bool, ModelRecord | None]]:
        return [await flow.transactions.read("wait_for_model", body)] * len(askers)

    while True:
        seen = flow.wakeups.seen(topic)
        has_ended, newest = await flow.gatherings.ask(("wait_for_model", run_id), None, look)
        model = newest if newest is not None and newest.version > after_version else None
        if model is not None or has_ended or deadline <= loop.time() or flow.wakeups.closed:
            return model
        await flow.wakeups.wait(topic, seen, timeout_seconds=min(deadline - loop.time(), POLL_SECONDS))


async def follow_events(flow: Flow, run_id: str, *, after_event_id: int) -> AsyncIterator[EventRecord | None]:
    """Yields a run's events as they happen, and None now and then to keep the line open; ends with the run."""
    position = after_event_id
    while not flow.wakeups.closed:
        seen = flow.wakeups.seen(topics.events_of(run_id))
        finished, batch = await events_after(flow, run_id, position)
        for event in batch:
            yield event
            position = event.event_id
        if len(batch) == _EVENTS_A_READ:
            continue
        if finished:
            return
        if not batch:
            yield None
        await flow.wakeups.wait(topics.events_of(run_id), seen, timeout_seconds=POLL_SECONDS)


async def events_after(flow: Flow, run_id: str, event_id: int) -> tuple[bool, list[EventRecord]]:
    """Gives whether the run has ended, and some events behind a number."""

    def body(tx: ReadTx) -> tuple[bool, list[EventRecord]]:
        run = _run(tx, run_id)
        return run.state in FINISHED_RUN_STATES, events.after(tx, run_id, event_id, limit=_EVENTS_A_READ)

    return await flow.transactions.read("read_events", body)


def _run(tx: ReadTx, run_id: str) -> RunRecord:
    run = runs.get(tx, run_id)
    if run is None:
        raise no_such_run(run_id)
    return run


def _round(tx: ReadTx, run_id: str, number: int) -> RoundRecord:
    run = _run(tx, run_id)
    round_ = rounds.newest(tx, run_id, number)
    if round_ is None:
        raise ProblemError(
            ProblemType.NOT_FOUND, f"the run has no round {number} yet; it is at round {run.current_round}"
        )
    return round_
