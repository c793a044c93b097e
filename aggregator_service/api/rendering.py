"""Turns what the flow gives into what the wire carries."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from pydantic import BaseModel

from aggregator_service.api.session_rendering import render_manifest_reference
from aggregator_service.domain.privacy.ledger import LedgerEntry as LedgerRecord
from aggregator_service.domain.records import (
    AttendanceRecord,
    ClientRecord,
    ModelRecord,
    RoundRecord,
    RunRecord,
    UpdateRecord,
)
from aggregator_service.domain.tally import Accepted
from aggregator_service.domain.uploads import UploadRecord
from aggregator_service.flow.budget import Standing
from aggregator_service.flow.evaluation import AcceptedEvaluation
from aggregator_service.flow.selection import Assignment
from fl_protocol import routes
from fl_protocol.exclusions import Exclusion
from fl_protocol.models import Model, ModelTag
from fl_protocol.presets import promise
from fl_protocol.privacy_claims import promise_of
from fl_protocol.privacy_reports import LedgerEntry, PrivacyReport
from fl_protocol.rounds import Contribution, Round, StratumEvaluation
from fl_protocol.runs import Run
from fl_protocol.specs.privacy import num_participations
from fl_protocol.tasks import Client, ControlVariate, Receipt, Task, TaskKind
from fl_protocol.uploads import Upload

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """One page of a list; `next_cursor` is null on the last one."""

    items: Sequence[Item]
    next_cursor: str | None


def render_run(run: RunRecord) -> Run:
    """Renders a run."""
    return Run(
        run_id=run.run_id,
        name=run.name,
        state=run.state,
        reason=run.reason,
        spec=run.spec,
        num_rounds=run.spec.num_rounds,
        current_round=run.current_round,
        latest_version=run.latest_version,
        best_version=None if run.standing.best is None else run.standing.best.version,
        created_at=run.created_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
        promise=promise(run.spec),
    )


def render_round(round_: RoundRecord) -> Round:
    """Renders an attempt at a round."""
    return Round(
        kind=round_.kind,
        number=round_.number,
        attempt=round_.attempt,
        state=round_.state,
        base_version=round_.base_version,
        result_version=round_.result_version,
        quorum=round_.quorum,
        cohort_size=round_.cohort_size,
        num_tasks=round_.num_tasks,
        num_updates=round_.num_updates,
        num_examples=round_.num_examples,
        opened_at=round_.opened_at,
        deadline_at=round_.deadline_at,
        closed_at=round_.closed_at,
        completed_at=round_.completed_at,
        metrics=dict(round_.metrics),
        evaluation=None if round_.evaluation is None else dict(round_.evaluation),
        expected_cohort=round_.expected_cohort,
        evaluation_by_stratum=_render_strata(round_),
        epsilon=round_.epsilon,
    )


def _render_strata(round_: RoundRecord) -> dict[str, StratumEvaluation] | None:
    if round_.evaluation_by_stratum is None:
        return None
    return {
        name: StratumEvaluation(
            num_examples=stratum.num_examples, num_reports=stratum.num_reports, metrics=dict(stratum.metrics)
        )
        for name, stratum in round_.evaluation_by_stratum.items()
    }


def render_model(model: ModelRecord, run: RunRecord) -> Model:
    """Renders a version of a run's model."""
    best = run.standing.best
    tags = {
        ModelTag.LATEST: model.version == run.latest_version,
        ModelTag.BEST: best is not None and model.version == best.version,
        ModelTag.QUARANTINED: model.quarantined,
    }
    return Model(
        version=model.version,
        round=model.round,
        digest=model.digest,
        num_bytes=model.num_bytes,
        num_parameters=model.num_parameters,
        created_at=model.created_at,
        parent_version=model.parent_version,
        restored_from=model.restored_from,
        tags=[tag.value for tag, applies in tags.items() if applies],
        removed_at=model.removed_at,
    )


def render_client(client: ClientRecord) -> Client:
    """Renders a client for the operator."""
    return Client(
        client_id=client.client_id,
        name=client.name,
        attributes=dict(client.attributes),
        created_at=client.created_at,
        last_seen_at=client.last_seen_at,
        revoked_at=client.revoked_at,
    )


def render_exclusion(excluded: AttendanceRecord) -> Exclusion:
    """Renders a client's exclusion from a run."""
    if excluded.excluded_at is None or excluded.exclusion_reason is None:
        raise ValueError(f"client {excluded.client_id} is not excluded")
    return Exclusion(client_id=excluded.client_id, reason=excluded.exclusion_reason, excluded_at=excluded.excluded_at)


def render_contribution(update: UpdateRecord) -> Contribution:
    """Renders what the operator may know of an update."""
    return Contribution(
        update_id=update.update_id,
        client_id=update.client_id,
        digest=update.digest,
        num_examples=update.num_examples,
        weight=update.weight,
        staleness=update.staleness,
        metrics=dict(update.metrics),
        num_bytes=update.num_bytes,
        accepted_at=update.accepted_at,
        local_steps=update.local_steps,
        skipped=update.skipped,
        removed_at=update.removed_at,
    )


