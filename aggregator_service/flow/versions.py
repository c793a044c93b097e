"""How a model version comes into a run's history: newly made, taken over from another run, or published again."""

from dataclasses import replace

from aggregator_service.domain.records import ModelRecord, RunRecord
from aggregator_service.flow.retention import check_kept
from aggregator_service.storage import events, models, runs
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.rounds import EventType
from fl_protocol.specs.initial_model import PreviousModel


def add_model(tx: WriteTx, model: ModelRecord, *, epsilon: float | None = None) -> None:
    """Publishes a model version; `epsilon` is what a private run has cost with it."""
    models.insert(tx, model)
    restored = {} if model.restored_from is None else {"rolled_back_to": model.restored_from}
    spent = {} if epsilon is None else {"epsilon": epsilon}
    events.append(
        tx,
        model.run_id,
        EventType.MODEL_PUBLISHED,
        {"version": model.version, "round": model.round, "digest": model.digest, "num_bytes": model.num_bytes}
        | restored
        | spent,
    )


def publish_again(tx: WriteTx, run: RunRecord, version: ModelRecord) -> ModelRecord:
    """Makes an earlier version the newest: a version of its own that names the same bytes and optimizer state.

    SCAFFOLD's control variates begin anew, at zero on both sides: the clients' have moved on since that version, and
    the server's must stay their mean.
    """
    again = replace(
        version,
        version=(run.latest_version or 0) + 1,
        parent_version=version.version,
        restored_from=version.version,
        quarantined=False,
        created_at=tx.now(),
        control_blob_id=None,
        control_digest=None,
        control_num_bytes=None,
    )
    add_model(tx, again)
    runs.set_progress(tx, run.run_id, current_round=run.current_round, latest_version=again.version)
    return again


def take_over(tx: WriteTx, run: RunRecord, previous: PreviousModel) -> None:
    """Gives a new run its version 0 from another run's history; raises `invalid-request` if there is no such version.

    The bytes are shared, not copied. Raises `removed` where the other run's policy has left none.
    """
    source = runs.get(tx, previous.run_id)
    if source is None:
        raise ProblemError(ProblemType.INVALID_REQUEST, f"initial_model.run_id: there is no run {previous.run_id!r}")
    model = models.get(tx, previous.run_id, previous.version)
    if model is None:
        newest = "it has none yet" if source.latest_version is None else f"its newest is {source.latest_version}"
        raise ProblemError(
            ProblemType.INVALID_REQUEST,
            f"initial_model.version: run {previous.run_id} has no model version {previous.version}; {newest}",
        )
    check_kept(model)
    taken = replace(
        model,
        run_id=run.run_id,
        version=0,
        round=0,
        optimizer_blob_id=None,
        control_blob_id=None,
        control_digest=None,
        control_num_bytes=None,
        parent_version=None,
        restored_from=None,
        quarantined=False,
        created_at=tx.now(),
    )
    add_model(tx, taken)
    runs.set_progress(tx, run.run_id, current_round=0, latest_version=0)
