"""The participant's state machine: what came of one action goes in, the next action comes out.

    Claim -> Rest -> Claim                         nothing to do now
    Claim -> Pull -> Train -> SendUpdate -> Claim
    Claim -> Pull -> PullControls -> Train -> SendUpdate -> Claim      SCAFFOLD
    Claim -> Review -> Pull -> Train -> Aggregate -> Claim             a masked round
    Claim -> Pull -> Evaluate -> SendEvaluation -> Claim
    Claim -> GiveUp -> Rest -> Claim               a task that this participant cannot do
    Claim, SendUpdate, SendEvaluation -> Finish    the run is over

In a private or a masked run, or with a privacy policy, a Review stands between Claim and Pull.

It upholds these rules, and raises UntrustedAnswerError where the server breaks one:
1. A task is for the run that was asked for, and names a digest, a version and a size that can be.
2. A model is never larger than the local one, or than the ceiling where there is none.
3. A model has the names, types and shapes of the local model, or of the first one pulled, and finite values only.
4. A control variate has the names and shapes of the model, and finite values only.
5. A task whose work was accepted or refused is not done again.
6. A private run keeps the promise that it made, and spends no less of it than this client has counted; a policy that
   it does not meet raises PolicyError.
7. A masked run's update goes into a session and nowhere else, and the session's vector has the model's own coordinates.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from client_sdk.endpoints import NothingToDo
from client_sdk.errors import (
    AlreadySubmittedError,
    RoundClosedError,
    RunFinishedError,
    ServerError,
    UntrustedAnswerError,
    UsageError,
)
from client_sdk.masking.terms import MaskedRound, check_coordinates
from client_sdk.masking.update import MaskedUpdate
from client_sdk.privacy.claims import Reviewed, Spending, recounted, review
from client_sdk.privacy.history import Participations
from client_sdk.privacy.policy import PrivacyPolicy
from client_sdk.session.controls import completed, control_structure, own_control, server_control
from client_sdk.session.deltas import (
    Structure,
    Update,
    first_difference,
    first_non_finite,
    max_file_bytes,
    structure_of,
    update_of,
    with_personal,
)
from client_sdk.session.masked import coordinates_of, masked_update
from client_sdk.session.protection import protected_update
from client_sdk.session.work import TrainingResult, TrainingTask
from fl_protocol.arrays import Tensor
from fl_protocol.dtypes import FLOAT_FORMATS
from fl_protocol.encodings.forms import CONTROL_PREFIX
from fl_protocol.identifiers import DIGEST_PATTERN
from fl_protocol.messages import MAX_EXACT_INTEGER
from fl_protocol.problems import ProblemError
from fl_protocol.runs import RunSpec
from fl_protocol.specs.algorithms import ScaffoldAlgorithm
from fl_protocol.specs.privacy import num_participations
from fl_protocol.specs.protection import NoPrivacy, NoSecureAggregation
from fl_protocol.tasks import EvaluationReport, Task, TaskKind
from fl_protocol.updates import check_local_parameters

REST_SECONDS: Final = 1.0
"""How long a participant rests after it gave a task up or was handed one that it has done."""

MIN_REST_SECONDS: Final = 0.1
"""The shortest rest, whatever the server asks for: a participant never asks in a tight loop."""

_NOTHING: Final[Mapping[str, Tensor]] = MappingProxyType({})
_DIGEST: Final = re.compile(DIGEST_PATTERN[1:-1], re.ASCII)


@dataclass(frozen=True, slots=True)
class Claim:
    """Ask for a task."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Wait before asking again."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Review:
    """Get the run's specification and this client's own count, and compare the task with them and with the policy."""

    task: Task


@dataclass(frozen=True, slots=True)
class Pull:
    """Get the task's model: exactly the bytes that the task announces."""

    task: Task


@dataclass(frozen=True, slots=True)
class PullControls:
    """Get the two control variates: the client's own from where it keeps it, and the server's that the task names."""

    task: Task
    work: TrainingTask


@dataclass(frozen=True, slots=True)
class Train:
    """Call the trainer."""

    task: Task
    work: TrainingTask


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Call the evaluator."""

    task: Task
    work: TrainingTask


@dataclass(frozen=True, slots=True)
class SendUpdate:
    """Put the update."""

    task: Task
    update: Update


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Take the update through a masked session."""

    task: Task
    round: MaskedRound
    update: MaskedUpdate


@dataclass(frozen=True, slots=True)
class SendEvaluation:
    """Put the evaluation."""

    task: Task
    report: EvaluationReport


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Hand the task back."""

    task: Task
    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Stop: the run is over."""

    reason: str


