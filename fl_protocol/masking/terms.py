"""Whether a client may take part with those whom the server shows it (rule C2 of privacy.md 3.8)."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fl_protocol.masking import keys, messages
from fl_protocol.masking.cohort import Cohort
from fl_protocol.masking.errors import GraphError, RefusalError
from fl_protocol.masking.messages import Advertise, Roster


@dataclass(frozen=True, slots=True)
class Terms:
    """What a client insists on: the round's context and sizes by its manifest, and whom it knows by its own lists.

    `known` maps client identifiers to identity keys: those of a pinned list, those that an authority has certified, or
    those met before. With `must_know_all` nobody else may be in a session, and in any case `min_known_peers` of the
    others must be known. `must_be_complete` refuses the sparse graphs of large sessions.
    """

    context: bytes
    min_members: int
    max_members: int
    known: Mapping[bytes, bytes] = field(default_factory=dict)
    must_know_all: bool = False
    min_known_peers: int = 0
    must_be_complete: bool = False


def accept_roster(data: bytes, *, own: Advertise, terms: Terms) -> tuple[Cohort, int]:
    """Reads a roster and gives the session that it makes and the client's place in it.

    Raises MessageError for bytes that are no roster, RefusalError for one that the client must refuse.
    """
    roster = messages.parse_roster(data)
    _check_size(roster, terms)
    index = _own_place(roster, own)
    _check_duplicates(roster)
    _check_identities(roster, own=own, terms=terms)
    _check_signatures(roster, terms)
    return _cohort(roster, terms), index


def _check_size(roster: Roster, terms: Terms) -> None:
    count = len(roster.members)
    if not terms.min_members <= count <= terms.max_members:
        raise RefusalError(
            "C2",
            "roster.n",
            value=count,
            bound=(terms.min_members, terms.max_members),
            what=f"{count} members; the round's sessions have {terms.min_members} to {terms.max_members}",
        )


def _own_place(roster: Roster, own: Advertise) -> int:
    for index, member in enumerate(roster.members):
        if member == own:
            return index
    raise RefusalError(
        "C2", "roster", value=own.client_id.hex(), bound=None, what="this client's own record is missing or was changed"
    )


def _check_duplicates(roster: Roster) -> None:
    members = roster.members
    _check_unique("client_id", (member.client_id for member in members))
    _check_unique("identity_key", (member.identity_key for member in members))
    # Of two uses of one key the server could learn one secret by asking for the other.
    _check_unique("share_key or mask_key", (key for member in members for key in (member.share_key, member.mask_key)))


def _check_unique(name: str, values: Iterable[bytes]) -> None:
    value, count = Counter(values).most_common(1)[0]
    if count > 1:
        raise RefusalError(
            "C2", f"roster.{name}", value=value.hex(), bound=1, what=f"{value.hex()} is there {count} times"
        )


def _check_identities(roster: Roster, *, own: Advertise, terms: Terms) -> None:
    num_known = 0
    for member in roster.members:
        known = terms.known.get(member.client_id)
        if known != member.identity_key and (known is not None or (terms.must_know_all and member != own)):
            raise RefusalError(
                "C2",
                "roster.identity_key",
                value=member.identity_key.hex(),
                bound=None if known is None else known.hex(),
                what=f"the identity key of client {member.client_id.hex()} is not the one that is known for it",
            )
        num_known += known is not None and member != own
    if num_known < terms.min_known_peers:
        raise RefusalError(
            "C2",
            "roster",
            value=num_known,
            bound=terms.min_known_peers,
            what=f"{num_known} of the others are known; at least {terms.min_known_peers} must be",
        )


def _check_signatures(roster: Roster, terms: Terms) -> None:
    for index, member in enumerate(roster.members):
        message = messages.advertise_message(member, context=terms.context)
        if not keys.is_signed(member.identity_key, message, member.signature):
            raise RefusalError(
                "C2",
                "roster.signature",
                value=index,
                bound=None,
                what=f"member {index} did not sign its keys for this round's manifest",
            )


def _cohort(roster: Roster, terms: Terms) -> Cohort:
    try:
        cohort = Cohort.of(roster, context=terms.context)
    except GraphError as error:
        raise RefusalError("C2", "roster.n", value=error.value, bound=error.bound, what=str(error)) from error
    if roster.threshold != cohort.graph.threshold:
        raise RefusalError(
            "C2",
            "roster.t",
            value=roster.threshold,
            bound=cohort.graph.threshold,
            what=f"a threshold of {roster.threshold}; {len(roster.members)} members have {cohort.graph.threshold}",
        )
    if terms.must_be_complete and not cohort.graph.is_complete:
        raise RefusalError(
            "C2",
            "roster.n",
            value=len(roster.members),
            bound=None,
            what=f"{len(roster.members)} members mask by a sparse graph; this client insists on the complete one",
        )
    return cohort
