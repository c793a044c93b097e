"""A client owner's privacy policy, read from a TOML file and enforced before anything is trained.

```toml
max_epsilon = 4.0
max_delta = 1e-6
allowed_kinds = ["central_gaussian", "central_blt"]
min_cohort = 20
unit = "client"
trusted = ["nobody", "server"]
secure_aggregation = "required"
min_session_members = 10
allowed_identity_trust = ["pinned", "ca"]
require_complete_graph = true
```
"""

import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import Field, ValidationError

from client_sdk.errors import PolicyError, UsageError, printable
from fl_protocol.faults import describe_fault
from fl_protocol.masking.graph import MAX_COMPLETE
from fl_protocol.messages import RequestMessage
from fl_protocol.privacy_claims import PrivacyUnit, Trust, promise_of
from fl_protocol.runs import RunSpec
from fl_protocol.specs.protection import NoPrivacy
from fl_protocol.specs.secure_aggregation import (
    MAX_SESSION_MEMBERS,
    IdentityTrust,
    Masking,
    PairwiseSecureAggregation,
    target_members,
)

MAX_POLICY_BYTES: Final = 64 << 10

PrivacyKind = Literal[
    "none",
    "central_gaussian",
    "central_gaussian_adaptive",
    "central_blt",
    "local_laplace",
    "local_gaussian",
    "distributed_skellam",
    "example_dpsgd",
]

_PRIVATE: Final[tuple[PrivacyKind, ...]] = (
    "central_gaussian",
    "central_gaussian_adaptive",
    "central_blt",
    "local_laplace",
    "local_gaussian",
    "distributed_skellam",
    "example_dpsgd",
)

_TRUSTS: Final[tuple[IdentityTrust, ...]] = get_args(IdentityTrust)


class PrivacyPolicy(RequestMessage):
    """What a client's owner demands of every run that the client takes part in; what is left out is not demanded.

    `max_epsilon` and `max_delta` bound what a whole run may cost this client, by the run's promise and by the client's
    own count. `allowed_kinds` are `privacy.kind`s, by default all that promise something, so that even an empty policy
    refuses `none`. `min_cohort` is the fewest updates that a published model may mix (`round.min_updates`). `unit` is
    whose data must be hidden, `trusted` on whose honesty that may depend.

    With `secure_aggregation` "required" the server must not see single updates, by pairwise masks or by helpers. A
    masked run's sums must have at least `min_session_members` (by its `min_members`), an `identity_trust` among
    `allowed_identity_trust`, and with `require_complete_graph` pairwise sessions have so few members that everybody
    masks with everybody.
    """

    max_epsilon: Annotated[float, Field(gt=0)] | None = None
    max_delta: Annotated[float, Field(ge=0, lt=1)] | None = None
    allowed_kinds: tuple[PrivacyKind, ...] = Field(default=_PRIVATE, min_length=1, strict=False)
    min_cohort: Annotated[int, Field(ge=1)] = 1
    unit: Annotated[PrivacyUnit | None, Field(strict=False)] = None
    trusted: tuple[Annotated[Trust, Field(strict=False)], ...] = Field(default=tuple(Trust), min_length=1, strict=False)
    secure_aggregation: Literal["optional", "required"] = "optional"
    min_session_members: Annotated[int, Field(ge=3, le=MAX_SESSION_MEMBERS)] = 3
    allowed_identity_trust: tuple[IdentityTrust, ...] = Field(default=_TRUSTS, min_length=1, strict=False)
    require_complete_graph: bool = False


