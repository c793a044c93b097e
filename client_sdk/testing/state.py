"""What the fake aggregator remembers of a run, and how a round of it goes."""

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from client_sdk.testing.averaging import (
    fednova_scales,
    header_of,
    mean_metrics,
    next_control,
    plain_update,
    weighted_mean,
)
from client_sdk.testing.promises import claim_for
from fl_protocol.arrays import decode, encode
from fl_protocol.lineage import LINEAGE_KEY, Lineage, LineageOrigin, spec_digest
from fl_protocol.models import Model
from fl_protocol.presets import promise
from fl_protocol.privacy.accounting import calibrated
from fl_protocol.privacy_claims import PrivacyClaim
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.rounds import Event, EventType, Round, RoundState
from fl_protocol.runs import FINISHED_RUN_STATES, Run, RunSpec, RunState
from fl_protocol.specs.algorithms import ScaffoldAlgorithm
from fl_protocol.specs.privacy import LocalGaussianPrivacy, LocalLaplacePrivacy
from fl_protocol.tasks import ControlVariate, EvaluationReport, Receipt, Task, TaskKind
from fl_protocol.updates import (
    check_model,
    check_update_structure,
    is_skipped,
    update_layout,
    update_metadata,
    update_seed,
)


def new_id(prefix: str) -> str:
    """Makes an identifier as the real server does."""
    return f"{prefix}_{secrets.token_hex(16)}"


