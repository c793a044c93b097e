"""Whether the server sees single updates, or only the sum over a session of clients that mask theirs.

Pairwise masks that cancel in the sum (Bonawitz et al. 2017; Bell et al. 2020 for more than 128 members of a session),
by the protocol `flsa/v1` of docs/privacy/secure-aggregation.md.
"""

import math
from typing import Annotated, Final, Literal, Protocol

from pydantic import Discriminator, Field, Tag

from fl_protocol.masking.graph import graph_of
from fl_protocol.messages import MetricName, RequestMessage, kind_or
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
DEFAULT_SESSION_MEMBERS: Final = 100
DEFAULT_CLIPPING_NORM: Final = 10.0
MIN_COMPARED_SESSIONS: Final = 3
"""Of two sessions that differ nobody can say which one is wrong."""

MaskedPrivacy = CentralGaussianPrivacy | CentralBltPrivacy | DistributedSkellamPrivacy
"""The kinds of privacy that go with masked updates."""

IdentityTrust = Literal["server", "tofu", "pinned", "ca"]
"""Who says which identity key is whose: the server; whoever came first; a list that each client has; an authority."""


class MaskedMetric(RequestMessage):
    """A metric that travels as a masked coordinate, clamped to `max_abs`, and is known only as the session's mean."""

    max_abs: Annotated[float, Field(gt=0, le=1e6)]


class PairwiseSecureAggregation(RequestMessage):
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
    min_members: Annotated[int, Field(ge=3, le=MAX_SESSION_MEMBERS)] = 5
    target_members: Annotated[int, Field(ge=3, le=MAX_SESSION_MEMBERS)] | None = None
    clipping_norm: ClippingNorm | None = None
    max_abs_delta: Annotated[float, Field(ge=1e-9, le=1e9)] | None = None
    max_weight: Annotated[int, Field(ge=1, le=255)] = 100
    examples_per_unit: Annotated[int, Field(ge=1, le=2**40)] = 100
    metrics: Annotated[dict[MetricName, MaskedMetric], Field(max_length=16)] = Field(default_factory=dict)
    enrol_seconds: Annotated[float, Field(ge=0.1, le=86400)] = 120
    phase_seconds: Annotated[float, Field(ge=0.1, le=86400)] = 60
    min_bytes_per_second: Annotated[float, Field(ge=100, le=1e9)] = 125_000


SecureAggregation = Annotated[
    Annotated[NoSecureAggregation, Tag("none")] | Annotated[PairwiseSecureAggregation, Tag("pairwise")],
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
    _check_survivors(spec, masked)


def target_members(spec: Choices) -> int:
    """Gives the most members that a session of a masked run may have."""
    masked = spec.secure_aggregation
    if isinstance(masked, NoSecureAggregation):
        raise ValueError("a run without secure aggregation has no sessions")
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
    if isinstance(masked, PairwiseSecureAggregation) and masked.clipping_norm is not None:
        return masked.clipping_norm
    return privacy.clipping_norm if isinstance(privacy, MaskedPrivacy) else DEFAULT_CLIPPING_NORM


def max_abs_delta(spec: Choices) -> float:
    """Gives the bound to which each element of a masked run's updates is clamped."""
    masked = spec.secure_aggregation
    chosen = masked.max_abs_delta if isinstance(masked, PairwiseSecureAggregation) else None
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
    if isinstance(masked, NoSecureAggregation) or isinstance(spec.strategy, MeanStrategy):
        return Combined(rounds.min_updates, most, rounds.min_updates_field)
    fewest = -(-rounds.min_updates // target_members(spec))
    field = f"{rounds.min_updates_field} over secure_aggregation.target_members"
    return Combined(fewest, -(-most // masked.min_members), field, "session")


def _check_members(spec: Choices, masked: PairwiseSecureAggregation) -> None:
    if isinstance(spec.round, BufferedRoundSpec):
        raise ValueError(
            "secure_aggregation.kind 'pairwise' lets masks cancel between clients that have the same model, and the "
            "updates of a buffer do not; it needs round.kind 'synchronous'"
        )
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
    strategy = spec.strategy
    if not isinstance(strategy, MeanStrategy):
        _check_shards(spec)
    elif strategy.weighting not in ("num_examples", "uniform"):
        raise ValueError(
            "strategy.weighting must be 'num_examples' or 'uniform' with secure_aggregation.kind 'pairwise': weights "
            "are masked, and the server can choose none of them"
        )
    for name in ("max_share", "max_update_norm"):
        if getattr(strategy, name, None) is not None:
            raise ValueError(
                f"strategy.{name} needs single updates, which the server never sees under secure_aggregation.kind "
                "'pairwise'; bound them by secure_aggregation.clipping_norm and max_weight"
            )


def _check_shards(spec: Choices) -> None:
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
    if spec.algorithm.kind != "fedavg":
        raise ValueError(
            f"algorithm.kind {spec.algorithm.kind!r} sends more than the update, in the clear; with "
            "secure_aggregation.kind 'pairwise' take 'fedavg'"
        )
    if spec.evaluation.every:
        raise ValueError(
            f"evaluation.every {spec.evaluation.every} has clients report metrics in the clear; with "
            "secure_aggregation.kind 'pairwise' leave it 0 and name what you need in secure_aggregation.metrics"
        )


def _check_clip(spec: Choices, masked: PairwiseSecureAggregation) -> None:
    privacy = spec.privacy
    if isinstance(privacy, NoPrivacy):
        return
    if not isinstance(privacy, MaskedPrivacy):
        raise ValueError(
            f"privacy.kind {privacy.kind!r} does not go with secure_aggregation.kind 'pairwise'; take "
            "'central_gaussian', 'central_blt', 'distributed_skellam' or 'none'"
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
