"""Takes evaluation reports in and completes a round's evaluation."""

import hashlib
from dataclasses import dataclass

from aggregator_service.domain.admission import Replay, check_kind, check_owner, given_up, judge, round_closed
from aggregator_service.domain.quorum import deadline_clock
from aggregator_service.domain.records import (
    EvaluationRecord,
    EvaluationState,
    RoundRecord,
    RunRecord,
    TaskRecord,
    TaskState,
)
from aggregator_service.domain.strategies.mean import weighted_metrics
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.storage import events, rounds, runs, tasks, updates
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.rounds import EventType
from fl_protocol.runs import RunState
from fl_protocol.tasks import EvaluationReport, TaskKind


@dataclass(frozen=True, slots=True)
class AcceptedEvaluation:
    """An acknowledged report; `is_new` unless the same report was acknowledged before."""

    evaluation: EvaluationRecord
    run_id: str
    round: RoundRecord
    is_new: bool


async def take_evaluation(flow: Flow, report: EvaluationReport, *, task_id: str, client_id: str) -> AcceptedEvaluation:
    """Counts a client's report of the global model; the same report again gets the same receipt."""
    canonical = report.model_dump_json().encode()
    digest = f"sha256:{hashlib.sha256(canonical).hexdigest()}"
    update_id = flow.new_id("update")

    def body(tx: WriteTx) -> AcceptedEvaluation:
        task = check_owner(tasks.get(tx, task_id), task_id=task_id, client_id=client_id)
        check_kind(task, TaskKind.EVALUATE)
        run, task, round_ = _lock(tx, task)
        accepted = updates.evaluation_of_task(tx, task_id)
        verdict = judge(
            digest=digest,
            accepted_digest=None if accepted is None else accepted.digest,
            task=task,
            collecting=round_.evaluation_state is EvaluationState.COLLECTING,
            round_=round_,
        )
        if isinstance(verdict, Replay) and accepted is not None:
            return AcceptedEvaluation(accepted, task.run_id, round_, is_new=False)
        evaluation = EvaluationRecord(
            update_id=update_id,
            task_id=task_id,
            round_id=round_.round_id,
            client_id=client_id,
            digest=digest,
            num_bytes=len(canonical),
            num_examples=report.num_examples,
            metrics=report.metrics,
            accepted_at=tx.now(),
        )
        updates.insert_evaluation(tx, evaluation)
        tasks.set_state(tx, task, TaskState.DONE)
        complete_if_due(flow, tx, run=run, round_=round_)
        return AcceptedEvaluation(evaluation, task.run_id, round_, is_new=True)

    return await flow.transactions.write("commit_evaluation", body)


def complete_if_due(flow: Flow, tx: WriteTx, *, run: RunRecord, round_: RoundRecord) -> None:
    """Completes a round's evaluation at `quorum` reports, or at its deadline with what has arrived."""
    reports = updates.evaluations_of_round(tx, round_.round_id)
    deadline = round_.evaluation_deadline_at
    if len(reports) < round_.quorum and (deadline is None or deadline_clock(run, tx.now()) < deadline):
        return
    metrics = weighted_metrics([(report.num_examples, report.metrics) for report in reports]) if reports else None
    if not rounds.complete_evaluation(tx, round_.round_id, metrics):
        return
    events.append(
        tx,
        run.run_id,
        EventType.EVALUATION_COMPLETED,
        {
            "round": round_.number,
            "version": round_.result_version,
            "num_reports": len(reports),
            "metrics": metrics or {},
        },
    )
    if run.state is RunState.RUNNING:
        round_steps.advance(flow, tx, run)


def _lock(tx: WriteTx, task: TaskRecord) -> tuple[RunRecord, TaskRecord, RoundRecord]:
    run = runs.lock(tx, task.run_id)
    fresh, round_ = tasks.get(tx, task.task_id), rounds.get(tx, task.round_id)
    if run is None or fresh is None or round_ is None:
        raise LookupError(f"task {task.task_id} lacks its round or run")
    if updates.evaluation_of_task(tx, task.task_id) is None:
        if fresh.state is TaskState.GIVEN_UP:
            raise given_up(fresh)
        if round_.evaluation_state is not EvaluationState.COLLECTING:
            raise round_closed(round_)
    return run, fresh, round_
