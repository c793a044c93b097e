"""What a run promises about each client's data: who adds which noise, and the budget that it may cost.

Every kind but `none` and `example_dpsgd` protects one client identity (the unit): whoever sees all models that the run
publishes learns hardly more than if that client's updates had been zero throughout (the adjacency "zero-out"). The
noise multiplier is the noise's standard deviation over the sensitivity; where it is null, it is calibrated to the
budget when the run is created, and shown.
"""

from typing import Annotated, Final, Literal, Protocol, assert_never

from pydantic import Discriminator, Field, Tag

from fl_protocol.messages import RequestMessage, kind_or
from fl_protocol.specs.algorithms import Algorithm
from fl_protocol.specs.evaluation import EvaluationSpec
from fl_protocol.specs.protection import NoPrivacy
from fl_protocol.specs.rounds import AnyRoundSpec, BufferedRoundSpec
from fl_protocol.specs.selection import PoissonSelection, SelectionSpec
from fl_protocol.specs.strategies import MeanStrategy, Strategy

MAX_LOCAL_PARAMETERS: Final = 10_000
"""The most parameters for which noise in each message is offered without `i_understand`."""

Epsilon = Annotated[float, Field(gt=0, le=1e6)]
Delta = Annotated[float, Field(gt=0, le=1e-2)]
ClippingNorm = Annotated[float, Field(ge=1e-9, le=1e9)]
NoiseMultiplier = Annotated[float, Field(ge=1e-2, le=1e4)]


class _Budgeted(RequestMessage):
    """What the whole run may cost each client at most, and the noise that was calibrated to it or chosen."""

    target_epsilon: Epsilon
    delta: Delta
    noise_multiplier: NoiseMultiplier | None = None


class CentralGaussianPrivacy(_Budgeted):
    """The server clips each update (L2) and adds Gaussian noise to the integer sum: it is trusted with both."""

    kind: Literal["central_gaussian"]
    clipping_norm: ClippingNorm = 1.0


class CentralGaussianAdaptivePrivacy(_Budgeted):
    """As `central_gaussian`, with a clipping norm that follows a quantile of the updates' norms (Andrew et al. 2021).

    `count_stddev` is the noise of the count of updates that were not clipped, null for a twentieth of the quorum.
    """

    kind: Literal["central_gaussian_adaptive"]
    initial_clipping_norm: ClippingNorm = 0.1
    min_clipping_norm: ClippingNorm = 1e-3
    max_clipping_norm: ClippingNorm = 1e3
    target_unclipped_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    clip_learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    count_stddev: Annotated[float, Field(ge=1e-3, le=1e4)] | None = None


class CentralBltPrivacy(_Budgeted):
    """As `central_gaussian`, with noise that later rounds take back in part (DP-FTRL with a buffered linear Toeplitz).

    It covers `num_rounds` rounds in which a client takes part at most `selection.max_participations` times, with
    `selection.min_separation` rounds between. Denisov et al. 2022; Dvijotham et al. 2024; McMahan et al. 2024.
    """

    kind: Literal["central_blt"]
    clipping_norm: ClippingNorm = 1.0


class LocalLaplacePrivacy(RequestMessage):
    """Each client clips its update in the L1 norm and adds Laplace noise before it leaves; nobody need be trusted."""

    kind: Literal["local_laplace"]
    target_epsilon: Epsilon
    noise_multiplier: NoiseMultiplier | None = None
    clipping_norm: ClippingNorm = 1.0
    i_understand: bool = False


class LocalGaussianPrivacy(_Budgeted):
    """Each client clips its update in the L2 norm and adds Gaussian noise before it leaves; nobody need be trusted."""

    kind: Literal["local_gaussian"]
    clipping_norm: ClippingNorm = 1.0
    i_understand: bool = False


class DistributedSkellamPrivacy(_Budgeted):
    """Each client adds its share of the noise (Skellam) to its clipped update before it is masked (privacy.md 4.8).

    The shares of the fewest clients that a sum may have (`min_survivors`), less those of `assumed_colluders` of them,
    make the noise that `noise_multiplier` says. `min_survivors` null: `round.min_updates` where one session takes the
    whole cohort, else `secure_aggregation.min_members`. `max_parameters` bounds what is trained: it makes the grid.
    """

    kind: Literal["distributed_skellam"]
    clipping_norm: ClippingNorm = 1.0
    assumed_colluders: Annotated[float, Field(ge=0, le=0.3)] = 0.1
    min_survivors: Annotated[int, Field(ge=3, le=1000)] | None = None
    max_parameters: Annotated[int, Field(ge=1, le=2**32)] = 2**24


class ExampleDpsgdPrivacy(RequestMessage):
    """Each client trains with DP-SGD, which protects each of its examples from everyone; what it spent, it says itself.

    The noise multiplier is the client's: it calibrates it to the budget, its number of examples and the rounds.
    """

    kind: Literal["example_dpsgd"]
    target_epsilon: Epsilon
    delta: Delta
    max_grad_norm: ClippingNorm = 1.0