def render_task(assignment: Assignment) -> Task:
    """Renders a task for its client."""
    spec, model = assignment.run.spec, assignment.model
    evaluation_deadline = assignment.round.evaluation_deadline_at
    return Task(
        task_id=assignment.task.task_id,
        run_id=assignment.run.run_id,
        round=assignment.round.number,
        attempt=assignment.round.attempt,
        kind=assignment.task.kind,
        base_version=model.version,
        model_url=routes.path(routes.RUN_MODEL, run_id=model.run_id, version=model.version),
        model_digest=model.digest,
        model_num_bytes=model.num_bytes,
        training=spec.training,
        parameters=spec.parameters,
        encoding=spec.encoding,
        privacy=spec.privacy,
        secure_aggregation=spec.secure_aggregation,
        deadline_at=assignment.task.deadline_at or evaluation_deadline or assignment.round.deadline_at,
        max_num_bytes=assignment.max_num_bytes,
        algorithm=spec.algorithm,
        control_variate=_render_control(model) if assignment.task.kind is TaskKind.TRAIN else None,
        counted_update=assignment.counted_update,
        privacy_claim=assignment.privacy_claim,
        manifest=None if assignment.manifest is None else render_manifest_reference(assignment.manifest),
        skipping=spec.skipping,
    )


def _render_control(model: ModelRecord) -> ControlVariate | None:
    if model.control is None:
        return None
    return ControlVariate(
        url=routes.path(routes.CONTROL_VARIATE, run_id=model.run_id, version=model.version),
        digest=model.control.digest,
        num_bytes=model.control.num_bytes,
    )


def render_privacy(standing: Standing) -> PrivacyReport:
    """Renders where a run's budget stands."""
    spec = standing.run.spec
    privacy, protected, promised = spec.privacy, promise_of(spec.privacy), promise(spec)
    is_accounted = standing.next_charge is not None
    spent = standing.spent.charge.epsilon if standing.spent is not None else 0.0
    return PrivacyReport(
        run_id=standing.run.run_id,
        kind=privacy.kind,
        sentence=" ".join(promised.sentences),
        unit=protected and protected[0],
        adjacency=protected and protected[1],
        trust=protected and protected[2],
        target_epsilon=getattr(privacy, "target_epsilon", None),
        delta=getattr(privacy, "delta", None),
        epsilon_spent=spent if is_accounted else None,
        epsilon_next=standing.next_charge.epsilon if standing.next_charge is not None else None,
        noise_multiplier=getattr(privacy, "noise_multiplier", None),
        num_rounds=spec.num_rounds,
        num_releases=standing.spent.charge.num_releases if standing.spent is not None else 0,
        max_participations=num_participations(spec),
        min_separation=spec.selection.min_separation,
        accountant=standing.next_charge.accountant if standing.next_charge is not None else None,
        ledger_head=standing.newest.hash if standing.newest is not None else None,
        ledger_length=standing.newest.sequence if standing.newest is not None else 0,
        promise=promised,
    )


def render_ledger_entry(entry: LedgerRecord) -> LedgerEntry:
    """Renders an entry of a privacy ledger."""
    return LedgerEntry(
        sequence=entry.sequence,
        round=entry.round,
        attempt=entry.attempt,
        state=entry.state.value,
        epsilon=entry.charge.epsilon,
        epsilon_renyi=entry.charge.epsilon_renyi,
        delta=entry.charge.delta,
        noise_multiplier=entry.charge.noise_multiplier,
        num_participations=entry.charge.num_participations,
        num_updates=entry.num_updates,
        model_digest=entry.model_digest,
        created_at=entry.created_at,
        entry_hash=entry.hash,
        text=entry.text,
    )


def render_receipt(accepted: Accepted) -> Receipt:
    """Renders the receipt of an update."""
    update = accepted.update
    return Receipt(
        update_id=update.update_id,
        task_id=update.task_id,
        run_id=update.run_id,
        round=accepted.round.number,
        digest=update.digest,
        num_bytes=update.num_bytes,
        accepted_at=update.accepted_at,
    )


def render_evaluation_receipt(accepted: AcceptedEvaluation) -> Receipt:
    """Renders the receipt of an evaluation report."""
    evaluation = accepted.evaluation
    return Receipt(
        update_id=evaluation.update_id,
        task_id=evaluation.task_id,
        run_id=accepted.run_id,
        round=accepted.round.number,
        digest=evaluation.digest,
        num_bytes=evaluation.num_bytes,
        accepted_at=evaluation.accepted_at,
    )


def render_upload(record: UploadRecord) -> Upload:
    """Renders an upload that may go on."""
    return Upload(
        upload_id=record.upload_id,
        url=routes.path(routes.UPLOAD, upload_id=record.upload_id),
        offset=record.num_stored,
        num_bytes=record.num_bytes,
        expires_at=record.expires_at,
    )
