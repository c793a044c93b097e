"""Whether the server sees single updates, or only the sum over clients that mask theirs, by the protocol `flsa/v1`.

`pairwise`: masks that cancel in the sum over a session (Bonawitz et al. 2017; Bell et al. 2020 for more than 128
members). `helper`: masks whose sum independent helpers tell the server, docs/privacy/helper-mode.md.
"""

import math
from typing import Annotated, Final, Literal, Protocol, Self

from pydantic import Discriminator, Field, Tag, model_validator

from fl_protocol.masking.graph import graph_of
from fl_protocol.messages import MetricName, Name, RequestMessage, kind_or
from fl_protocol.specs.algorithms import Algorithm
from fl_protocol.specs.evaluation import EvaluationSpec
from fl_protocol.specs.privacy import (
    CentralBltPrivacy,
    CentralGaussianPrivacy,
    ClippingNorm,
    DistributedSkellamPrivacy,
    Privacy,
)
from fl_protocol.specs.protection import NoPrivacy, NoSecureAggregation
from fl_protocol.specs.rounds import AnyRoundSpec, BufferedRoundSpec
from fl_protocol.specs.selection import SelectionSpec, most_updates
from fl_protocol.specs.strategies import Combined, GeometricMedianStrategy, MeanStrategy, Strategy

MAX_SESSION_MEMBERS: Final = 1000
MAX_HELPERS: Final = 8
DEFAULT_SESSION_MEMBERS: Final = 100
DEFAULT_CLIPPING_NORM: Final = 10.0
MIN_COMPARED_SESSIONS: Final = 3
"""Of two sessions that differ nobody can say which one is wrong."""

MaskedPrivacy = CentralGaussianPrivacy | CentralBltPrivacy | DistributedSkellamPrivacy
"""The kinds of privacy that go with masked updates."""

IdentityTrust = Literal["server", "tofu", "pinned", "ca"]
"""Who says which identity key is whose: the server; whoever came first; a list that each client has; an authority."""

HelperTrust = Literal["server", "pinned"]
"""Who says so to a helper: the server, or a list that the helper has."""


class MaskedMetric(RequestMessage):
    """A metric that travels as a masked coordinate, clamped to `max_abs`, and is known only as the session's mean."""

    max_abs: Annotated[float, Field(gt=0, le=1e6)]


class _Masking(RequestMessage):
    """What every kind of masking has.

    Updates are clipped to `clipping_norm` (L2; null: that of `privacy`, or 10) and each element to `max_abs_delta`
    (null: `clipping_norm`), so that the ring's step is known beforehand. The server learns the sum of `min_members`
    clients or more. In a weighted run a client weighs its examples over `examples_per_unit`, between 1 and
    `max_weight`.
    """

    kind: Literal["pairwise", "helper"]
    min_members: Annotated[int, Field(ge=3, le=MAX_SESSION_MEMBERS)] = 5
    clipping_norm: ClippingNorm | None = None
    max_abs_delta: Annotated[float, Field(ge=1e-9, le=1e9)] | None = None
    max_weight: Annotated[int, Field(ge=1, le=255)] = 100
    examples_per_unit: Annotated[int, Field(ge=1, le=2**40)] = 100
    metrics: Annotated[dict[MetricName, MaskedMetric], Field(max_length=16)] = Field(default_factory=dict)


class PairwiseSecureAggregation(_Masking):
    """The server learns the sum over the members of a session who stayed, and who they were; nothing of one of them.

    Updates are clipped to `clipping_norm` (L2; null: that of `privacy`, or 10) and each element to `max_abs_delta`
    (null: `clipping_norm`), so that the ring's step is known beforehand. A session has `min_members` to
    `target_members` (null: `round.cohort_size`, at most 100); a round may have several. In a weighted run a client
    weighs its examples over `examples_per_unit`, between 1 and `max_weight`.

    With a strategy other than the mean each session is a shard: the strategy combines the sessions' means, each of
    which counts the same, and a wrong client spoils one of them.
    """

    kind: Literal["pairwise"]
    identity_trust: IdentityTrust = "server"
    target_members: Annotated[int, Field(ge=3, le=MAX_SESSION_MEMBERS)] | None = None
    enrol_seconds: Annotated[float, Field(ge=0.1, le=86400)] = 120
    phase_seconds: Annotated[float, Field(ge=0.1, le=86400)] = 60
    min_bytes_per_second: Annotated[float, Field(ge=100, le=1e9)] = 125_000


