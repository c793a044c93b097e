"""Publishes a candidate model: compare-and-set on the round, the new version and the next round in one transaction."""

from datetime import timedelta

from aggregator_service import failpoints
from aggregator_service.domain.records import ModelRecord
from aggregator_service.flow import budget
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.aggregation import Candidate
from aggregator_service.flow.context import Flow
from aggregator_service.flow.sealed_rounds import SealedRound
from aggregator_service.flow.versions import add_model
from aggregator_service.storage import noise_states, rounds, runs
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.runs import FINISHED_RUN_STATES, RunState
from fl_protocol.specs.evaluation import evaluation_terms


async def publish(flow: Flow, sealed: SealedRound, candidate: Candidate) -> bool:
    """Publishes a round's model; False if the round was ended by somebody else meanwhile."""
    published = await flow.transactions.write("publish_model", lambda tx: _publish(flow, tx, sealed, candidate))
    failpoints.reach("publication.after_commit")
    if published:
        flow.telemetry.round_ended("completed")
    else:
        await discard(flow, candidate)
    return published


async def discard(flow: Flow, candidate: Candidate) -> None:
    """Removes the bytes of a candidate that will not be published."""
    for upload in candidate.uploads:
        await flow.blobs.discard(upload)


def _publish(flow: Flow, tx: WriteTx, sealed: SealedRound, candidate: Candidate) -> bool:
    run = runs.lock(tx, sealed.run.run_id)
    if run is None or run.state in FINISHED_RUN_STATES:
        return False
    every = run.spec.evaluation.every
    deadline = None
    if every and sealed.round.number % every == 0:
        terms = evaluation_terms(run.spec.evaluation, run.spec.round)
        deadline = tx.now() + timedelta(seconds=terms.deadline_seconds)
    version = (run.latest_version or 0) + 1
    won = rounds.complete(
        tx,
        sealed.round.round_id,
        result_version=version,
        metrics=candidate.metrics,
        evaluation_deadline_at=deadline,
    )
    if not won:
        return False
    epsilon = budget.spend(tx, run, sealed.round, noise=candidate.noise, model_digest=candidate.digest)
    if epsilon is not None:
        rounds.set_epsilon(tx, sealed.round.round_id, epsilon)
    _store(flow, tx, sealed, candidate, version=version, current_round=run.current_round, epsilon=epsilon)
    failpoints.reach("publication.in_transaction")
    moved = runs.get(tx, run.run_id)
    if moved is not None and moved.state is RunState.RUNNING:
        round_steps.advance(flow, tx, moved)
    return True


def _store(
    flow: Flow,
    tx: WriteTx,
    sealed: SealedRound,
    candidate: Candidate,
    *,
    version: int,
    current_round: int,
    epsilon: float | None,
) -> None:
    for upload in candidate.uploads:
        if upload.num_bytes:
            flow.blobs.seal(tx, upload)
    optimizer, control = candidate.optimizer, candidate.control
    if candidate.noise_state.num_bytes:
        noise_states.put(tx, sealed.run.run_id, candidate.noise_state.blob_id)
    add_model(
        tx,
        ModelRecord(
            run_id=sealed.run.run_id,
            version=version,
            round=sealed.round.number,
            digest=candidate.digest,
            num_bytes=candidate.model.num_bytes,
            num_parameters=sealed.base.num_parameters,
            blob_id=candidate.model.blob_id,
            optimizer_blob_id=optimizer.blob_id if optimizer.num_bytes else None,
            parent_version=sealed.base.version,
            restored_from=None,
            quarantined=False,
            created_at=tx.now(),
            control_blob_id=control.blob_id if control.num_bytes else None,
            control_digest=candidate.control_digest if control.num_bytes else None,
            control_num_bytes=control.num_bytes or None,
        ),
        epsilon=epsilon,
    )
    runs.set_progress(tx, sealed.run.run_id, current_round=current_round, latest_version=version)
