"""When a client need not send what it has trained: its change is so small that it can wait for the next round."""

from typing import Annotated, Literal, Protocol

from pydantic import Discriminator, Field, Tag

from fl_protocol.messages import RequestMessage, kind_or
from fl_protocol.specs.algorithms import Algorithm, ScaffoldAlgorithm
from fl_protocol.specs.privacy import Privacy
from fl_protocol.specs.protection import NoPrivacy, NoSecureAggregation
from fl_protocol.specs.secure_aggregation import SecureAggregation
from fl_protocol.specs.strategies import MeanStrategy, Strategy


class NoSkipping(RequestMessage):
    """Every update holds its tensors."""

    kind: Literal["none"] = "none"


class NormSkipping(RequestMessage):
    """An update whose L2 norm is below a bound may be sent without tensors, and counts as zero.

    The client adds what it did not send to its next update. After lazily aggregated gradients (LAG, Chen et al. 2018,
    arXiv 1805.09965) with error feedback (Stich et al. 2018, arXiv 1809.07599).
    """

    kind: Literal["norm"] = "norm"
    below: Annotated[float, Field(gt=0, le=1e30)]


Skipping = Annotated[
    Annotated[NoSkipping, Tag("none")] | Annotated[NormSkipping, Tag("norm")], Discriminator(kind_or("none"))
]


class Choices(Protocol):
    """What a RunSpec has that skipping must go with."""

    @property
    def skipping(self) -> Skipping: ...

    @property
    def strategy(self) -> Strategy: ...

    @property
    def algorithm(self) -> Algorithm: ...

    @property
    def privacy(self) -> Privacy: ...

    @property
    def secure_aggregation(self) -> SecureAggregation: ...


def check_skipping(spec: Choices) -> None:
    """Raises ValueError naming the field that skipping does not go with, and what would work."""
    if isinstance(spec.skipping, NoSkipping):
        return
    if not isinstance(spec.privacy, NoPrivacy):
        raise _refused(
            f"privacy.kind {spec.privacy.kind!r}",
            "whether a client skips depends on its data, and whoever sees the size of what it sends would know",
        )
    if not isinstance(spec.secure_aggregation, NoSecureAggregation):
        raise _refused(
            f"secure_aggregation.kind {spec.secure_aggregation.kind!r}",
            "a masked vector is as long as every other, and one that is missing would tell that its client skipped",
        )
    if not isinstance(spec.strategy, MeanStrategy):
        raise _refused(
            f"strategy.kind {spec.strategy.kind!r}",
            "it compares what clients sent, and those who skipped are exactly alike; take strategy.kind 'mean'",
        )
    if isinstance(spec.algorithm, ScaffoldAlgorithm):
        raise _refused(
            "algorithm.kind 'scaffold'", "a control variate changes with every update; take 'fedavg' or 'fednova'"
        )


def _refused(field: str, reason: str) -> ValueError:
    return ValueError(f"skipping.kind 'norm' does not go with {field}: {reason}")
