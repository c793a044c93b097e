"""What a run asks of its clients now, read once for all clients that look at the same time."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from aggregator_service.domain import presence
from aggregator_service.domain.records import AttendanceRecord, RoundRecord, RunRecord, TaskRecord, TaskState
from aggregator_service.flow import cohorts
from aggregator_service.flow.cohorts import Prospect
from aggregator_service.storage import attendance, rounds, tasks
from aggregator_service.storage.transactions import ReadTx
from fl_protocol.rounds import RoundState
from fl_protocol.runs import RunState
from fl_protocol.specs.evaluation import evaluation_terms
from fl_protocol.specs.rounds import BufferedRoundSpec
from fl_protocol.specs.selection import OpenSelection
from fl_protocol.tasks import TaskKind


@dataclass(slots=True)
class Opening:
    """One thing that a run asks for, how many tasks of it have been handed out, and which client holds or held one."""

    kind: TaskKind
    round: RoundRecord
    num_tasks: int
    tasks: dict[str, TaskRecord]

    @property
    def base_version(self) -> int:
        """The model that the round asks about."""
        version = self.round.result_version if self.kind is TaskKind.EVALUATE else self.round.base_version
        return version or 0

    def is_held(self, client_id: str) -> bool:
        """Tells whether a client is at work on such a task."""
        task = self.tasks.get(client_id)
        return task is not None and task.state is TaskState.OPEN

    def hand_out(self, task: TaskRecord) -> None:
        """Notes a new task, which the next client that looks must find."""
        self.tasks[task.client_id] = task
        self.num_tasks += 1
        if self.kind is TaskKind.TRAIN:
            self.round = replace(self.round, num_tasks=self.num_tasks)


@dataclass(frozen=True, slots=True)
class Sight:
    """A run and some of its clients as a transaction sees them; what is asked for first comes first."""

    run: RunRecord
    attended: Mapping[str, AttendanceRecord]
    openings: list[Opening]

    def is_due(self, client_id: str, now: datetime) -> bool:
        """Tells whether a client is to be marked as seen."""
        attended = self.attended.get(client_id)
        seen_at = None if attended is None else attended.seen_at
        return presence.is_due(self.run.spec.selection, seen_at=seen_at, now=now)


def see(tx: ReadTx, run: RunRecord, client_ids: Collection[str]) -> Sight:
    """Reads what a run asks for now and where some clients stand in it; an evaluation goes first, for it is short."""
    attended = attendance.of_clients(tx, run.run_id, client_ids)
    if run.state is not RunState.RUNNING:
        return Sight(run, attended, [])
    evaluated = rounds.open_evaluations(tx, run.run_id) if run.spec.evaluation.every else []
    openings = [_to_evaluate(tx, round_, client_ids) for round_ in evaluated]
    newest = rounds.newest(tx, run.run_id)
    if newest is not None and newest.state is RoundState.COLLECTING:
        openings.append(_to_train(tx, run, newest, client_ids))
    return Sight(run, attended, openings)


def are_alike(run: RunRecord) -> bool:
    """Tells whether a place goes to whoever comes first, so that one sight of the run serves many claims.

    Otherwise a claim depends on rows that the claim before it has written.
    """
    return isinstance(run.spec.selection, OpenSelection) and not isinstance(run.spec.round, BufferedRoundSpec)


def choose(tx: ReadTx, sight: Sight, client_id: str) -> tuple[Opening | None, datetime | None]:
    """Takes what the client holds already, else the first opening that may be free; or says when a draw is due."""
    held = next((opening for opening in sight.openings if opening.is_held(client_id)), None)
    if held is not None:
        return held, None
    prospect = Prospect(may_claim=False)
    for opening in sight.openings:
        prospect = _prospect(tx, sight.run, opening, client_id)
        if prospect.may_claim:
            return opening, None
    return None, prospect.draw_at


def _to_evaluate(tx: ReadTx, round_: RoundRecord, client_ids: Collection[str]) -> Opening:
    num_tasks = tasks.count(tx, round_id=round_.round_id, kind=TaskKind.EVALUATE)
    held = tasks.newest(tx, round_id=round_.round_id, client_ids=client_ids, kind=TaskKind.EVALUATE)
    return Opening(TaskKind.EVALUATE, round_, num_tasks, held)


def _to_train(tx: ReadTx, run: RunRecord, round_: RoundRecord, client_ids: Collection[str]) -> Opening:
    if isinstance(run.spec.round, BufferedRoundSpec):
        held = tasks.held(tx, run.run_id, client_ids)
    else:
        held = tasks.newest(tx, round_id=round_.round_id, client_ids=client_ids, kind=TaskKind.TRAIN)
    return Opening(TaskKind.TRAIN, round_, round_.num_tasks, held)


def _prospect(tx: ReadTx, run: RunRecord, opening: Opening, client_id: str) -> Prospect:
    if client_id in opening.tasks:
        return Prospect(may_claim=False)
    if opening.kind is TaskKind.TRAIN:
        return cohorts.prospect(tx, run, opening.round, client_id)
    terms = evaluation_terms(run.spec.evaluation, run.spec.round)
    return Prospect(opening.num_tasks < terms.cohort_size and cohorts.may_evaluate(tx, run, client_id))
