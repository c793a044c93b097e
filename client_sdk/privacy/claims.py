"""Holds what a server says of a run's privacy against the run's specification and against this client's own count."""

import heapq
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from client_sdk.errors import PrivacyBudgetError, PrivacyClaimError, UsageError
from client_sdk.privacy.history import LedgerHead, Participations
from client_sdk.privacy.policy import PrivacyPolicy, check_policy
from fl_protocol.privacy.accounting import delta_of, epsilon_spent
from fl_protocol.privacy.shared_noise import SumSizes
from fl_protocol.privacy_claims import PrivacyClaim, PrivacyUnit, Trust, promise_of
from fl_protocol.runs import RunSpec
from fl_protocol.specs.privacy import DistributedSkellamPrivacy, ExampleDpsgdPrivacy, num_participations
from fl_protocol.specs.protection import NoPrivacy
from fl_protocol.specs.secure_aggregation import min_members, target_members
from fl_protocol.tasks import Task, TaskKind

_ROUNDING: Final = 1e-9
"""Two processors' accountants may differ by so much, relatively."""


@dataclass(frozen=True, slots=True)
class Spending:
    """What the task's update costs this client, by its own count, with all that it sent in the run before."""

    epsilon: float
    delta: float
    unit: PrivacyUnit


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A task that this client may do: the run's specification with its noise multiplier, and what the update costs.

    `promise` is what must stay as it is for the rest of the run; `spending` is None in a run without privacy.
    """

    spec: RunSpec
    promise: Mapping[str, Any]
    ledger: LedgerHead
    spending: Spending | None = None


def review(task: Task, spec: RunSpec, known: Participations, *, policy: PrivacyPolicy | None) -> Reviewed:
    """Checks that a task keeps the run's promise and meets this client's policy.

    Raises PolicyError, PrivacyClaimError, PrivacyBudgetError, or UsageError where dp-accounting is not installed.
    """
    _check_same_run(task, spec)
    if isinstance(spec.privacy, NoPrivacy):
        reviewed = Reviewed(spec, {}, known.ledger)
    else:
        reviewed = _review_private(task, spec, known)
    if policy is not None:
        check_policy(policy, spec, epsilon=reviewed.spending.epsilon if reviewed.spending is not None else math.inf)
    return reviewed


def recounted(task: Task, reviewed: Reviewed, known: Participations) -> Spending | None:
    """Counts anew what a reviewed task's update costs, as it must where the update may leave more than once.

    Raises PrivacyBudgetError if the run's promise does not cover it once more.
    """
    return None if reviewed.spending is None else _spending(task, reviewed.spec, known)


def check_still_private(known: Participations) -> None:
    """Raises PrivacyClaimError for a task without privacy in a run that has promised this client some."""
    if known.promise is not None:
        raise _mismatch("privacy", "none", known.promise, what="a run keeps what it promised, and it promised")


def _check_same_run(task: Task, spec: RunSpec) -> None:
    for field in ("privacy", "encoding", "algorithm", "parameters", "secure_aggregation"):
        told, declared = getattr(task, field), getattr(spec, field)
        if told != declared:
            raise _mismatch(field, told, declared, what="the run's specification has")


def _review_private(task: Task, spec: RunSpec, known: Participations) -> Reviewed:
    if task.kind is not TaskKind.TRAIN:
        raise _mismatch("kind", task.kind.value, TaskKind.TRAIN.value, what="a private run has a budget only to")
    claim = task.privacy_claim
    if claim is not None:
        _check_claim(claim, spec)
        _check_ledger(claim, known.ledger)
    elif not isinstance(spec.privacy, ExampleDpsgdPrivacy):
        raise _mismatch("privacy_claim", None, "a claim", what="a private run needs")
    spec = _with_multiplier(spec, claim)
    promise = _promise(spec)
    _check_kept(promise, known.promise)
    seen = known.ledger if claim is None else LedgerHead(claim.ledger_head, claim.ledger_length)
    return Reviewed(spec, promise, seen, _spending(task, spec, known))


def _check_claim(claim: PrivacyClaim, spec: RunSpec) -> None:
    unit, adjacency, trust = promise_of(spec.privacy) or (None, None, None)
    privacy = spec.privacy
    expected = {
        "unit": unit,
        "adjacency": adjacency,
        "trust": trust,
        "target_epsilon": getattr(privacy, "target_epsilon", None),
        "delta": getattr(privacy, "delta", None),
        "max_participations": num_participations(spec),
        "min_separation": spec.selection.min_separation,
        "num_rounds": spec.num_rounds,
    }
    multiplier = getattr(privacy, "noise_multiplier", None)
    if multiplier is not None:
        expected["noise_multiplier"] = multiplier
    for field, declared in expected.items():
        told = getattr(claim, field)
        if told != declared:
            raise _mismatch(field, told, declared, what="the run's specification has")


def _check_ledger(claim: PrivacyClaim, seen: LedgerHead) -> None:
    if claim.ledger_length < seen.length:
        raise _mismatch(
            "ledger_length", claim.ledger_length, seen.length, what="an older copy of the ledger: this client has seen"
        )
    if claim.ledger_length == seen.length and claim.ledger_head != seen.head:
        raise _mismatch(
            "ledger_head", claim.ledger_head, seen.head, what=f"after {seen.length} entries this client has seen"
        )


def _check_kept(promise: Mapping[str, Any], kept: Mapping[str, Any] | None) -> None:
    for field, before in ({} if kept is None else kept).items():
        if promise.get(field) != before:
            raise _mismatch(field, promise.get(field), before, what="a run keeps what it promised, and it promised")


def _promise(spec: RunSpec) -> dict[str, Any]:
    return {
        "privacy": spec.privacy.model_dump(mode="json"),
        "max_participations": num_participations(spec),
        "min_separation": spec.selection.min_separation,
        "num_rounds": spec.num_rounds,
    }


def _with_multiplier(spec: RunSpec, claim: PrivacyClaim | None) -> RunSpec:
    """Gives the specification with the multiplier that the server calibrated; what that costs is computed here."""
    privacy = spec.privacy
    if claim is None or isinstance(privacy, NoPrivacy | ExampleDpsgdPrivacy) or privacy.noise_multiplier is not None:
        return spec
    if claim.noise_multiplier is None:
        raise _mismatch("noise_multiplier", None, "a number", what=f"privacy.kind {privacy.kind!r} needs")
    calibrated = privacy.model_copy(update={"noise_multiplier": claim.noise_multiplier})
    return spec.model_copy(update={"privacy": calibrated})


def _spending(task: Task, spec: RunSpec, known: Participations) -> Spending:
    unit, _, trust = promise_of(spec.privacy) or (PrivacyUnit.CLIENT, None, Trust.SERVER)
    target = getattr(spec.privacy, "target_epsilon", math.inf)
    if isinstance(spec.privacy, ExampleDpsgdPrivacy) or task.privacy_claim is None:
        # What the updates cost is the trainer's own account; it trains no further than the target.
        return Spending(target, delta_of(spec), unit)
    told = _checked_count(task.privacy_claim, known, trust=trust)
    composed = _composed(spec, told + 1, num_rounds=task.round, sums=_largest_sums(spec, known, told))
    yours = task.privacy_claim.epsilon_yours
    if yours < composed * (1 - _ROUNDING):
        raise _mismatch("epsilon_yours", yours, composed, what=f"{told + 1} updates with this noise come to")
    mine = max(known.num_counting_after(task.task_id, each_message=trust is Trust.NOBODY), told + 1)
    most = num_participations(spec)
    if mine > most:
        raise PrivacyBudgetError(
            f"this would be the client's update number {mine} by its own count, and the run promised that at most "
            f"max_participations {most} are made",
            field="max_participations",
            value=mine,
            bound=most,
        )
    # Where nobody's word is trusted a message counts by itself: under masks, unless it is known to be in no sum.
    spending = max(known.num_counting_after(task.task_id, each_message=trust is not Trust.SERVER), told + 1)
    epsilon = _composed(spec, spending, num_rounds=task.round, sums=known.sums)
    if epsilon > target * (1 + _ROUNDING):
        raise PrivacyBudgetError(
            f"after this update the client will have spent epsilon {epsilon:g} by its own count of {spending} updates, "
            f"and the run promised target_epsilon {target:g}",
            field="target_epsilon",
            value=epsilon,
            bound=target,
        )
    return Spending(epsilon, delta_of(spec), unit)


def _checked_count(claim: PrivacyClaim, known: Participations, *, trust: Trust) -> int:
    """Gives how many updates the server says count; in abandoned rounds they cost nothing if the server adds noise."""
    excused = claim.num_abandoned if trust is Trust.SERVER else 0
    if claim.num_participations + excused < known.num_accepted:
        raise _mismatch(
            "num_participations",
            claim.num_participations,
            known.num_accepted,
            what=f"besides {excused} in abandoned rounds; this client holds receipts for",
        )
    return claim.num_participations


def _largest_sums(spec: RunSpec, known: Participations, told: int) -> SumSizes | None:
    """Gives the largest sums in which so many of this client's updates can be, with its next one in the smallest.

    A server that knows which they are cannot come to less.
    """
    if not isinstance(spec.privacy, DistributedSkellamPrivacy):
        return None
    largest = heapq.nlargest(told, known.sums.elements())
    unknown = [target_members(spec)] * (told - len(largest))
    return Counter((*largest, *unknown, min_members(spec)))


def _composed(spec: RunSpec, count: int, *, num_rounds: int, sums: SumSizes | None) -> float:
    try:
        return epsilon_spent(spec, num_participations=count, num_rounds=num_rounds, sums=sums)
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from None


def _mismatch(field: str, told: object, known: object, *, what: str) -> PrivacyClaimError:
    return PrivacyClaimError(
        f"the server's {field} is {_shown(told)}; {what} {_shown(known)}", field=field, value=told, bound=known
    )


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)[:160]