class MaskHelper(RequestMessage):
    """An independent party that tells the server the sum of masks, and never one of them.

    `sealing_key` is the X25519 public key to which clients seal their seeds, `signing_key` the Ed25519 public key with
    which the helper signs its answers; `fedquorum helper keygen` makes both.
    """

    name: Name
    sealing_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    signing_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class HelperSecureAggregation(_Masking):
    """A client sends one message; the server learns the sum over a round's clients, unless all helpers help it.

    Each update is masked with one mask a helper, whose seeds only the helpers can open; a round's clients are added up
    as soon as every helper has told the sum of their masks, within `helper_seconds` of the round's closing. With
    `identity_trust` "pinned" every helper must hold clients against a roster of its own, with "server" it may believe
    the server who they are. `min_members` is what each helper insists on; the other fields are those of `pairwise`.
    """

    kind: Literal["helper"]
    identity_trust: HelperTrust = "pinned"
    helpers: Annotated[list[MaskHelper], Field(min_length=1, max_length=MAX_HELPERS)]
    helper_seconds: Annotated[float, Field(ge=0.1, le=30 * 86400)] = 3600

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        for field in ("name", "sealing_key", "signing_key"):
            values = [getattr(helper, field) for helper in self.helpers]
            again = next((value for place, value in enumerate(values) if value in values[:place]), None)
            if again is not None:
                raise ValueError(
                    f"helpers.{field} {again!r} is there twice; independent helpers have keys and names of their own"
                )
        return self


Masking = PairwiseSecureAggregation | HelperSecureAggregation
"""The kinds that hide single updates from the server."""


SecureAggregation = Annotated[
    Annotated[NoSecureAggregation, Tag("none")]
    | Annotated[PairwiseSecureAggregation, Tag("pairwise")]
    | Annotated[HelperSecureAggregation, Tag("helper")],
    Discriminator(kind_or("none")),
]
"""Whether single updates are masked."""


class Choices(Protocol):
    """What a RunSpec has of the choices that masking depends on."""

    @property
    def round(self) -> AnyRoundSpec: ...

    @property
    def selection(self) -> SelectionSpec: ...

    @property
    def strategy(self) -> Strategy: ...

    @property
    def algorithm(self) -> Algorithm: ...

    @property
    def evaluation(self) -> EvaluationSpec: ...

    @property
    def privacy(self) -> Privacy: ...

    @property
    def secure_aggregation(self) -> SecureAggregation: ...


def check_secure_aggregation(spec: Choices) -> None:
    """Raises ValueError naming the field that cannot go together with masked updates, and what can."""
    masked = spec.secure_aggregation
    if isinstance(masked, NoSecureAggregation):
        if isinstance(spec.privacy, DistributedSkellamPrivacy):
            raise ValueError(
                "privacy.kind 'distributed_skellam' leaves a single update with too little noise: it needs "
                "secure_aggregation.kind 'pairwise', which shows nobody a single update"
            )
        return
    _check_members(spec, masked)
    _check_sum(spec)
    _check_nothing_else_is_sent(spec)
    _check_clip(spec, masked)
    if isinstance(masked, PairwiseSecureAggregation):
        _check_survivors(spec, masked)


def target_members(spec: Choices) -> int:
    """Gives the most members that a session of a masked run may have; with helpers, how many a round adds up."""
    masked = spec.secure_aggregation
    if isinstance(masked, NoSecureAggregation):
        raise ValueError("a run without secure aggregation has no sessions")
    if isinstance(masked, HelperSecureAggregation):
        return most_updates(spec.selection, spec.round)
    return masked.target_members or max(masked.min_members, min(spec.round.cohort_size, DEFAULT_SESSION_MEMBERS))