def digest_of(content: bytes) -> str:
    """Gives the digest that stands on the wire."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(slots=True)
class FakeTask:
    """A task, who holds it, and what came of it."""

    task: Task
    client: str
    update: bytes | None = None
    report: EvaluationReport | None = None
    receipt: Receipt | None = None
    given_up: bool = False


@dataclass(slots=True)
class FakeRun:
    """A run, all its models, rounds, tasks and events."""

    run: Run
    models: list[bytes] = field(default_factory=list)
    controls: list[bytes | None] = field(default_factory=list)
    described: list[Model] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    tasks: dict[str, FakeTask] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.run.state in FINISHED_RUN_STATES

    def change(self, **fields: Any) -> None:
        """Replaces fields of the run."""
        self.run = self.run.model_copy(update=fields)

    def move_to(self, state: RunState) -> None:
        """Puts the run into a state and tells so; opens the first round of a run that starts."""
        self.change(state=state, finished_at=_now() if state in FINISHED_RUN_STATES else None)
        self.tell(EventType.RUN_STATE, state=state.value)
        if state is RunState.RUNNING and not self.rounds:
            self.change(started_at=_now())
            self._open_round(1)

    def tell(self, kind: EventType, **data: Any) -> None:
        """Appends an event."""
        self.events.append(Event(event_id=len(self.events) + 1, type=kind.value, created_at=_now(), data=data))

    def add_model(
        self,
        content: bytes,
        *,
        number: int = 0,
        parent: int | None = None,
        restored_from: int | None = None,
        control: bytes | None = None,
    ) -> Model:
        """Adds a model version that a round made; raises ProblemError if it cannot be trained by the spec."""
        num_parameters = sum(int(np.prod(tensor.shape)) for tensor in decode(content).values())
        check_model(header_of(content), self.run.spec)
        version = len(self.models)
        self.models.append(content)
        self.controls.append(control)
        self.described.append(
            Model(
                version=version,
                round=number,
                digest=digest_of(content),
                num_bytes=len(content),
                num_parameters=num_parameters,
                created_at=_now(),
                parent_version=parent,
                restored_from=restored_from,
            )
        )
        self.change(latest_version=version)
        return self.model(version)

    def model(self, version: int) -> Model:
        """Describes a model version as it stands now."""
        tags = {"latest": self.run.latest_version, "best": self.run.best_version}
        held = [tag for tag, tagged in tags.items() if tagged == version]
        return self.described[version].model_copy(update={"tags": held})

    def roll_back(self, version: int) -> Model:
        """Publishes a version again and begins the open round anew from it; raises ProblemError."""
        if not 0 <= version < len(self.models):
            raise ProblemError(ProblemType.NOT_FOUND, f"the run has no model version {version}")
        if self.run.state not in (RunState.RUNNING, RunState.PAUSED):
            raise ProblemError(ProblemType.STATE_CONFLICT, f"the run is {self.run.state} and cannot be rolled back")
        number, attempt = self.rounds[-1].number, self.rounds[-1].attempt
        self.tell(EventType.ROUND_ABANDONED, round=number, attempt=attempt)
        made = self.add_model(
            self.models[version],
            number=self.described[version].round,
            parent=version,
            restored_from=version,
        )
        self.tell(EventType.MODEL_PUBLISHED, version=made.version, round=made.round, rolled_back_to=version)
        self.rounds.pop()
        self._open_round(number, attempt=attempt + 1)
        return made

    def with_lineage(self, version: int) -> bytes:
        """Gives a version as a file that says how it came about; the fake lists no updates."""
        facts = self.described[version]
        lineage = Lineage(
            run_id=self.run.run_id,
            run_name=self.run.name,
            spec_digest=spec_digest(self.run.spec),
            initial_model=LineageOrigin(kind=self.run.spec.initial_model.kind, digest=self.described[0].digest),
            version=version,
            round=facts.round,
            digest=facts.digest,
            parent_version=facts.parent_version,
            parent_digest=None if facts.parent_version is None else self.described[facts.parent_version].digest,
            restored_from=facts.restored_from,
            num_updates=0,
        )
        return b"".join(encode(decode(self.models[version]), {LINEAGE_KEY: lineage.model_dump_json()}))

    def task_for(self, client: str) -> tuple[Task, bool] | None:
        """Finds or makes a client's task and says whether it is new; None if there is nothing to do."""
        mine = [held for held in self.tasks.values() if held.client == client and not held.given_up]
        for held in mine:
            if held.receipt is None and (held.task.kind is TaskKind.EVALUATE or self._is_open(held.task)):
                return held.task, False
        if self.run.state is not RunState.RUNNING or self.rounds[-1].state is not RoundState.COLLECTING:
            return None
        number = self.rounds[-1].number
        asked = [held for held in self.tasks.values() if self._is_open(held.task) and not held.given_up]
        if any(self._is_open(held.task) for held in mine):
            return None
        if len(asked) >= self.rounds[-1].cohort_size:
            return None
        return self._assign(client, TaskKind.TRAIN, number=number), True

    def accept_update(self, held: FakeTask, content: bytes) -> Receipt:
        """Takes an update and closes the round once it has enough; raises ProblemError as the contract has it."""
        if held.receipt is not None:
            if held.receipt.digest == digest_of(content):
                return held.receipt
            raise ProblemError(ProblemType.ALREADY_SUBMITTED, "other bytes were accepted for this task")
        if not self._is_open(held.task):
            raise ProblemError(ProblemType.ROUND_CLOSED, f"round {held.task.round} closed without this update")
        header = header_of(content)
        model = header_of(self.models[-1])
        if not is_skipped(header, self.run.spec.skipping):
            check_update_structure(header, update_layout(model, self.run.spec), self.run.spec.encoding)
            update_seed(header, self.run.spec.encoding)
        update_metadata(header, self.run.spec.algorithm)
        decode(content)
        held.update = content
        held.receipt = _receipt(held.task, content)
        self.tell(EventType.UPDATE_ACCEPTED, round=held.task.round, client_id=held.client)
        self._close_if_full()
        return held.receipt

    def accept_evaluation(self, held: FakeTask, report: EvaluationReport) -> Receipt:
        """Takes what a client measured."""
        if held.receipt is None:
            held.report = report
            held.receipt = _receipt(held.task, report.model_dump_json().encode())
            reports = [
                (other.report.num_examples, other.report.metrics)
                for other in self.tasks.values()
                if other.report is not None and other.task.round == held.task.round
            ]
            self._change_round(held.task.round, evaluation=mean_metrics(reports))
            self._find_best()
            self.tell(EventType.EVALUATION_COMPLETED, round=held.task.round)
        return held.receipt

    def _is_open(self, task: Task) -> bool:
        last = self.rounds[-1]
        is_newest = (task.round, task.attempt) == (last.number, last.attempt)
        return task.kind is TaskKind.TRAIN and is_newest and last.state is RoundState.COLLECTING

    def _find_best(self) -> None:
        watched = self.run.spec.evaluation.watched
        if watched is None:
            return
        values = {
            done.result_version: done.evaluation[watched.metric]
            for done in self.rounds
            if done.evaluation is not None and watched.metric in done.evaluation
        }
        choose = max if watched.mode == "max" else min
        self.change(best_version=choose(values, key=values.__getitem__, default=None))

    def _assign(self, client: str, kind: TaskKind, *, number: int) -> Task:
        version = len(self.models) - 1
        content = self.models[version]
        task = Task(
            task_id=new_id("task"),
            run_id=self.run.run_id,
            round=number,
            attempt=self.rounds[number - 1].attempt,
            kind=kind,
            base_version=version,
            model_url=f"/v1/runs/{self.run.run_id}/models/{version}",
            model_digest=digest_of(content),
            model_num_bytes=len(content),
            training=self.run.spec.training,
            parameters=self.run.spec.parameters,
            encoding=self.run.spec.encoding,
            privacy=self.run.spec.privacy,
            secure_aggregation=self.run.spec.secure_aggregation,
            deadline_at=_now() + timedelta(seconds=self.run.spec.round.deadline_seconds),
            max_num_bytes=3 * len(content) + (1 << 20),
            algorithm=self.run.spec.algorithm,
            control_variate=self._control_of(version) if kind is TaskKind.TRAIN else None,
            counted_update=self._counted_update(client),
            privacy_claim=self._claim_for(client, number=number) if kind is TaskKind.TRAIN else None,
            skipping=self.run.spec.skipping,
        )
        self.tasks[task.task_id] = FakeTask(task, client)
        return task

    def _claim_for(self, client: str, *, number: int) -> PrivacyClaim | None:
        mine = [held.task for held in self.tasks.values() if held.client == client and held.update is not None]
        current = {(done.number, done.attempt) for done in self.rounds if done.state is not RoundState.ABANDONED}
        abandoned = sum((task.round, task.attempt) not in current for task in mine)
        noises_itself = isinstance(self.run.spec.privacy, LocalLaplacePrivacy | LocalGaussianPrivacy)
        counted = len(mine) if noises_itself else len(mine) - abandoned
        return claim_for(self.run.spec, number=number, participations=counted, abandoned=abandoned)

    def _control_of(self, version: int) -> ControlVariate | None:
        control = self.controls[version]
        if control is None:
            return None
        url = f"/v1/runs/{self.run.run_id}/models/{version}/control-variate"
        return ControlVariate(url=url, digest=digest_of(control), num_bytes=len(control))

    def _counted_update(self, client: str) -> str | None:
        # With a version that is published again the control variates begin anew.
        anew = max((model.version for model in self.described if model.restored_from is not None), default=0)
        completed = {
            done.number for done in self.rounds if done.state is RoundState.COMPLETED and done.base_version >= anew
        }
        counted = [
            (held.task.round, digest_of(held.update))
            for held in self.tasks.values()
            if held.client == client and held.update is not None and held.task.round in completed
        ]
        return max(counted)[1] if counted else None

    def _open_round(self, number: int, *, attempt: int = 1) -> None:
        spec = self.run.spec.round
        self.change(current_round=number)
        self.rounds.append(
            Round(
                number=number,
                attempt=attempt,
                state=RoundState.COLLECTING,
                base_version=len(self.models) - 1,
                result_version=None,
                quorum=spec.quorum,
                cohort_size=spec.cohort_size,
                num_tasks=0,
                num_updates=0,
                num_examples=0,
                opened_at=_now(),
                deadline_at=_now() + timedelta(seconds=spec.deadline_seconds),
                closed_at=None,
                completed_at=None,
                metrics={},
                evaluation=None,
            )
        )
        self.tell(EventType.ROUND_OPENED, round=number)

    def _change_round(self, number: int, **fields: Any) -> None:
        self.rounds[number - 1] = self.rounds[number - 1].model_copy(update=fields)

    def _close_if_full(self) -> None:
        number = self.rounds[-1].number
        contributed = [held for held in self.tasks.values() if held.update is not None and self._is_open(held.task)]
        self._change_round(number, num_updates=len(contributed))
        if len(contributed) < self.rounds[-1].quorum:
            return
        updates = [held.update for held in contributed if held.update is not None]
        algorithm = self.run.spec.algorithm
        facts = [update_metadata(header_of(update), algorithm) for update in updates]
        weights = [fact.num_examples for fact in facts]
        steps = [fact.local_steps for fact in facts if fact.local_steps is not None]
        scales = fednova_scales(weights, steps) if steps else None
        encoding, base = self.run.spec.encoding, self.models[-1]
        updates = [plain_update(update, base=base, encoding=encoding) for update in updates]
        control = self.controls[-1]
        if isinstance(algorithm, ScaffoldAlgorithm):
            control = next_control(control, updates, num_clients=algorithm.num_clients)
        made = weighted_mean(base, updates, weights=weights, scales=scales)
        self.add_model(made, number=number, parent=len(self.models) - 1, control=control)
        self._change_round(
            number,
            state=RoundState.COMPLETED,
            result_version=len(self.models) - 1,
            num_examples=sum(weights),
            metrics=mean_metrics([(fact.num_examples, fact.metrics) for fact in facts]),
            closed_at=_now(),
            completed_at=_now(),
        )
        self.tell(EventType.ROUND_CLOSED, round=number)
        self.tell(EventType.MODEL_PUBLISHED, round=number, version=len(self.models) - 1)
        self._go_on(number, [held.client for held in contributed])

    def _go_on(self, number: int, clients: list[str]) -> None:
        every = self.run.spec.evaluation.every
        if every and number % every == 0:
            for client in clients:
                self._assign(client, TaskKind.EVALUATE, number=number)
        if number == self.run.num_rounds:
            self.move_to(RunState.COMPLETED)
        else:
            self._open_round(number + 1)


def new_run(spec: RunSpec) -> FakeRun:
    """Makes a draft run."""
    spec = calibrated(spec)
    run = Run(
        run_id=new_id("run"),
        name=spec.name,
        state=RunState.DRAFT,
        reason=None,
        spec=spec,
        num_rounds=spec.num_rounds,
        current_round=0,
        latest_version=None,
        created_at=_now(),
        started_at=None,
        finished_at=None,
        promise=promise(spec),
    )
    return FakeRun(run)


def _receipt(task: Task, content: bytes) -> Receipt:
    return Receipt(
        update_id=new_id("update"),
        task_id=task.task_id,
        run_id=task.run_id,
        round=task.round,
        digest=digest_of(content),
        num_bytes=len(content),
        accepted_at=_now(),
    )


def _now() -> datetime:
    return datetime.now(UTC)
