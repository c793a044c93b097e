"""What does not go with buffered rounds: whatever needs a cohort that starts together from one model."""

from typing import Final, Protocol

from fl_protocol.messages import RequestMessage
from fl_protocol.specs.evaluation import EvaluationSpec
from fl_protocol.specs.rounds import AnyRoundSpec, BufferedRoundSpec
from fl_protocol.specs.staleness import ConstantStaleness
from fl_protocol.specs.strategies import MeanStrategy, Strategy

_REASONS: Final = {
    "selection": ("open", "a buffer has no cohort to draw: clients come when they have finished"),
    "algorithm": ("fedavg", "its updates are defined for clients that start from one model"),
}
"""The one kind of each choice that works in buffers, and why no other does."""


class Choices(Protocol):
    """What a RunSpec has of the choices that not every kind of works in buffers."""

    @property
    def round(self) -> AnyRoundSpec: ...

    @property
    def selection(self) -> RequestMessage: ...

    @property
    def strategy(self) -> Strategy: ...

    @property
    def algorithm(self) -> RequestMessage: ...

    @property
    def evaluation(self) -> EvaluationSpec: ...


def check_buffering(spec: Choices) -> None:
    """Raises ValueError naming the field of a buffered run that needs synchronous rounds, and what would work."""
    if not isinstance(spec.round, BufferedRoundSpec):
        return
    for name, (works, reason) in _REASONS.items():
        kind = getattr(spec, name).kind
        if kind != works:
            raise ValueError(f"{name}.kind {kind!r} needs synchronous rounds: {reason}; take {works!r}")
    _check_discount(spec.round, spec.strategy)
    if spec.evaluation.quarantine is not None:
        raise ValueError(
            "evaluation.quarantine needs synchronous rounds: it judges a version before anyone trains from it, and in "
            "a buffered run the next updates are under way by then; leave it out, and use POST .../rollback"
        )


def _check_discount(round_: BufferedRoundSpec, strategy: Strategy) -> None:
    if isinstance(strategy, MeanStrategy) or isinstance(round_.staleness, ConstantStaleness):
        return
    raise ValueError(
        f"round.staleness.kind {round_.staleness.kind!r} discounts the terms of a sum, and strategy.kind "
        f"{strategy.kind!r} is none; take 'constant', with round.max_staleness as the bound, or strategy.kind 'mean'"
    )
