"""How the updates of a round become one delta."""

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from fl_protocol.attributes import AttributeName
from fl_protocol.messages import RequestMessage, kind_or

MAX_WEIGHT = 2**29
"""The largest weight whose product with a float32 is exact in float64 (24 + 29 = 53 bits)."""

MAX_COMPARED_UPDATES = 1024
"""The most updates that a strategy compares pairwise: the matrix of their inner products then takes 8 MiB."""

NumByzantine = Annotated[int, Field(ge=0, le=MAX_COMPARED_UPDATES)]
MaxWeight = Annotated[int, Field(ge=1, le=MAX_WEIGHT)]


class InverseStratumSizeWeighting(RequestMessage):
    """Every stratum of a client attribute weighs the same, shared alike by the updates that came from it."""

    kind: Literal["inverse_stratum_size"] = "inverse_stratum_size"
    attribute: AttributeName


def _kind_of_weighting(value: object) -> str:
    return value if isinstance(value, str) else kind_or("")(value)


Weighting = Annotated[
    Annotated[Literal["num_examples"], Tag("num_examples")]
    | Annotated[Literal["uniform"], Tag("uniform")]
    | Annotated[InverseStratumSizeWeighting, Tag("inverse_stratum_size")],
    Discriminator(_kind_of_weighting),
]


class MaxUpdateNorm(RequestMessage):
    """The largest L2 norm of an update, over all its floating-point tensors together.

    `reject` refuses a larger update when it arrives; `clip` scales it down to the norm when the round is aggregated.
    """

    kind: Literal["clip", "reject"]
    norm: Annotated[float, Field(ge=1e-30, le=1e30)]


class _Bounded(RequestMessage):
    """What every strategy checks of an update before it combines it."""

    max_abs_delta: Annotated[float, Field(gt=0, le=1e30)] = 1024.0
    max_update_norm: MaxUpdateNorm | None = None


class MeanStrategy(_Bounded):
    """The weighted mean of the deltas (FedAvg), as an exact integer sum."""

    kind: Literal["mean"] = "mean"
    weighting: Weighting = "num_examples"
    max_weight: MaxWeight = 1_000_000
    max_share: Annotated[float, Field(gt=0, le=1)] | None = None


class MedianStrategy(_Bounded):
    """The median of each coordinate (Yin et al. 2018); every update counts the same."""

    kind: Literal["median"]


class TrimmedMeanStrategy(_Bounded):
    """The mean of each coordinate without its largest and smallest values (Yin et al. 2018).

    Every update counts the same. Of n updates floor(trim_fraction * n) are left out on each side.
    """

    kind: Literal["trimmed_mean"]
    trim_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.2

    def num_trimmed(self, num_updates: int) -> int:
        """Gives how many values are left out on each side; the fraction is the decimal number that it is written as."""
        return int(Decimal(repr(self.trim_fraction)) * num_updates)


class KrumStrategy(_Bounded):
    """The one update that is closest to its n - num_byzantine - 2 nearest others (Blanchard et al. 2017)."""

    kind: Literal["krum"]
    num_byzantine: NumByzantine


class MultiKrumStrategy(_Bounded):
    """The plain mean of the num_selected updates with the best Krum scores (Blanchard et al. 2017)."""

    kind: Literal["multi_krum"]
    num_byzantine: NumByzantine
    num_selected: Annotated[int, Field(ge=1, le=MAX_COMPARED_UPDATES)]


class BulyanStrategy(_Bounded):
    """Krum picks n - 2 num_byzantine updates; of each coordinate the values nearest their median are averaged.

    El Mhamdi et al. 2018, "The Hidden Vulnerability of Distributed Learning in Byzantium".
    """

    kind: Literal["bulyan"]
    num_byzantine: NumByzantine


class GeometricMedianStrategy(_Bounded):
    """The geometric median of whole updates by the smoothed Weiszfeld algorithm (RFA, Pillutla et al. 2022).

    `smoothing` is the distance, in the model's own units, below which an update's weight grows no further.
    """

    kind: Literal["geometric_median"]
    weighting: Literal["num_examples", "uniform"] = "num_examples"
    max_weight: MaxWeight = 1_000_000
    num_iterations: Annotated[int, Field(ge=1, le=1000)] = 100
    smoothing: Annotated[float, Field(ge=1e-30, le=1e30)] = 1e-6


