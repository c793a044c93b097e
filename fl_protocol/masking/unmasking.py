"""The server's last steps: from shares to secrets, from secrets to the masks that are left in a sum, and off with them.

Only the sum over all survivors is ever unmasked. A wrong share is told by the digest that its dealer announced, and
whoever sent it is named; the session goes on as long as enough right ones are left (privacy.md 3.6, 3.9).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fl_protocol.masking import keys, messages, shamir
from fl_protocol.masking.cohort import Cohort, is_mask_subtracted
from fl_protocol.masking.errors import MessageError, ShareError
from fl_protocol.masking.keys import Secret
from fl_protocol.masking.messages import Kind, ShareRecord, UnmaskShare
from fl_protocol.masking.prg import Mask

ShareDigests = Mapping[tuple[int, int], tuple[bytes, bytes]]
"""(dealer, receiver) -> the digests of the seed's share and of the key's share, as the dealer announced them."""


@dataclass(frozen=True, slots=True)
class BadShare:
    """A share that is not what its dealer announced, and who sent it."""

    responder: int
    dealer: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Collected:
    """The right shares by dealer and responder, and the wrong ones.

    A dealer that stayed is in `seeds`, one that vanished after its shares in `keys`, each even when it has none yet.
    """

    seeds: dict[int, dict[int, Secret]] = field(repr=False)
    keys: dict[int, dict[int, Secret]] = field(repr=False)
    bad: tuple[BadShare, ...]

    def lacking(self, threshold: int) -> list[int]:
        """Names the members whose secret has fewer right shares than it takes."""
        return sorted(
            dealer for secrets in (self.seeds, self.keys) for dealer, has in secrets.items() if len(has) < threshold
        )


def share_digests(uploads: Mapping[int, Iterable[ShareRecord]]) -> ShareDigests:
    """Gives the digests that dealers announced, of the records that each of them uploaded."""
    return {
        (dealer, record.peer): (record.seed_digest, record.key_digest)
        for dealer, records in uploads.items()
        for record in records
    }


def check_dealing(records: Sequence[ShareRecord], *, member: int, cohort: Cohort) -> None:
    """Raises MessageError if a member's share records are not one for each of its neighbours."""
    receivers = tuple(record.peer for record in records)
    if receivers != cohort.neighbours[member]:
        odd = sorted(set(receivers) ^ set(cohort.neighbours[member]))
        raise MessageError(
            "shares",
            value=len(receivers),
            bound=cohort.graph.degree,
            what=f"{len(receivers)} records; one for each of {cohort.graph.degree} neighbours is right, "
            f"and member {odd[0] if odd else member} is missing or none",
        )


def inbox(uploads: Mapping[int, Iterable[ShareRecord]], *, member: int) -> bytes:
    """Writes what the dealers in U2 have sealed for one member, each record under its sender's number."""
    received = (
        ShareRecord(dealer, record.nonce, record.ciphertext, record.seed_digest, record.key_digest)
        for dealer, records in uploads.items()
        for record in records
        if record.peer == member
    )
    return messages.render_share_records(received)


def check_answer(
    answer: Sequence[UnmaskShare],
    *,
    member: int,
    cohort: Cohort,
    shared: Collection[int],
    survivors: Collection[int],
) -> None:
    """Raises MessageError if an unmask message is not one share, of the right kind, of each neighbour in U2."""
    expected = cohort.expected_kinds(member, shared=shared, survivors=survivors)
    given = {share.member: share.kind for share in answer}
    if given == expected:
        return
    odd = min(peer for peer in given.keys() | expected.keys() if given.get(peer) != expected.get(peer))
    right = f"of kind {expected[odd]}" if odd in expected else "not at all"
    raise MessageError(
        "unmask",
        value=given.get(odd),
        bound=expected.get(odd),
        what=f"the share of member {odd} is expected {right}, and is {given.get(odd, 'missing')}",
    )


def collect(
    answers: Mapping[int, Iterable[UnmaskShare]],
    *,
    digests: ShareDigests,
    cohort: Cohort,
    shared: Collection[int],
    survivors: Collection[int],
) -> Collected:
    """Sorts the responders' shares by whose secret they are of, and the wrong ones out."""
    seeds: dict[int, dict[int, Secret]] = {member: {} for member in survivors}
    private_keys: dict[int, dict[int, Secret]] = {member: {} for member in shared if member not in seeds}
    bad = []
    for responder, shares in sorted(answers.items()):
        for given in shares:
            into = (seeds if given.kind is Kind.SEED else private_keys).get(given.member)
            if into is None or not _is_announced(given, responder=responder, digests=digests, cohort=cohort):
                bad.append(BadShare(responder, given.member, given.kind))
            else:
                into[responder] = given.share
    return Collected(seeds, private_keys, tuple(bad))


def masks_of_sum(collected: Collected, *, cohort: Cohort) -> tuple[Mask, ...]:
    """Gives the masks that are left in the sum of the survivors' vectors: to be removed, in any order.

    Those are each survivor's own mask, and each survivor's masks with neighbours that vanished after they had dealt
    their shares. Raises ShareError naming a member whose secret lacks shares, or whose shares join to another key than
    the one in the roster: then that member dealt wrong ones.
    """
    own = [_self_mask(member, shares, cohort=cohort) for member, shares in sorted(collected.seeds.items())]
    pairs = [
        mask
        for member, shares in sorted(collected.keys.items())
        for mask in _pair_masks(member, shares, cohort=cohort, survivors=collected.seeds)
    ]
    return (*own, *pairs)


def _is_announced(given: UnmaskShare, *, responder: int, digests: ShareDigests, cohort: Cohort) -> bool:
    announced = digests.get((given.member, responder))
    if announced is None:
        return False
    found = messages.share_digest(
        given.kind, given.share, session_id=cohort.session_id, sender=given.member, receiver=responder
    )
    return found == announced[0 if given.kind is Kind.SEED else 1]


def _self_mask(member: int, shares: Mapping[int, Secret], *, cohort: Cohort) -> Mask:
    seed = _join(member, shares, cohort=cohort)
    return Mask(keys.self_mask_key(seed, session_id=cohort.session_id, member=member))


def _pair_masks(
    member: int, shares: Mapping[int, Secret], *, cohort: Cohort, survivors: Collection[int]
) -> Iterable[Mask]:
    private_key = _join(member, shares, cohort=cohort)
    members = cohort.roster.members
    peers = {peer: members[peer].mask_key for peer in cohort.neighbours[member] if peer in survivors}
    if keys.agreement_public_key(private_key) != members[member].mask_key:
        raise ShareError(
            "unmask",
            value=member,
            bound=members[member].mask_key.hex(),
            what=f"the shares of member {member} join to another key than the one in the roster",
        )
    for peer, secret in keys.agree(private_key, peers, field="roster.mask_key").items():
        key = keys.pair_mask_key(secret, session_id=cohort.session_id, member=member, peer=peer)
        yield Mask(key, is_subtracted=is_mask_subtracted(peer, member))


def _join(member: int, shares: Mapping[int, Secret], *, cohort: Cohort) -> bytearray:
    try:
        return shamir.join(shares, threshold=cohort.graph.threshold)
    except ShareError as error:
        raise ShareError(
            "unmask", value=member, bound=cohort.graph.threshold, what=f"of member {member}: {error}"
        ) from error