def load_policy(path: Path) -> PrivacyPolicy:
    """Reads a policy file; raises UsageError naming the file, the field and what would be right."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_POLICY_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the policy file cannot be read: {error}") from None
    if len(text) > MAX_POLICY_BYTES:
        raise UsageError(f"{path} has more than {MAX_POLICY_BYTES} bytes, too many for a policy")
    try:
        document = tomllib.loads(text.decode())
        return PrivacyPolicy.model_validate(document)
    except ValidationError as error:
        fault = describe_fault(error.errors(include_url=False)[0], document)
        raise UsageError(printable(f"{path}: {fault}")) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(printable(f"{path} is not TOML: {error}")) from None


def check_policy(policy: PrivacyPolicy, spec: RunSpec, *, epsilon: float) -> None:
    """Raises PolicyError naming the first demand that a run does not meet.

    `epsilon` is what this client will have spent after the update in question, by its own count; infinite is refused by
    any `max_epsilon`.
    """
    _check_promise(policy, spec)
    _check_secure_aggregation(policy, spec)
    privacy = spec.privacy
    if not isinstance(privacy, NoPrivacy):
        _check_largest(policy.max_epsilon, privacy.target_epsilon, field="max_epsilon", what="privacy.target_epsilon")
        delta = getattr(privacy, "delta", 0.0)
        _check_largest(policy.max_delta, delta, field="max_delta", what="privacy.delta")
        _check_largest(
            policy.max_epsilon, epsilon, field="max_epsilon", what="this client's epsilon after one more update"
        )
    smallest = spec.round.min_updates
    if smallest < policy.min_cohort:
        raise PolicyError(
            f"policy.min_cohort {policy.min_cohort} is more than {spec.round.min_updates_field} {smallest}, the fewest "
            "updates of which the run makes a model",
            field="min_cohort",
            value=smallest,
            bound=policy.min_cohort,
        )


def _check_promise(policy: PrivacyPolicy, spec: RunSpec) -> None:
    kind = spec.privacy.kind
    if kind not in policy.allowed_kinds:
        raise PolicyError(
            f"policy.allowed_kinds {', '.join(policy.allowed_kinds)} does not hold the run's privacy.kind {kind!r}",
            field="allowed_kinds",
            value=kind,
            bound=policy.allowed_kinds,
        )
    promise = promise_of(spec.privacy)
    unit, trust = (None, None) if promise is None else (promise[0], promise[2])
    if policy.unit is not None and unit is not policy.unit:
        raise PolicyError(
            f"policy.unit {policy.unit.value!r} is not what privacy.kind {kind!r} protects, which is "
            f"{'nothing' if unit is None else f'one {unit.value}'}",
            field="unit",
            value=unit,
            bound=policy.unit,
        )
    if trust is not None and trust not in policy.trusted:
        raise PolicyError(
            f"policy.trusted {', '.join(policy.trusted)} does not hold {trust.value!r}, on whose honesty privacy.kind "
            f"{kind!r} depends",
            field="trusted",
            value=trust,
            bound=policy.trusted,
        )


def _check_secure_aggregation(policy: PrivacyPolicy, spec: RunSpec) -> None:
    masked = spec.secure_aggregation
    if not isinstance(masked, Masking):
        if policy.secure_aggregation == "required":
            raise PolicyError(
                f"policy.secure_aggregation 'required' is not what the run's secure_aggregation.kind {masked.kind!r} "
                "is: the server would see this client's update",
                field="secure_aggregation",
                value=masked.kind,
                bound="required",
            )
        return
    if masked.min_members < policy.min_session_members:
        raise PolicyError(
            f"policy.min_session_members {policy.min_session_members} is more than secure_aggregation.min_members "
            f"{masked.min_members}, the fewest clients of which the server learns a sum",
            field="min_session_members",
            value=masked.min_members,
            bound=policy.min_session_members,
        )
    if masked.identity_trust not in policy.allowed_identity_trust:
        raise PolicyError(
            f"policy.allowed_identity_trust {', '.join(policy.allowed_identity_trust)} does not hold the run's "
            f"secure_aggregation.identity_trust {masked.identity_trust!r}",
            field="allowed_identity_trust",
            value=masked.identity_trust,
            bound=policy.allowed_identity_trust,
        )
    most = target_members(spec) if isinstance(masked, PairwiseSecureAggregation) else 0
    if policy.require_complete_graph and most > MAX_COMPLETE:
        raise PolicyError(
            f"policy.require_complete_graph is not met: the run's sessions have up to {most} members, and above "
            f"{MAX_COMPLETE} not everybody masks with everybody (secure_aggregation.target_members)",
            field="require_complete_graph",
            value=most,
            bound=MAX_COMPLETE,
        )


def _check_largest(bound: float | None, value: float, *, field: str, what: str) -> None:
    if bound is not None and not value <= bound:
        raise PolicyError(
            f"policy.{field} {bound:g} is less than {what} {value:g}", field=field, value=value, bound=bound
        )