ComparingStrategy = KrumStrategy | MultiKrumStrategy | BulyanStrategy | GeometricMedianStrategy
"""The strategies that compare whole updates with each other."""

Strategy = Annotated[
    Annotated[MeanStrategy, Tag("mean")]
    | Annotated[MedianStrategy, Tag("median")]
    | Annotated[TrimmedMeanStrategy, Tag("trimmed_mean")]
    | Annotated[KrumStrategy, Tag("krum")]
    | Annotated[MultiKrumStrategy, Tag("multi_krum")]
    | Annotated[BulyanStrategy, Tag("bulyan")]
    | Annotated[GeometricMedianStrategy, Tag("geometric_median")],
    Discriminator(kind_or("mean")),
]


def exact_share(max_share: float) -> Fraction:
    """Gives a share as the decimal number that was written: 0.4 is two fifths, not the nearest float to it."""
    return Fraction(repr(max_share))


@dataclass(frozen=True, slots=True)
class Combined:
    """What a strategy combines: how many at least and at most, what one of them is, and which field says the least."""

    fewest: int
    most: int
    field: str
    what: str = "update"


def check_strategy(strategy: Strategy, combined: Combined) -> None:
    """Raises ValueError, naming the field, unless a strategy works for whatever a round may have to combine."""
    if isinstance(strategy, MeanStrategy):
        _check_max_share(strategy, combined)
    if isinstance(strategy, TrimmedMeanStrategy):
        _check_trimming(strategy, combined)
    if isinstance(strategy, KrumStrategy | MultiKrumStrategy | BulyanStrategy):
        _check_byzantine(strategy, combined)
    if isinstance(strategy, MultiKrumStrategy):
        _check_selected(strategy, combined)
    if isinstance(strategy, ComparingStrategy) and combined.most > MAX_COMPARED_UPDATES:
        raise ValueError(
            f"strategy.kind {strategy.kind} compares each {combined.what} with every other one, and a round may close "
            f"with {combined.most} {combined.what}s; at most {MAX_COMPARED_UPDATES} can be compared"
        )


def _check_max_share(strategy: MeanStrategy, combined: Combined) -> None:
    fewest = combined.fewest
    if strategy.max_share is None or exact_share(strategy.max_share) * fewest >= 1:
        return
    raise ValueError(
        f"strategy.max_share {strategy.max_share:g} cannot hold: of {combined.field} {fewest} {combined.what}s "
        f"one has at least 1/{fewest} of the total weight; allow at least that much"
    )


def _check_trimming(strategy: TrimmedMeanStrategy, combined: Combined) -> None:
    fewest = combined.fewest
    if strategy.trim_fraction and not strategy.num_trimmed(fewest):
        raise ValueError(
            f"strategy.trim_fraction {strategy.trim_fraction} leaves out none of the {fewest} {combined.what}s "
            f"({combined.field}) with which a round may close; it must be at least 1/{fewest}"
        )


def _check_byzantine(strategy: KrumStrategy | MultiKrumStrategy | BulyanStrategy, combined: Combined) -> None:
    fewest = combined.fewest
    factor = 4 if isinstance(strategy, BulyanStrategy) else 2
    needed = factor * strategy.num_byzantine + 3
    if fewest < needed:
        most = (fewest - 3) // factor
        right = f"num_byzantine may be at most {most}" if most >= 0 else "no num_byzantine is small enough"
        raise ValueError(
            f"strategy.num_byzantine {strategy.num_byzantine} needs at least {factor} * num_byzantine + 3 = {needed} "
            f"{combined.what}s for {strategy.kind}, and a round may close with {fewest} ({combined.field}); "
            f"with so few {right}"
        )


def _check_selected(strategy: MultiKrumStrategy, combined: Combined) -> None:
    fewest = combined.fewest
    most = fewest - strategy.num_byzantine
    if strategy.num_selected > most:
        raise ValueError(
            f"strategy.num_selected {strategy.num_selected} is more than the {most} honest {combined.what}s of a round "
            f"that closes with {fewest} ({combined.field}), of which num_byzantine {strategy.num_byzantine} are not; "
            f"it must be at most {most}"
        )
