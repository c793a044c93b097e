"""What a private run's server tells each client of the run's promise, and of what that client has spent of it."""

from enum import StrEnum
from typing import Annotated, assert_never

from pydantic import Field, FiniteFloat

from fl_protocol.messages import ResponseMessage
from fl_protocol.specs.privacy import (
    CentralBltPrivacy,
    CentralGaussianAdaptivePrivacy,
    CentralGaussianPrivacy,
    DistributedSkellamPrivacy,
    ExampleDpsgdPrivacy,
    LocalGaussianPrivacy,
    LocalLaplacePrivacy,
    Privacy,
)
from fl_protocol.specs.protection import NoPrivacy

Spent = Annotated[FiniteFloat, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class PrivacyUnit(StrEnum):
    """Whose presence a promise hides: one client identity with all its data, or one example of one client."""

    CLIENT = "client"
    EXAMPLE = "example"


class Trust(StrEnum):
    """Who must be honest for a promise to hold besides the client itself.

    The server that adds the noise; a share of the other clients, which add it together; or nobody.
    """

    SERVER = "server"
    CLIENTS = "clients"
    NOBODY = "nobody"


class Adjacency(StrEnum):
    """Between which two worlds a promise hides the difference.

    A client's updates all being zero instead, a client being there or not, or one input standing for any other.
    """

    ZERO_OUT = "zero_out"
    ADD_OR_REMOVE_ONE = "add_or_remove_one"
    REPLACE_ONE = "replace_one"


class PrivacyClaim(ResponseMessage):
    """A run's promise to one client, and what that client will have spent of it after the task's update.

    `num_participations` is how many of this client's updates count before this task: those in a round that was not
    abandoned, and with noise added by the client every accepted one. `num_abandoned` is how many accepted ones are in
    no model and cost nothing. `epsilon_spent` is the run's own total before this task. `delta` is null for a promise
    without one (Laplace). `ledger_length` counts the entries of which `ledger_head` is the last one's hash (null when
    there are none): a head of fewer entries than a client has seen is an older copy's.
    """

    unit: PrivacyUnit
    adjacency: Adjacency
    trust: Trust
    target_epsilon: Spent
    delta: Annotated[FiniteFloat, Field(gt=0, lt=1)] | None
    epsilon_spent: Spent
    epsilon_yours: Spent
    noise_multiplier: Annotated[FiniteFloat, Field(gt=0)] | None
    num_participations: Count
    max_participations: Count
    min_separation: Count
    num_rounds: Count
    num_abandoned: Count = 0
    ledger_head: Annotated[str, Field(max_length=200)] | None = None
    ledger_length: Count = 0


def promise_of(privacy: Privacy) -> tuple[PrivacyUnit, Adjacency, Trust] | None:
    """Gives what a kind of privacy protects, from which difference, and who is trusted; None for no promise."""
    match privacy:
        case NoPrivacy():
            return None
        case CentralGaussianPrivacy() | CentralGaussianAdaptivePrivacy() | CentralBltPrivacy():
            return PrivacyUnit.CLIENT, Adjacency.ZERO_OUT, Trust.SERVER
        case DistributedSkellamPrivacy():
            return PrivacyUnit.CLIENT, Adjacency.ZERO_OUT, Trust.CLIENTS
        case LocalLaplacePrivacy() | LocalGaussianPrivacy():
            return PrivacyUnit.CLIENT, Adjacency.REPLACE_ONE, Trust.NOBODY
        case ExampleDpsgdPrivacy():
            return PrivacyUnit.EXAMPLE, Adjacency.ADD_OR_REMOVE_ONE, Trust.NOBODY
        case _:
            assert_never(privacy)
