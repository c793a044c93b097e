"""How the updates of a round become one delta."""

from typing import Annotated, Literal

from pydantic import Field

from fl_protocol.messages import RequestMessage

MAX_WEIGHT = 2**29
"""The largest weight whose product with a float32 is exact in float64 (24 + 29 = 53 bits)."""


class MeanStrategy(RequestMessage):
    """The weighted mean of the deltas (FedAvg), as an exact integer sum."""

    kind: Literal["mean"] = "mean"
    weighting: Literal["num_examples", "uniform"] = "num_examples"
    max_weight: Annotated[int, Field(ge=1, le=MAX_WEIGHT)] = 1_000_000
    max_abs_delta: Annotated[float, Field(gt=0, le=1e30)] = 1024.0