def min_members(spec: Choices) -> int:
    """Gives the fewest members that a session of a masked run may have, at its beginning and in its sum."""
    masked, privacy = spec.secure_aggregation, spec.privacy
    if isinstance(masked, NoSecureAggregation):
        raise ValueError("a run without secure aggregation has no sessions")
    if not isinstance(privacy, DistributedSkellamPrivacy):
        return masked.min_members
    if privacy.min_survivors is not None:
        return privacy.min_survivors
    is_one_session = target_members(spec) >= spec.round.cohort_size
    return max(masked.min_members, spec.round.min_updates) if is_one_session else masked.min_members


def clipping_norm(spec: Choices) -> float:
    """Gives the L2 norm to which a masked run's updates are clipped."""
    masked, privacy = spec.secure_aggregation, spec.privacy
    if isinstance(masked, Masking) and masked.clipping_norm is not None:
        return masked.clipping_norm
    return privacy.clipping_norm if isinstance(privacy, MaskedPrivacy) else DEFAULT_CLIPPING_NORM


def max_abs_delta(spec: Choices) -> float:
    """Gives the bound to which each element of a masked run's updates is clamped."""
    masked = spec.secure_aggregation
    chosen = masked.max_abs_delta if isinstance(masked, Masking) else None
    return clipping_norm(spec) if chosen is None else chosen


def is_masked(spec: Choices) -> bool:
    """Tells whether the server sees sums of a run's updates only."""
    return not isinstance(spec.secure_aggregation, NoSecureAggregation)


def is_weighted(spec: Choices) -> bool:
    """Tells whether a masked run's updates travel with a masked weight."""
    return isinstance(spec.strategy, MeanStrategy) and spec.strategy.weighting == "num_examples"


