"""How many updates close a round, how many clients are asked, and how long they have."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from fl_protocol.messages import RequestMessage

MAX_COHORT_SIZE = 4096
"""The largest number of updates for which the integer sum keeps the bits that the contract promises."""


class RoundSpec(RequestMessage):
    """How many updates close a round, how many clients are asked, and how long they have."""

    quorum: Annotated[int, Field(ge=1, le=MAX_COHORT_SIZE)] = 8
    cohort_size: Annotated[int, Field(ge=1, le=MAX_COHORT_SIZE)] = Field(default=0, validate_default=False)
    min_updates: Annotated[int, Field(ge=1, le=MAX_COHORT_SIZE)] = Field(default=0, validate_default=False)
    deadline_seconds: Annotated[float, Field(ge=0.1, le=30 * 86400)] = 600
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = 3

    @model_validator(mode="before")
    @classmethod
    def _default_to_quorum(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        quorum = values.get("quorum", 8)
        return {"cohort_size": quorum, "min_updates": quorum} | values

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.cohort_size < self.quorum:
            raise ValueError(f"cohort_size {self.cohort_size} must be at least quorum {self.quorum}")
        if self.min_updates > self.quorum:
            raise ValueError(f"min_updates {self.min_updates} must be at most quorum {self.quorum}")
        return self
