"""Takes a run back to an earlier version of its model; its history only grows."""

from dataclasses import replace

from aggregator_service import failpoints
from aggregator_service.domain import standing
from aggregator_service.domain.records import ModelRecord, RunRecord
from aggregator_service.domain.standing import Standing
from aggregator_service.domain.transitions import check_can_roll_back
from aggregator_service.flow import buffers, idempotency
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.flow.idempotency import IdempotentCreate
from aggregator_service.flow.lifecycle import no_such_run
from aggregator_service.flow.reading import no_such_version
from aggregator_service.flow.retention import check_kept
from aggregator_service.flow.versions import publish_again
from aggregator_service.storage import models, runs
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.runs import RunState
from fl_protocol.specs.rounds import BufferedRoundSpec


async def roll_back(flow: Flow, run_id: str, *, version: int, create: IdempotentCreate | None) -> ModelRecord:
    """Publishes an earlier version again as the newest, with its optimizer state; the same key gives the same version.

    Open rounds and evaluations are abandoned, in a buffered run the tasks that are out too: what was acknowledged for
    them does not count, what comes later is refused as `round-closed`, and a model being computed from them loses its
    compare-and-set. A running run opens a round from the new version at once. Raises `removed` where the run's policy
    has left nothing of the version, and `state-conflict` for a draft or a run that has ended.
    """

    def body(tx: WriteTx) -> ModelRecord:
        run = runs.lock(tx, run_id)
        if run is None:
            raise no_such_run(run_id)
        earlier = idempotency.recall(tx, create)
        if earlier is not None:
            return _version(tx, run, int(earlier))
        check_can_roll_back(run.state)
        made = _go_back(flow, tx, run, version=version)
        idempotency.remember(tx, create, str(made.version))
        return made

    made = await flow.transactions.write("roll_back", body)
    failpoints.reach("rollback.after_commit")
    return made


def _go_back(flow: Flow, tx: WriteTx, run: RunRecord, *, version: int) -> ModelRecord:
    model = _version(tx, run, version)
    check_kept(model)
    round_steps.abandon_open(flow, tx, run)
    if isinstance(run.spec.round, BufferedRoundSpec):
        buffers.release_all(tx, run.run_id)
    made = publish_again(tx, run, model)
    reported = models.evaluations_along(tx, run.run_id, version)
    runs.set_standing(tx, run.run_id, _guarded(tx, run, standing.along(run.spec.evaluation, reported), version))
    failpoints.reach("rollback.in_transaction")
    if run.state is RunState.RUNNING:
        round_steps.advance(flow, tx, runs.reread(tx, run))
    return made


def _guarded(tx: WriteTx, run: RunRecord, found: Standing, version: int) -> Standing:
    """Lets a quarantine go back to the operator's choice where the version last evaluated before it was removed."""
    guard = found.guard
    good = None if guard is None else models.get(tx, run.run_id, guard.good_version)
    if guard is None or good is None or good.removed_at is None:
        return found
    return replace(found, guard=replace(guard, good_version=version))


def _version(tx: WriteTx, run: RunRecord, version: int) -> ModelRecord:
    model = models.get(tx, run.run_id, version)
    if model is None:
        raise no_such_version(run, version)
    return model
