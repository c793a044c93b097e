"""What a run promises about its clients' data, in sentences that hold: derived of its specification, never declared.

A sentence names who may collude, who is trusted and how few a sum may have. Nothing here says that data is private.
"""

import math
from dataclasses import dataclass
from typing import Final, assert_never

from fl_protocol.masking.graph import CORRUPT_SHARE, MAX_COMPLETE, graph_of
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
from fl_protocol.specs.protection import NoPrivacy, NoSecureAggregation
from fl_protocol.specs.secure_aggregation import (
    Choices,
    HelperSecureAggregation,
    IdentityTrust,
    Masking,
    PairwiseSecureAggregation,
    SecureAggregation,
    min_members,
    target_members,
)

CLEAR: Final = (
    "The operator and anyone with its database sees every update.",
    "Updates can reveal training data.",
)
NO_BOUND: Final = "The published models promise nothing."

_PASSIVE: Final = (
    "so this protects against a passive operator, a stolen database, backup or log and a later subpoena of what is "
    "stored, and not against an operator who invents clients."
)
_TRUST: Final[dict[IdentityTrust, str]] = {
    "server": f"Whose key is whose the server says (identity_trust server), {_PASSIVE}",
    "tofu": f"Whose key is whose the server says the first time (identity_trust tofu), {_PASSIVE}",
    "pinned": (
        "Whose key is whose each client has on a list of its own (identity_trust pinned), so that as far as those "
        "lists are right the operator cannot invent clients."
    ),
    "ca": (
        "Whose key is whose an authority certifies (identity_trust ca), so that the operator cannot invent clients, "
        "unless it is that authority or has it on its side."
    ),
}


class Promise(ResponseMessage):
    """What a run promises about its clients' data: which preset it is, null for none of them, and honest sentences.

    It follows from the run's specification alone. Of a masked run `min_members` is the fewest clients of whom the
    server learns a sum, `tolerated_colluders` how many members of any of its sessions may help the server (null with
    helpers, on whom it depends instead), and `identity_trust` who says which client is whose; null for a run without
    masks.
    """

    preset: str | None
    sentences: list[str]
    min_members: int | None = None
    tolerated_colluders: int | None = None
    identity_trust: IdentityTrust | None = None


@dataclass(frozen=True, slots=True)
class Colluders:
    """How many of a session's members may collude with the server, whatever its size, and how many are hidden then.

    Those who collude know their own updates, so that of a sum at least `num_hidden` updates stay unknown together.
    """

    tolerated: int
    num_hidden: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of a promise as its sentences have them, or the names of the numbers."""

    budget: str
    min_members: str = ""
    colluders: str = ""
    num_hidden: str = ""
    honest_share: str = ""
    has_sparse_sessions: bool = False


def colluders_of(spec: Choices) -> Colluders:
    """Gives what the sessions of a masked run tolerate, the worst of the sizes that they may have."""
    fewest, most = min_members(spec), target_members(spec)
    sizes = [*range(fewest, min(most, MAX_COMPLETE) + 1)]
    if most > MAX_COMPLETE:
        # In sparse graphs both numbers grow with the session.
        sizes.append(max(fewest, MAX_COMPLETE + 1))
    graphs = [graph_of(size) for size in sizes]
    survivors = [max(fewest, graph.quorum) for graph in graphs]
    tolerated = min(graph.tolerated_colluders for graph in graphs)
    return Colluders(tolerated, min(survivors) - tolerated)


def figures_of(spec: Choices) -> Figures:
    """Gives a run's own numbers."""
    budget = _budget(spec.privacy)
    if isinstance(spec.secure_aggregation, NoSecureAggregation):
        return Figures(budget)
    if isinstance(spec.secure_aggregation, HelperSecureAggregation):
        return Figures(budget, min_members=str(min_members(spec)))
    colluders, privacy = colluders_of(spec), spec.privacy
    share = privacy.assumed_colluders if isinstance(privacy, DistributedSkellamPrivacy) else 0.0
    return Figures(
        budget=budget,
        min_members=str(min_members(spec)),
        colluders=str(colluders.tolerated),
        num_hidden=str(colluders.num_hidden),
        honest_share=f"{1 - share:.4g}",
        has_sparse_sessions=target_members(spec) > MAX_COMPLETE,
    )


def sentences_of(masked: SecureAggregation, privacy: Privacy, figures: Figures) -> tuple[str, ...]:
    """Says what a run with such masks and such noise promises, and what it does not."""
    match masked:
        case NoSecureAggregation():
            return _of_single_updates(privacy, figures)
        case PairwiseSecureAggregation():
            return (*_of_sums(masked, figures), *_of_noised_sums(masked, privacy, figures))
        case HelperSecureAggregation():
            return (*_of_helpers(masked, figures), *_of_noised_sums(masked, privacy, figures))
        case _:
            assert_never(masked)


