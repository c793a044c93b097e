"""What clients are told about local training."""

from typing import Annotated

from pydantic import ConfigDict, Field, JsonValue

from fl_protocol.messages import RequestMessage


class TrainingSpec(RequestMessage):
    """What clients are told about local training; handed to them as it is, further keys included."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    local_epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=1e6)] = 0.05
    proximal_mu: Annotated[float, Field(ge=0, le=1e6)] = 0.0
