"""How the updates of a round become one delta."""

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from fl_protocol.attributes import AttributeName
from fl_protocol.messages import RequestMessage, kind_or
from fl_protocol.specs.rounds import RoundSpec

MAX_WEIGHT = 2**29
"""The largest weight whose product with a float32 is exact in float64 (24 + 29 = 53 bits)."""


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


class MeanStrategy(RequestMessage):
    """The weighted mean of the deltas (FedAvg), as an exact integer sum."""

    kind: Literal["mean"] = "mean"
    weighting: Weighting = "num_examples"
    max_weight: Annotated[int, Field(ge=1, le=MAX_WEIGHT)] = 1_000_000
    max_share: Annotated[float, Field(gt=0, le=1)] | None = None
    max_abs_delta: Annotated[float, Field(gt=0, le=1e30)] = 1024.0


def exact_share(max_share: float) -> Fraction:
    """Gives a share as the decimal number that was written: 0.4 is two fifths, not the nearest float to it."""
    return Fraction(repr(max_share))


def check_max_share(strategy: MeanStrategy, round_: RoundSpec) -> None:
    """Raises ValueError for a largest share that the least number of updates cannot keep."""
    if strategy.max_share is None or exact_share(strategy.max_share) * round_.min_updates >= 1:
        return
    raise ValueError(
        f"strategy.max_share {strategy.max_share:g} cannot hold: of round.min_updates {round_.min_updates} updates one "
        f"has at least 1/{round_.min_updates} of the total weight; allow at least that much"
    )