def _of_single_updates(privacy: Privacy, figures: Figures) -> tuple[str, ...]:
    match privacy:
        case NoPrivacy():
            return (*CLEAR, NO_BOUND)
        case CentralGaussianPrivacy() | CentralGaussianAdaptivePrivacy() | CentralBltPrivacy():
            return (
                *CLEAR,
                _published(figures),
                "The operator is trusted to clip each update and to add the noise.",
            )
        case LocalLaplacePrivacy() | LocalGaussianPrivacy():
            return (
                (
                    "Each update is noised before it leaves its client: each message itself is differentially private, "
                    f"and those of one client in the run together are {figures.budget}-differentially private against "
                    "everyone, the operator too, counted per client identity and not per person."
                ),
                "They are very noisy: with many parameters little can be learnt from them.",
            )
        case ExampleDpsgdPrivacy():
            return (
                "The operator and anyone with its database sees every update.",
                (
                    f"Each client trains with DP-SGD, which is {figures.budget}-differentially private for each of its "
                    "training examples against everyone, the operator too, but not for a person with many of them."
                ),
                "What was spent the client accounts for itself, and the server cannot check it.",
            )
        case DistributedSkellamPrivacy():
            raise ValueError("noise that clients share protects no single update: such a run has masks")
        case _:
            assert_never(privacy)


def _of_sums(masked: PairwiseSecureAggregation, figures: Figures) -> tuple[str, ...]:
    sparse = (
        f"In sessions of more than {MAX_COMPLETE} members each masks with a part of the others: up to "
        f"{CORRUPT_SHARE:.0%} of them may collude, but for a chance of 2^-40, as long as the server does not choose "
        "the order of the members."
    )
    return (
        (
            f"The server learns only the sum over a session of at least {figures.min_members} clients (and who took "
            f"part), as long as at most {figures.colluders} of a session's members collude with it and client "
            "identities are not forged."
        ),
        f"Those who collude know their own updates, so that at least {figures.num_hidden} are hidden among each other.",
        *([sparse] if figures.has_sparse_sessions else []),
        _TRUST[masked.identity_trust],
    )


def _of_helpers(masked: HelperSecureAggregation, figures: Figures) -> tuple[str, ...]:
    names = ", ".join(helper.name for helper in masked.helpers)
    rosters = (
        "Each helper has a list of its own of whose key is whose (identity_trust pinned), so that as far as the list "
        "of one honest helper is right the operator cannot invent clients."
    )
    return (
        (
            f"The server learns only the sum over at least {figures.min_members} clients of a round (and who took "
            f"part), unless it works together with every one of the run's helpers ({names})."
        ),
        "Clients that work with it know their own updates, and only the others are hidden among each other.",
        rosters if masked.identity_trust == "pinned" else _TRUST["server"],
        "Who the helpers are the server says, unless a client was given a helper's key by another way.",
    )


def _of_noised_sums(masked: Masking, privacy: Privacy, figures: Figures) -> tuple[str, ...]:
    match privacy:
        case NoPrivacy():
            return ("The sum itself may reveal information.", NO_BOUND)
        case CentralGaussianPrivacy() | CentralGaussianAdaptivePrivacy() | CentralBltPrivacy():
            return (
                _published(figures),
                "The operator is trusted to add the noise; it sees exact session sums, which may reveal information.",
            )
        case DistributedSkellamPrivacy():
            invented = (
                " Clients that the operator invents add none: against that operator this does not hold."
                if masked.identity_trust in ("server", "tofu")
                else ""
            )
            return (
                "Each client adds its share of the noise before its update is masked, so that even the operator sees "
                f"only noisy sums: what it sees and all published models are {figures.budget}-differentially private, "
                f"counted per client identity and not per person, if at least {figures.honest_share} of the clients "
                "in each sum are real, add their noise and tell nobody what it was, and the masks hold." + invented,
            )
        case LocalLaplacePrivacy() | LocalGaussianPrivacy() | ExampleDpsgdPrivacy():
            raise ValueError(f"privacy.kind {privacy.kind!r} does not go with masks")
        case _:
            assert_never(privacy)


def _published(figures: Figures) -> str:
    return (
        f"The published models are {figures.budget}-differentially private, counted per client identity and not per "
        "person."
    )


def _budget(privacy: Privacy) -> str:
    if isinstance(privacy, NoPrivacy):
        return ""
    delta = getattr(privacy, "delta", None)
    epsilon = f"epsilon {_shown(privacy.target_epsilon)}"
    return f"({epsilon})" if delta is None else f"({epsilon}, delta {_shown(delta)})"


def _shown(value: float) -> str:
    """Gives a number with as many digits as it needs; `:g` would round a budget."""
    return str(int(value)) if math.floor(value) == value and value < 1e15 else repr(value)
