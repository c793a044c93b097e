"""Which algorithm clients and server follow together, beyond averaging: what travels with an update, and its weight."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from fl_protocol.messages import RequestMessage, kind_or
from fl_protocol.specs.rounds import AnyRoundSpec
from fl_protocol.specs.strategies import Strategy
from fl_protocol.specs.training import TrainingSpec

MAX_LOCAL_STEPS = 2**31
"""The largest number of local steps that an update may report."""

_ONLY_A_MEAN = "control variates and normalised steps are defined for the mean, and one client's move all others'"


class FedAvgAlgorithm(RequestMessage):
    """Local training and the strategy's mean (McMahan et al. 2017); with `training.proximal_mu` it is FedProx."""

    kind: Literal["fedavg"] = "fedavg"


class ScaffoldAlgorithm(RequestMessage):
    """SCAFFOLD, option II (Karimireddy et al. 2020): control variates on both sides take out client drift.

    `num_clients` is the paper's N: all clients that may take part, not only those of one round.
    """

    kind: Literal["scaffold"] = "scaffold"
    num_clients: Annotated[int, Field(ge=1, le=1_000_000_000)]


class FedNovaAlgorithm(RequestMessage):
    """FedNova (Wang et al. 2020): updates are normalised by the number of local steps that clients report."""

    kind: Literal["fednova"] = "fednova"


Algorithm = Annotated[
    Annotated[FedAvgAlgorithm, Tag("fedavg")]
    | Annotated[ScaffoldAlgorithm, Tag("scaffold")]
    | Annotated[FedNovaAlgorithm, Tag("fednova")],
    Discriminator(kind_or("fedavg")),
]


def check_algorithm(algorithm: Algorithm, *, round_: AnyRoundSpec, strategy: Strategy, training: TrainingSpec) -> None:
    """Raises ValueError naming the field for a choice that the algorithm does not work with."""
    if isinstance(algorithm, FedAvgAlgorithm):
        return
    if strategy.kind != "mean":
        raise ValueError(
            f"strategy.kind {strategy.kind!r} does not go with algorithm.kind {algorithm.kind!r}: {_ONLY_A_MEAN}; "
            "take 'mean', or 'fedavg' with a robust strategy"
        )
    if isinstance(algorithm, ScaffoldAlgorithm):
        _check_scaffold(algorithm, round_=round_, training=training)
    else:
        _check_fednova(training)


def _check_scaffold(algorithm: ScaffoldAlgorithm, *, round_: AnyRoundSpec, training: TrainingSpec) -> None:
    if algorithm.num_clients < round_.cohort_size:
        raise ValueError(
            f"algorithm.num_clients {algorithm.num_clients} is all clients that may take part, so it is at least "
            f"round.cohort_size {round_.cohort_size}"
        )
    if training.proximal_mu != 0:
        raise ValueError(
            f"training.proximal_mu {training.proximal_mu:g} must be 0 with algorithm.kind 'scaffold': its control "
            "variates are means of the loss's own gradients"
        )


def _check_fednova(training: TrainingSpec) -> None:
    shrinkage = training.learning_rate * training.proximal_mu
    if shrinkage >= 1:
        raise ValueError(
            f"training.learning_rate x training.proximal_mu is {shrinkage:g}; below 1 is what algorithm.kind 'fednova' "
            "can normalise"
        )
