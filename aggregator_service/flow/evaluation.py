"""Takes evaluation reports in and completes a round's evaluation."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from aggregator_service import failpoints
from aggregator_service.domain.admission import Replay, check_kind, check_owner, given_up, judge, round_closed
from aggregator_service.domain.quarantine import Guard
from aggregator_service.domain.quorum import deadline_clock
from aggregator_service.domain.records import (
    EvaluationRecord,
    EvaluationState,
    RoundRecord,
    RunRecord,
    StratumRecord,
    TaskRecord,
    TaskState,
)
from aggregator_service.domain.standing import Verdict
from aggregator_service.domain.standing import judge as judge_version
from aggregator_service.domain.strata import by_stratum
from aggregator_service.domain.strategies.mean import weighted_metrics
from aggregator_service.flow import rounds as round_steps
from aggregator_service.flow.context import Flow
from aggregator_service.flow.versions import publish_again
from aggregator_service.storage import events, models, rounds, runs, tasks, updates
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.rounds import EventType
from fl_protocol.runs import RunState
from fl_protocol.specs.evaluation import EvaluationTerms, evaluation_terms
from fl_protocol.tasks import EvaluationReport, TaskKind


@dataclass(frozen=True, slots=True)
class AcceptedEvaluation:
    """An acknowledged report; `is_new` unless the same report was acknowledged before."""

    evaluation: EvaluationRecord
    run_id: str
    round: RoundRecord
    is_new: bool


@dataclass(frozen=True, slots=True)
class _Result:
    """What came of an evaluation; no metrics where too few reports arrived."""

    num_reports: int
    metrics: Mapping[str, float] | None
    by_stratum: Mapping[str, StratumRecord] | None


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

    accepted = await flow.transactions.write("commit_evaluation", body)
    failpoints.reach("evaluation.after_commit")
    return accepted


def complete_if_due(flow: Flow, tx: WriteTx, *, run: RunRecord, round_: RoundRecord) -> None:
    """Completes a round's evaluation at its quorum of reports, or at its deadline with what has arrived.

    What follows from it is done in the same transaction: the standing, the quarantine, the next step of the run.
    """
    terms = evaluation_terms(run.spec.evaluation, run.spec.round)
    deadline = round_.evaluation_deadline_at
    is_over = deadline is None or deadline_clock(run, tx.now()) >= deadline
    if not is_over and updates.count_evaluations(tx, round_.round_id) < terms.quorum:
        return
    result = _result(tx, run, round_, terms)
    if rounds.complete_evaluation(tx, round_.round_id, result.metrics, by_stratum=result.by_stratum):
        _conclude(flow, tx, run=run, round_=round_, result=result)
        failpoints.reach("evaluation.in_transaction")


def _result(tx: WriteTx, run: RunRecord, round_: RoundRecord, terms: EvaluationTerms) -> _Result:
    reports = updates.evaluations_of_round(tx, round_.round_id)
    if len(reports) < terms.min_reports:
        return _Result(len(reports), None, None)
    metrics = weighted_metrics([(report.num_examples, report.metrics) for report in reports])
    attribute = run.spec.evaluation.strata
    if attribute is None:
        return _Result(len(reports), metrics, None)
    strata = updates.strata_of_round(tx, round_.round_id, attribute=attribute)
    return _Result(len(reports), metrics, by_stratum(reports, strata))


def _conclude(flow: Flow, tx: WriteTx, *, run: RunRecord, round_: RoundRecord, result: _Result) -> None:
    version = round_.result_version
    if version is None:
        raise LookupError(f"round {round_.round_id} was evaluated without a model")
    verdict = Verdict(run.standing, is_quarantined=False)
    if result.metrics is not None:
        verdict = judge_version(run.spec.evaluation, run.standing, version=version, metrics=result.metrics)
        runs.set_standing(tx, run.run_id, verdict.standing)
    best = verdict.standing.best
    events.append(
        tx,
        run.run_id,
        EventType.EVALUATION_COMPLETED,
        {
            "round": round_.number,
            "version": version,
            "num_reports": result.num_reports,
            "metrics": dict(result.metrics or {}),
            "best_version": None if best is None else best.version,
            "quarantined": verdict.is_quarantined,
        },
    )
    if verdict.is_quarantined:
        _quarantine(tx, run, version=version, guard=verdict.standing.guard)
    if run.state is RunState.RUNNING:
        round_steps.advance(flow, tx, runs.reread(tx, run))


def _quarantine(tx: WriteTx, run: RunRecord, *, version: int, guard: Guard | None) -> None:
    """Leaves a version behind: the last good one is published again as the newest."""
    good = None if guard is None else models.get(tx, run.run_id, guard.good_version)
    if good is None:
        raise LookupError(f"run {run.run_id} has no good version to go back to from {version}")
    models.quarantine(tx, run.run_id, version)
    publish_again(tx, run, good)


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
