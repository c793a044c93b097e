"""Which algorithm clients and server follow together, beyond averaging: what travels with an update, and its weight."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from fl_protocol.messages import RequestMessage, kind_or

MAX_LOCAL_STEPS = 2**31
"""The largest number of local steps that an update may report."""


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
