"""How much an update counts that was made from an older model than the one it is applied to."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from fl_protocol.messages import RequestMessage, kind_or


class ConstantStaleness(RequestMessage):
    """Every update counts in full, however old its model."""

    kind: Literal["constant"] = "constant"


class PolynomialStaleness(RequestMessage):
    """An update that is t versions old counts (1 + t) ** -exponent (FedAsync, Xie et al. 2019; FedBuff: 0.5)."""

    kind: Literal["polynomial"] = "polynomial"
    exponent: Annotated[float, Field(gt=0, le=10)] = 0.5


class HingeStaleness(RequestMessage):
    """An update counts in full up to `threshold` versions, and 1 / (1 + slope * (t - threshold)) beyond (FedAsync)."""

    kind: Literal["hinge"] = "hinge"
    slope: Annotated[float, Field(gt=0, le=1000)] = 1.0
    threshold: Annotated[int, Field(ge=0, le=1_000_000)] = 4


StalenessSpec = Annotated[
    Annotated[PolynomialStaleness, Tag("polynomial")]
    | Annotated[ConstantStaleness, Tag("constant")]
    | Annotated[HingeStaleness, Tag("hinge")],
    Discriminator(kind_or("polynomial")),
]
"""The discount of an update by its staleness."""