TaskAction = Review | Pull | PullControls | Train | Evaluate | SendUpdate | Aggregate | SendEvaluation
"""What is done for a task that the participant holds."""

Action = Claim | Rest | GiveUp | Finish | TaskAction


class ParticipantSession:
    """One participant in one run; `structure` is that of its local model, None if it has none before the first pull.

    `has_folder` tells whether it can keep control variates and its count of updates over restarts.
    """

    def __init__(
        self,
        run_id: str,
        *,
        can_evaluate: bool,
        has_folder: bool,
        structure: Structure | None,
        max_model_bytes: int,
        policy: PrivacyPolicy | None = None,
    ) -> None:
        self._run_id = run_id
        self._can_evaluate = can_evaluate
        self._has_folder = has_folder
        self._policy = policy
        self._reviewed: Reviewed | None = None
        self._masked: MaskedRound | None = None
        self._structure = structure
        self._max_model_bytes = max_model_bytes if structure is None else max_file_bytes(structure)
        self._done: str | None = None

    def claimed(self, claim: Task | NothingToDo) -> Rest | Review | Pull | GiveUp:
        """Takes the answer to a claim."""
        if isinstance(claim, NothingToDo):
            return Rest(max(claim.retry_after_seconds, MIN_REST_SECONDS))
        self._check_task(claim)
        if claim.task_id == self._done:
            return Rest(REST_SECONDS)
        if claim.kind is TaskKind.EVALUATE and not self._can_evaluate:
            return GiveUp(claim, "this participant has no evaluator")
        self._reviewed = self._masked = None
        must_review = is_protected(claim) or self._policy is not None
        return Review(claim) if must_review else Pull(claim)

    def check_can_do(self, task: Task) -> None:
        """Raises UsageError for a task that needs what this participant was not given."""
        if _has_controls(task) and not self._has_folder:
            raise UsageError(
                "the run uses SCAFFOLD, whose control variates a client must keep from round to round: name a folder "
                "of this client's own as state_dir (--state-dir)"
            )
        if _is_private(task) and self._policy is not None and not self._has_folder:
            raise UsageError(
                "a privacy policy bounds what this client spends over all its updates, which it must count over "
                "restarts: name a folder of this client's own as state_dir (--state-dir)"
            )
        if is_masked(task) and not self._has_folder:
            raise UsageError(
                "the run is masked, and a client must keep its identity and the sums that it helped to unmask over "
                "restarts: name a folder of this client's own as state_dir (--state-dir)"
            )

    def reviewed(self, task: Task, spec: RunSpec, *, known: Participations) -> tuple[Pull, Reviewed]:
        """Takes the run's specification and this client's count; raises the errors of `client_sdk.privacy.claims`."""
        self._reviewed = review(task, spec, known, policy=self._policy)
        return Pull(task), self._reviewed

    def recounted(self, task: Task, *, known: Participations) -> Spending | None:
        """Counts what the update costs once more, before it is masked; raises PrivacyBudgetError."""
        return None if self._reviewed is None else recounted(task, self._reviewed, known)

    def manifest_checked(self, round_: MaskedRound) -> None:
        """Takes what a masked round is about, by its manifest, before the model is pulled."""
        self._masked = round_

    def pulled(
        self, task: Task, model: Mapping[str, Tensor], *, personal: Mapping[str, Tensor] = _NOTHING
    ) -> PullControls | Train | Evaluate:
        """Takes the model that the task announced, and the personal tensors that were kept; see `with_personal`."""
        found = structure_of(model)
        difference = None if self._structure is None else first_difference(found, self._structure)
        if difference is not None:
            raise UntrustedAnswerError(f"the server's model version {task.base_version} does not fit: {difference}")
        broken = first_non_finite(model)
        if broken is not None:
            raise UntrustedAnswerError(f"the server's model holds NaN or infinity in tensor {broken[:100]!r}")
        self._structure = found
        _check_local_noise(task, found)
        if self._masked is not None:
            check_coordinates(self._masked, coordinates_of(found, task.parameters))
        work = TrainingTask(
            run_id=task.run_id,
            round=task.round,
            attempt=task.attempt,
            base_version=task.base_version,
            model=with_personal(model, personal, parameters=task.parameters),
            training=task.training,
            parameters=task.parameters,
            algorithm=task.algorithm,
            **self._privacy_of(task),
        )
        if task.kind is TaskKind.EVALUATE:
            return Evaluate(task, work)
        if not _has_controls(task):
            return Train(task, work)
        _check_control_variate(task, found)
        return PullControls(task, work)

    def controls_pulled(
        self, action: PullControls, *, own: Mapping[str, Tensor] | None, server: Mapping[str, Tensor] | None
    ) -> Train:
        """Takes the two control variates, the server's as it was sent; None stands for zeros."""
        mine, theirs = own_control(own, action.work), server_control(server, action.work)
        return Train(action.task, replace(action.work, control=mine, server_control=theirs))

    def trained(self, action: Train, result: TrainingResult, *, key: bytes) -> SendUpdate | Aggregate:
        """Takes what the trainer returned; raises TrainerError if it cannot be sent.

        `key` is 32 bytes of `os.urandom`, for the noise of this update alone.
        """
        if is_masked(action.task):
            if self._masked is None:
                raise UsageError("a masked run's task is reviewed before its model is pulled")
            return Aggregate(action.task, self._masked, masked_update(result, action.work, self._masked))
        if not isinstance(action.work.privacy, NoPrivacy):
            return SendUpdate(action.task, protected_update(result, action.work, key=key))
        update = update_of(result, action.work.model, parameters=action.work.parameters)
        return SendUpdate(action.task, completed(update, result, action.work))

    def sent(self, task: Task) -> Claim:
        """Takes the server's receipt."""
        self._done = task.task_id
        return Claim()

    def refused(self, task: Task, error: ServerError) -> Claim | Finish:
        """Takes a refusal of finished work: late or repeated work is no fault, anything else raises the error."""
        if isinstance(error, RunFinishedError):
            return Finish(error.detail)
        if isinstance(error, RoundClosedError | AlreadySubmittedError):
            self._done = task.task_id
            return Claim()
        raise error

    def _privacy_of(self, task: Task) -> dict[str, Any]:
        if not _is_private(task):
            return {}
        if self._reviewed is None:
            raise UsageError("a private run's task is reviewed before its model is pulled")
        spec = self._reviewed.spec
        return {
            "privacy": spec.privacy,
            "num_rounds": spec.num_rounds,
            "max_participations": num_participations(spec),
        }

    def _check_task(self, task: Task) -> None:
        if task.run_id != self._run_id:
            raise UntrustedAnswerError(f"the server answered a claim for {self._run_id} with a task of another run")
        if _DIGEST.fullmatch(task.model_digest) is None:
            raise UntrustedAnswerError("the task's model_digest is not sha256: and 64 hexadecimal digits")
        numbers = (task.base_version, task.round, task.attempt, task.max_num_bytes)
        if not all(0 <= number <= MAX_EXACT_INTEGER for number in numbers):
            raise UntrustedAnswerError("the task's version, round, attempt or size cannot be")
        if not 0 < task.model_num_bytes <= self._max_model_bytes:
            raise UntrustedAnswerError(
                f"the task announces a model of {task.model_num_bytes} bytes; at most {self._max_model_bytes} are taken"
            )