CentralPrivacy = CentralGaussianPrivacy | CentralGaussianAdaptivePrivacy | CentralBltPrivacy
"""The kinds whose noise the server adds to the sum."""

LocalPrivacy = LocalLaplacePrivacy | LocalGaussianPrivacy
"""The kinds whose noise each client adds to its update, against everyone who reads that."""

NoisedByClients = LocalPrivacy | DistributedSkellamPrivacy
"""The kinds whose cost is spent as soon as something arrives, whether or not a model comes of it."""

Privacy = Annotated[
    Annotated[NoPrivacy, Tag("none")]
    | Annotated[CentralGaussianPrivacy, Tag("central_gaussian")]
    | Annotated[CentralGaussianAdaptivePrivacy, Tag("central_gaussian_adaptive")]
    | Annotated[CentralBltPrivacy, Tag("central_blt")]
    | Annotated[LocalLaplacePrivacy, Tag("local_laplace")]
    | Annotated[LocalGaussianPrivacy, Tag("local_gaussian")]
    | Annotated[DistributedSkellamPrivacy, Tag("distributed_skellam")]
    | Annotated[ExampleDpsgdPrivacy, Tag("example_dpsgd")],
    Discriminator(kind_or("none")),
]
"""What a run promises about its clients' data."""


class Choices(Protocol):
    """What a RunSpec has of the choices that a promise depends on."""

    @property
    def num_rounds(self) -> int: ...

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


def check_privacy(spec: Choices) -> None:
    """Raises ValueError naming the field that would break a private run's promise, and what would keep it."""
    privacy = spec.privacy
    match privacy:
        case NoPrivacy():
            return
        case (
            CentralGaussianPrivacy()
            | CentralGaussianAdaptivePrivacy()
            | CentralBltPrivacy()
            | DistributedSkellamPrivacy()
        ):
            _check_delta(privacy.delta, spec)
            _check_counted_rounds(spec)
            _check_noised_sum(spec)
        case LocalLaplacePrivacy():
            _check_counted_rounds(spec)
        case LocalGaussianPrivacy():
            _check_delta(privacy.delta, spec)
            _check_counted_rounds(spec)
        case ExampleDpsgdPrivacy():
            pass
        case _:
            assert_never(privacy)
    _check_nothing_else_is_released(spec)


def num_participations(spec: Choices) -> int:
    """Gives in how many rounds one client's updates may count at most."""
    return min(spec.num_rounds, spec.selection.max_participations or spec.num_rounds)


def _check_delta(delta: float, spec: Choices) -> None:
    selection = spec.selection
    known = selection.population if isinstance(selection, PoissonSelection) else None
    population = max(known or 0, spec.round.cohort_size)
    if delta * population >= 1:
        raise ValueError(
            f"privacy.delta {delta:g} must be below 1 in {population} clients ({1 / population:g}): a mechanism with "
            "that delta may publish one client's data whole; take 1e-6, or a tenth of 1 in all your clients"
        )


def _check_counted_rounds(spec: Choices) -> None:
    if isinstance(spec.round, BufferedRoundSpec):
        raise ValueError(
            f"privacy.kind {spec.privacy.kind!r} counts a client's rounds, and a buffer may count a client again and "
            "again; it needs round.kind 'synchronous'"
        )


def _check_noised_sum(spec: Choices) -> None:
    kind, strategy = spec.privacy.kind, spec.strategy
    if not isinstance(strategy, MeanStrategy):
        raise ValueError(
            f"privacy.kind {kind!r} adds noise to a sum of clipped updates; it needs strategy.kind 'mean', "
            f"not {strategy.kind!r}"
        )
    if strategy.weighting != "uniform":
        raise ValueError(
            f"privacy.kind {kind!r} needs strategy.weighting 'uniform': a client that chooses its weight "
            "could outweigh the noise"
        )
    for name in ("max_share", "max_update_norm"):
        if getattr(strategy, name) is not None:
            raise ValueError(f"strategy.{name} has no use in a private run, which clips each update; leave it out")


def _check_nothing_else_is_released(spec: Choices) -> None:
    kind = spec.privacy.kind
    if spec.algorithm.kind != "fedavg":
        raise ValueError(
            f"algorithm.kind {spec.algorithm.kind!r} sends more than the clipped update, and privacy.kind {kind!r} "
            "has no budget for it; take 'fedavg'"
        )
    if spec.evaluation.every:
        raise ValueError(
            f"evaluation.every {spec.evaluation.every} would publish what clients measure on their own data, and "
            f"privacy.kind {kind!r} has no budget for it; leave it 0 and evaluate on data that is not theirs"
        )
