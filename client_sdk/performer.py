"""Performs the actions that a participant's session asks for, over the network and in worker threads."""

import contextlib
import functools
import math
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, assert_never

import anyio
import anyio.to_thread

from client_sdk.client import AggregatorClient
from client_sdk.controls import ControlStore
from client_sdk.errors import (
    FedQuorumError,
    RunFinishedError,
    ServerError,
    TrainerError,
    UntrustedAnswerError,
    UsageError,
)
from client_sdk.masked_round import Membership, open_masked_rounds
from client_sdk.masking.terms import Failed
from client_sdk.personal import PersonalTensors
from client_sdk.privacy.claims import Reviewed, Spending, check_still_private
from client_sdk.privacy.history import Outcome, PrivacyHistory, outcome_of
from client_sdk.residuals import Left, ResidualStore
from client_sdk.session import machine
from client_sdk.session.deltas import Update
from client_sdk.session.encoding import encoded_update
from client_sdk.session.link import Link
from client_sdk.session.progress import (
    EvaluationAccepted,
    ModelPulled,
    PrivacySpent,
    Progress,
    PromiseRead,
    TaskClaimed,
    TaskGivenUp,
    TrainingFinished,
    UpdateAccepted,
    UpdateClipped,
    Waiting,
    WorkRefused,
)
from client_sdk.session.skipping import carries_over
from client_sdk.session.work import Evaluator, TrainedDelta, TrainedModel, Trainer
from client_sdk.transfer import Body, Content, StoredModel, body_of_tensors, compressed_body, read_model
from fl_protocol.arrays import Tensor
from fl_protocol.presets import promise
from fl_protocol.promises import Promise
from fl_protocol.runs import RunSpec
from fl_protocol.specs.encodings import ZstdCompression
from fl_protocol.tasks import EvaluationReport, Task

if TYPE_CHECKING:
    from client_sdk.masked_round.rounds import MaskedRounds

GIVE_UP_SECONDS: Final = 5.0
"""How long a participant that fails tries to hand its task back."""

SPENT_REST_SECONDS: Final = 5.0
"""How long a restarted participant waits for the session in which it has answered to end."""
KEY_BYTES: Final = 32

OnEvent = Callable[[Progress], None]
Result = TypeVar("Result")


@dataclass(slots=True)
class Participation:
    """What a participant did in a run, counted up to its end."""

    num_updates: int = 0
    num_evaluations: int = 0
    num_refused: int = 0
    reason: str = ""