def is_masked(task: Task) -> bool:
    """Tells whether a task's update goes into a masked session."""
    return task.kind is TaskKind.TRAIN and not isinstance(task.secure_aggregation, NoSecureAggregation)


def is_protected(task: Task) -> bool:
    """Tells whether noise or masks protect what a task's client sends."""
    return _is_private(task) or is_masked(task)


def _is_private(task: Task) -> bool:
    return not isinstance(task.privacy, NoPrivacy)


def _check_local_noise(task: Task, model: Structure) -> None:
    travelling = (
        math.prod(shape)
        for name, (dtype, shape) in model.items()
        if dtype in FLOAT_FORMATS and task.parameters.travels(name)
    )
    try:
        check_local_parameters(task.privacy, sum(travelling))
    except ProblemError as error:
        raise UntrustedAnswerError(f"the server should have refused its model: {error.detail}") from None


def _has_controls(task: Task) -> bool:
    return task.kind is TaskKind.TRAIN and isinstance(task.algorithm, ScaffoldAlgorithm)


def _check_control_variate(task: Task, model: Structure) -> None:
    named = task.control_variate
    if named is None:
        return
    sent = {CONTROL_PREFIX + name: spec for name, spec in control_structure(model, task.parameters).items()}
    if _DIGEST.fullmatch(named.digest) is None or not 0 < named.num_bytes <= max_file_bytes(sent):
        raise UntrustedAnswerError(
            f"the task announces a control variate of {named.num_bytes} bytes and the digest {named.digest[:80]!r}; "
            f"at most {max_file_bytes(sent)} bytes and sha256: with 64 hexadecimal digits are taken"
        )
