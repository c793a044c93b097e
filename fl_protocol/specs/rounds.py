"""How updates become models: in synchronous rounds, or in buffers that take them whenever they come."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from fl_protocol.messages import RequestMessage, kind_or
from fl_protocol.specs.staleness import PolynomialStaleness, StalenessSpec

MAX_COHORT_SIZE = 4096
"""The largest number of updates for which the integer sum keeps the bits that the contract promises."""


class RoundSpec(RequestMessage):
    """Synchronous rounds: how many updates close one, how many clients are asked, and how long they have."""

    min_updates_field: ClassVar[str] = "round.min_updates"
    kind: Literal["synchronous"] = "synchronous"
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


class BufferedRoundSpec(RequestMessage):
    """Buffered asynchronous rounds (FedBuff, Nguyen et al. 2022): every `buffer_size` updates make a model.

    A client may claim a task at any time, at most `concurrency` tasks are out at once, and each has `deadline_seconds`.
    An update made from a model more than `max_staleness` versions older than the one it would be applied to is refused.
    """

    min_updates_field: ClassVar[str] = "round.buffer_size"
    kind: Literal["buffered"] = "buffered"
    buffer_size: Annotated[int, Field(ge=1, le=MAX_COHORT_SIZE)] = 10
    concurrency: Annotated[int, Field(ge=1, le=MAX_COHORT_SIZE)] = Field(default=0, validate_default=False)
    max_staleness: Annotated[int, Field(ge=0, le=1_000_000)] = 20
    staleness: StalenessSpec = PolynomialStaleness()
    deadline_seconds: Annotated[float, Field(ge=0.1, le=30 * 86400)] = 600

    @model_validator(mode="before")
    @classmethod
    def _default_to_twice_the_buffer(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        size = values.get("buffer_size", 10)
        return {"concurrency": min(2 * size, MAX_COHORT_SIZE) if isinstance(size, int) else size} | values

    @property
    def quorum(self) -> int:
        """How many updates close a round."""
        return self.buffer_size

    @property
    def cohort_size(self) -> int:
        """How many clients may be at work for a round."""
        return self.concurrency

    @property
    def min_updates(self) -> int:
        """How many updates a round needs: a buffer is never closed before it is full."""
        return self.buffer_size


AnyRoundSpec = Annotated[
    Annotated[RoundSpec, Tag("synchronous")] | Annotated[BufferedRoundSpec, Tag("buffered")],
    Discriminator(kind_or("synchronous")),
]
"""Synchronous rounds or buffered ones."""
