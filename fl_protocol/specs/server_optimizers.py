"""How the aggregated delta becomes a step of the global model."""

from typing import Annotated, Literal

from pydantic import Field

from fl_protocol.messages import RequestMessage


class SgdServerOptimizer(RequestMessage):
    """Steps along the mean delta; momentum above 0 gives FedAvgM (Hsu et al. 2019)."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