@dataclass(slots=True, kw_only=True)
class Performer:
    """Performs one participant's actions; `participate` and a simulation decide when."""

    client: AggregatorClient
    run_id: str
    session: machine.ParticipantSession
    trainer: Trainer
    evaluator: Evaluator | None
    folder: Path
    controls: ControlStore | None
    personal: PersonalTensors
    residuals: ResidualStore
    history: PrivacyHistory
    tell: OnEvent
    membership: Membership = field(default_factory=Membership)
    masked: "MaskedRounds | None" = None
    done: Participation = field(default_factory=Participation)
    cached: dict[str, Path] = field(default_factory=dict)
    base: StoredModel | None = None
    link: Link = field(default_factory=Link)
    spending: Spending | None = None
    promise: Promise | None = None

    async def perform(self, action: machine.Action) -> machine.Action:
        """Performs one action and gives the next one; the task at hand is handed back if that fails."""
        match action:
            case machine.Claim():
                return await self._claim()
            case machine.Rest():
                self.tell(Waiting(action.seconds))
                await self.client.sleep(action.seconds)
                return machine.Claim()
            case machine.GiveUp():
                await self._give_up(action.task, action.reason)
                return machine.Rest(machine.REST_SECONDS)
            case machine.Finish():
                return action
            case _:
                return await self._perform_task(action)

    async def _perform_task(self, action: machine.TaskAction) -> machine.Action:
        try:
            return await self._work_on(action)
        except BaseException as error:
            with anyio.move_on_after(GIVE_UP_SECONDS, shield=True), contextlib.suppress(FedQuorumError):
                await self._give_up(action.task, f"{type(error).__name__}: {error}")
            raise

    async def _work_on(self, action: machine.TaskAction) -> machine.Action:
        match action:
            case machine.Review():
                return await self._review(action.task)
            case machine.Pull():
                self.session.check_can_do(action.task)
                self.membership.check_still_masked(action.task)
                if not machine.is_protected(action.task):
                    check_still_private(await _in_thread(self.history.load))
                    self._tell_promise(action.task, promise(RunSpec()))
                kept = await _in_thread(self.personal.load)
                model = await self._pull(action.task)
                # It looks at every value.
                return await _in_thread(functools.partial(self.session.pulled, action.task, model, personal=kept))
            case machine.PullControls():
                return await self._pull_controls(action)
            case machine.Train():
                return await self._train(action)
            case machine.Evaluate():
                return machine.SendEvaluation(action.task, await self._evaluate(action))
            case machine.SendUpdate():
                return await self._send_update(action)
            case machine.Aggregate():
                return await self._aggregate(action)
            case machine.SendEvaluation():
                return await self._send_evaluation(action)
            case _:
                assert_never(action)

    async def _claim(self) -> machine.Action:
        try:
            claim = await self.client.claim_task(self.run_id)
        except RunFinishedError as error:
            return machine.Finish(error.detail)
        if isinstance(claim, Task):
            self.tell(TaskClaimed(claim))
        return self.session.claimed(claim)

    async def _review(self, task: Task) -> machine.Action:
        self.session.check_can_do(task)
        spec = (await self.client.get_run(self.run_id)).spec
        known = await _in_thread(self.history.load)
        pull, reviewed = await _in_thread(functools.partial(self.session.reviewed, task, spec, known=known))
        self.spending = reviewed.spending
        self._tell_promise(task, promise(reviewed.spec))
        if machine.is_masked(task):
            masked = self._masked_rounds()
            if await masked.is_spent(task):
                spent = f"this client has helped to unmask a sum of round {task.round}, and does so once"
                return (
                    machine.Rest(SPENT_REST_SECONDS) if await masked.is_under_way(task) else machine.GiveUp(task, spent)
                )
            self.session.manifest_checked(await masked.review(task, spec))
        if reviewed.spending is not None:
            await _in_thread(functools.partial(self._keep_promise, reviewed))
        return pull

    def _tell_promise(self, task: Task, promised: Promise) -> None:
        if promised != self.promise:
            self.promise = promised
            self.tell(PromiseRead(task, promised))

    def _masked_rounds(self) -> "MaskedRounds":
        if self.masked is None:
            self.masked = open_masked_rounds(
                self.membership, self.client, run_id=self.run_id, folder=self.folder, tell=self.tell
            )
        return self.masked

    def _keep_promise(self, reviewed: Reviewed) -> None:
        if self.history.load().promise is None:
            self.history.promised(reviewed.promise)
        self.history.saw_ledger(reviewed.ledger)

    async def _pull(self, task: Task) -> dict[str, Tensor]:
        expected = Content(task.model_digest, task.model_num_bytes)
        model, from_cache = await self._fetch("model", expected, functools.partial(self._download, task))
        self.base = StoredModel(
            self.folder / expected.file_name, expected.digest, expected.num_bytes, task.base_version
        )
        self.tell(ModelPulled(task, from_cache))
        return model

    async def _download(self, task: Task, *, expected: Content) -> None:
        """Downloads a task's model; over a thin line from what is at hand."""
        base, begun = (self.base if self.link.is_thin else None), anyio.current_time()
        stored = await self.client.download_model(
            self.run_id, self.folder, version=task.base_version, expected=expected, base=base
        )
        self.link.measured(stored.num_received, anyio.current_time() - begun)

    async def _pull_controls(self, action: machine.PullControls) -> machine.Action:
        task, named, server = action.task, action.task.control_variate, None
        if self.controls is None:
            raise UsageError("this participant has no folder for control variates")
        own = await _in_thread(functools.partial(self.controls.load, task))
        if named is not None:
            expected = Content(named.digest, named.num_bytes)
            download = functools.partial(
                self.client.download_control_variate, self.run_id, self.folder, version=task.base_version
            )
            server, _ = await self._fetch("control variate", expected, download)
        return self.session.controls_pulled(action, own=own, server=server)

    async def _fetch(
        self, kind: str, expected: Content, download: Callable[..., Awaitable[object]]
    ) -> tuple[dict[str, Tensor], bool]:
        """Gives tensors from the cache, else downloads them; one file of each kind is kept."""
        path = self.folder / expected.file_name
        tensors = await anyio.to_thread.run_sync(read_model, path, expected)
        from_cache = tensors is not None
        if tensors is None:
            await download(expected=expected)
            read = functools.partial(read_model, path, expected, was_just_checked=True)
            tensors = await anyio.to_thread.run_sync(read)
        if tensors is None:
            raise UntrustedAnswerError(
                f"{path} changed right after it was downloaded; does something else write there?"
            )
        previous = self.cached.get(kind)
        self.cached[kind] = path
        if previous is not None and previous not in self.cached.values():
            previous.unlink(missing_ok=True)
        return tensors, from_cache

    async def _train(self, action: machine.Train) -> machine.Action:
        result = await _in_thread(functools.partial(self.trainer, action.work))
        if not isinstance(result, TrainedModel | TrainedDelta):
            raise TrainerError(f"the trainer returned {type(result).__name__}, not TrainedModel or TrainedDelta")
        send = await _in_thread(functools.partial(self.session.trained, action, result, key=os.urandom(KEY_BYTES)))
        self.tell(TrainingFinished(action.task, result.num_examples, dict(result.metrics)))
        if send.update.norm is not None:
            self.tell(UpdateClipped(action.task, send.update.norm if math.isfinite(send.update.norm) else None))
        if result.spent is not None and self.spending is not None:
            self.spending = replace(self.spending, epsilon=result.spent.epsilon, delta=result.spent.delta)
        return send

    async def _evaluate(self, action: machine.Evaluate) -> EvaluationReport:
        if self.evaluator is None:
            raise TrainerError("this participant has no evaluator")
        report = await _in_thread(functools.partial(self.evaluator, action.work))
        if not isinstance(report, EvaluationReport):
            raise TrainerError(f"the evaluator returned {type(report).__name__}, not EvaluationReport")
        return report

    async def _send_update(self, action: machine.SendUpdate) -> machine.Action:
        with contextlib.ExitStack() as held:
            body, left = await _in_thread(functools.partial(self._encoded, action.task, action.update, held))
            return await self._put_update(action, body, left)

    async def _put_update(self, action: machine.SendUpdate, body: Body, left: Left | None) -> machine.Action:
        update = action.update
        if update.control is not None and self.controls is not None:
            await _in_thread(functools.partial(self.controls.keep, action.task, body.digest, update.control))
        await self._count(action.task, body.digest)
        try:
            receipt = await self.client.put_update(action.task.task_id, body)
        except ServerError as error:
            if left is not None:
                await _in_thread(functools.partial(self.residuals.refused, body.digest))
            await self._note(action.task, outcome_of(error))
            return self._refused(action.task, error)
        if left is not None:
            await _in_thread(functools.partial(self.residuals.accepted, body.digest))
        await self._note(action.task, Outcome.ACCEPTED)
        if update.personal:
            await _in_thread(functools.partial(self.personal.keep, update.personal))
        self.done.num_updates += 1
        self.tell(UpdateAccepted(action.task, receipt, body.num_bytes))
        return self.session.sent(action.task)

    def _encoded(self, task: Task, update: Update, held: contextlib.ExitStack) -> tuple[Body, Left | None]:
        """Gives the body of an update, and what it leaves for the next one, kept before anything is sent."""
        has_residual = carries_over(task)
        residual = self.residuals.load(task) if has_residual else {}
        encoded = encoded_update(update, task, residual=residual)
        body = body_of_tensors(encoded.tensors, encoded.metadata)
        if has_residual:
            self.residuals.prepare(body.digest, encoded.left)
        if isinstance(task.encoding.compression, ZstdCompression):
            level = task.encoding.compression.level
            body = held.enter_context(compressed_body(body, level=level, folder=self.folder))
        return body, encoded.left if has_residual else None

    async def _aggregate(self, action: machine.Aggregate) -> machine.Action:
        task, update = action.task, action.update
        count, summed = functools.partial(self._count_masked, task), functools.partial(self._summed, task)
        try:
            ended = await self._masked_rounds().aggregate(
                task, action.round, update=update, on_input=count, on_sum=summed
            )
        except ServerError as error:
            await self._note(task, outcome_of(error))
            return self._refused(task, error)
        if isinstance(ended, Failed):
            # What was not answered for is in no sum that anybody could read.
            await self._note(task, Outcome.REFUSED if ended.may_retry else Outcome.SENT)
            return machine.GiveUp(task, ended.reason)
        await self._note(task, Outcome.ACCEPTED)
        if update.personal:
            await _in_thread(functools.partial(self.personal.keep, update.personal))
        self.done.num_updates += 1
        return self.session.sent(task)

    async def _count(self, task: Task, digest: str) -> None:
        """Counts a private update before it leaves."""
        if self.spending is not None:
            await _in_thread(functools.partial(self.history.sending, task.task_id, digest))
            self.tell(PrivacySpent(task, self.spending.epsilon, self.spending.delta, self.spending.unit))

    async def _count_masked(self, task: Task, digest: str) -> None:
        """Counts a private update before it is sent into a session, which need not be its first."""
        if self.spending is not None:
            self.spending = self.session.recounted(task, known=await _in_thread(self.history.load))
        await self._count(task, digest)

    async def _summed(self, task: Task, digest: str, num_survivors: int) -> None:
        """Notes how large a sum a private update went into."""
        if self.spending is not None:
            await _in_thread(functools.partial(self.history.summed, task.task_id, digest, num_survivors))

    async def _note(self, task: Task, outcome: Outcome) -> None:
        if self.spending is not None and outcome is not Outcome.SENT:
            await _in_thread(functools.partial(self.history.answered, task.task_id, outcome))

    async def _send_evaluation(self, action: machine.SendEvaluation) -> machine.Action:
        try:
            receipt = await self.client.put_evaluation(action.task.task_id, action.report)
        except ServerError as error:
            return self._refused(action.task, error)
        self.done.num_evaluations += 1
        self.tell(EvaluationAccepted(action.task, action.report, receipt))
        return self.session.sent(action.task)

    def _refused(self, task: Task, error: ServerError) -> machine.Action:
        following = self.session.refused(task, error)
        self.done.num_refused += 1
        self.tell(WorkRefused(task, error.detail))
        return following

    async def _give_up(self, task: Task, reason: str) -> None:
        await self.client.give_up_task(task.task_id)
        self.tell(TaskGivenUp(task, reason))


async def _in_thread(call: Callable[[], Result]) -> Result:
    # A cancelled participant does not wait for its trainer: the thread ends by itself and its result is dropped.
    return await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