def combined_by_strategy(spec: Choices) -> Combined:
    """Gives what a run's strategy combines: single updates, or the means of a round's sessions that hide them.

    A round closes with `round.min_updates`, of which a session has `target_members` at most.
    """
    rounds, masked, most = spec.round, spec.secure_aggregation, most_updates(spec.selection, spec.round)
    if not isinstance(masked, PairwiseSecureAggregation) or isinstance(spec.strategy, MeanStrategy):
        return Combined(rounds.min_updates, most, rounds.min_updates_field)
    fewest = -(-rounds.min_updates // target_members(spec))
    field = f"{rounds.min_updates_field} over secure_aggregation.target_members"
    return Combined(fewest, -(-most // masked.min_members), field, "session")


def _check_members(spec: Choices, masked: Masking) -> None:
    if isinstance(spec.round, BufferedRoundSpec):
        raise ValueError(
            f"secure_aggregation.kind {masked.kind!r} adds up clients that have the same model, and the updates of a "
            "buffer do not; it needs round.kind 'synchronous'"
        )
    if isinstance(masked, HelperSecureAggregation):
        if spec.round.min_updates < masked.min_members:
            raise ValueError(
                f"round.min_updates {spec.round.min_updates} must be at least secure_aggregation.min_members "
                f"{masked.min_members}: no helper tells the masks of fewer"
            )
        return
    if spec.round.cohort_size < masked.min_members:
        raise ValueError(
            f"secure_aggregation.min_members {masked.min_members} is more than round.cohort_size "
            f"{spec.round.cohort_size}: no session could begin"
        )
    if masked.target_members is not None and masked.target_members < masked.min_members:
        raise ValueError(
            f"secure_aggregation.target_members {masked.target_members} must be at least min_members "
            f"{masked.min_members}"
        )


def _check_sum(spec: Choices) -> None:
    strategy, kind = spec.strategy, spec.secure_aggregation.kind
    if not isinstance(strategy, MeanStrategy):
        _check_shards(spec)
    elif strategy.weighting not in ("num_examples", "uniform"):
        raise ValueError(
            f"strategy.weighting must be 'num_examples' or 'uniform' with secure_aggregation.kind {kind!r}: weights "
            "are masked, and the server can choose none of them"
        )
    for name in ("max_share", "max_update_norm"):
        if getattr(strategy, name, None) is not None:
            raise ValueError(
                f"strategy.{name} needs single updates, which the server never sees under secure_aggregation.kind "
                f"{kind!r}; bound them by secure_aggregation.clipping_norm and max_weight"
            )


def _check_shards(spec: Choices) -> None:
    if isinstance(spec.secure_aggregation, HelperSecureAggregation):
        raise ValueError(
            f"strategy.kind {spec.strategy.kind!r} compares updates or the means of several sessions, and under "
            "secure_aggregation.kind 'helper' a round has one sum; it needs 'mean'"
        )
    strategy, sessions = spec.strategy, combined_by_strategy(spec)
    if sessions.fewest < MIN_COMPARED_SESSIONS:
        raise ValueError(
            f"strategy.kind {strategy.kind!r} combines the means of a round's sessions under secure_aggregation.kind "
            f"'pairwise', which hides single updates, and a round may close with {sessions.fewest} of them "
            f"(round.min_updates {spec.round.min_updates} over secure_aggregation.target_members "
            f"{target_members(spec)}); it needs {MIN_COMPARED_SESSIONS}: lower target_members, or take 'mean'"
        )
    if isinstance(strategy, GeometricMedianStrategy) and strategy.weighting != "uniform":
        raise ValueError(
            "strategy.weighting must be 'uniform' for 'geometric_median' with secure_aggregation.kind 'pairwise': each "
            "session counts the same"
        )


def _check_nothing_else_is_sent(spec: Choices) -> None:
    kind = spec.secure_aggregation.kind
    if spec.algorithm.kind != "fedavg":
        raise ValueError(
            f"algorithm.kind {spec.algorithm.kind!r} sends more than the update, in the clear; with "
            f"secure_aggregation.kind {kind!r} take 'fedavg'"
        )
    if spec.evaluation.every:
        raise ValueError(
            f"evaluation.every {spec.evaluation.every} has clients report metrics in the clear; with "
            f"secure_aggregation.kind {kind!r} leave it 0 and name what you need in secure_aggregation.metrics"
        )


def _check_clip(spec: Choices, masked: Masking) -> None:
    privacy = spec.privacy
    if isinstance(privacy, NoPrivacy):
        return
    if isinstance(masked, HelperSecureAggregation) and isinstance(privacy, DistributedSkellamPrivacy):
        raise ValueError(
            "privacy.kind 'distributed_skellam' goes only with secure_aggregation.kind 'pairwise', whose clients sign "
            "how many of them the sum has; with 'helper' take 'central_gaussian', 'central_blt' or 'none'"
        )
    if not isinstance(privacy, MaskedPrivacy):
        skellam = "'distributed_skellam' " if isinstance(masked, PairwiseSecureAggregation) else ""
        raise ValueError(
            f"privacy.kind {privacy.kind!r} does not go with secure_aggregation.kind {masked.kind!r}; take "
            f"'central_gaussian', 'central_blt', {skellam}or 'none'"
        )
    if masked.clipping_norm not in (None, privacy.clipping_norm):
        raise ValueError(
            f"secure_aggregation.clipping_norm {masked.clipping_norm:g} must be privacy.clipping_norm "
            f"{privacy.clipping_norm:g}, or null"
        )
    if masked.metrics:
        raise ValueError(
            f"secure_aggregation.metrics would be published, and privacy.kind {privacy.kind!r} has no budget for them"
        )


def _check_survivors(spec: Choices, masked: PairwiseSecureAggregation) -> None:
    """Noise that counts on the clients needs enough of them, and masks that hold against as many as may collude."""
    privacy, most = spec.privacy, min(target_members(spec), spec.round.cohort_size)
    if not isinstance(privacy, DistributedSkellamPrivacy):
        return
    if privacy.min_survivors is not None and not masked.min_members <= privacy.min_survivors <= most:
        raise ValueError(
            f"privacy.min_survivors {privacy.min_survivors} must be at least secure_aggregation.min_members "
            f"{masked.min_members} and at most the {most} members that a session may have (target_members, "
            "round.cohort_size)"
        )
    most = target_members(spec)
    tolerated, colluding = graph_of(most).tolerated_colluders, math.floor(privacy.assumed_colluders * most)
    if colluding > tolerated:
        raise ValueError(
            f"privacy.assumed_colluders {privacy.assumed_colluders:g} are {colluding} of the {most} members of a "
            f"session, whose masks hold against {tolerated}; take at most {tolerated / most:.4g}"
        )
