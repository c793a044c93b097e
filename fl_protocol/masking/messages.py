"""The messages of a session, byte for byte: records of fixed offsets, counts big-endian, nothing before or behind.

advertise: client_id(16) identity_key(32) share_key(32) mask_key(32) signature(64).
roster: n(4) t(4), then n advertise records; a member is its place in it.
shares: records of peer(4) nonce(12) ciphertext(82) seed_digest(32) key_digest(32), peers rising. In what a member
uploads the peer is who receives the record, in its inbox who sent it.
survivors: a bitmap of ceil(n / 8) bytes, member u at bit u mod 8 of byte u / 8.
consistency: records of member(4) signature(64), members rising.
unmask: records of member(4) kind(1, `b` or `s`) share(33), members rising: one each, so that asking for both shares of
one member cannot be written down.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from fl_protocol.masking.errors import MessageError
from fl_protocol.masking.keys import (
    DIGEST_BYTES,
    KEY_BYTES,
    NONCE_BYTES,
    SIGNATURE_BYTES,
    TAG_BYTES,
    Secret,
    tag,
    tagged_hash,
    u32,
)
from fl_protocol.masking.shamir import SHARE_BYTES, element

CLIENT_ID_BYTES: Final = 16
ADVERTISE_BYTES: Final = CLIENT_ID_BYTES + 3 * KEY_BYTES + SIGNATURE_BYTES
ROSTER_HEAD_BYTES: Final = 8
CIPHERTEXT_BYTES: Final = 2 * SHARE_BYTES + TAG_BYTES
SHARE_RECORD_BYTES: Final = 4 + NONCE_BYTES + CIPHERTEXT_BYTES + 2 * DIGEST_BYTES
SIGNED_RECORD_BYTES: Final = 4 + SIGNATURE_BYTES
UNMASK_RECORD_BYTES: Final = 5 + SHARE_BYTES
MAX_MEMBERS: Final = 10_000
"""No roster is longer, so that no message of a session is without a bound."""


@dataclass(frozen=True, slots=True)
class Advertise:
    """A member's identity and its two fresh public keys, signed by the identity under the round's context."""

    client_id: bytes
    identity_key: bytes
    share_key: bytes
    mask_key: bytes
    signature: bytes

    def render(self) -> bytes:
        return self.client_id + self.identity_key + self.share_key + self.mask_key + self.signature


@dataclass(frozen=True, slots=True)
class Roster:
    """The session's members in their order, and how many shares of a secret join to it."""

    threshold: int
    members: tuple[Advertise, ...]

    def render(self) -> bytes:
        return b"".join((u32(len(self.members)), u32(self.threshold), *(member.render() for member in self.members)))


@dataclass(frozen=True, slots=True)
class ShareRecord:
    """One member's two shares for a peer, sealed, and the digests by which anybody knows them again."""

    peer: int
    nonce: bytes
    ciphertext: bytes
    seed_digest: bytes
    key_digest: bytes

    def render(self) -> bytes:
        return u32(self.peer) + self.nonce + self.ciphertext + self.seed_digest + self.key_digest


class Kind(StrEnum):
    """Whose share an unmask message gives: of a survivor's own mask's seed, or of a dropout's private mask key."""

    SEED = "b"
    KEY = "s"


@dataclass(frozen=True, slots=True)
class UnmaskShare:
    """A share of one of a member's two secrets."""

    member: int
    kind: Kind
    share: Secret = field(repr=False)

    def render(self) -> bytes:
        return u32(self.member) + self.kind.encode("ascii") + self.share


def parse_advertise(data: bytes) -> Advertise:
    """Reads one advertise record; raises MessageError. Signature and keys are not looked at."""
    _check_length("advertise", data, ADVERTISE_BYTES)
    return Advertise(*_cut(data, CLIENT_ID_BYTES, KEY_BYTES, KEY_BYTES, KEY_BYTES, SIGNATURE_BYTES))


def advertise_message(advertise: Advertise, *, context: bytes) -> bytes:
    """Gives what an advertise record's signature signs."""
    return tag("advertise") + context + advertise.client_id + advertise.share_key + advertise.mask_key


def parse_roster(data: bytes) -> Roster:
    """Reads a roster; raises MessageError. Whether a client may accept it is another question (rule C2)."""
    if len(data) < ROSTER_HEAD_BYTES:
        _check_length("roster", data, ROSTER_HEAD_BYTES)
    count, threshold = _u32_at(data, 0), _u32_at(data, 4)
    if not 1 <= count <= MAX_MEMBERS:
        raise MessageError("roster.n", value=count, bound=MAX_MEMBERS, what=f"{count} members; 1 to {MAX_MEMBERS}")
    if not 1 <= threshold <= count:
        raise MessageError("roster.t", value=threshold, bound=count, what=f"a threshold of {threshold}; 1 to {count}")
    _check_length("roster", data, ROSTER_HEAD_BYTES + count * ADVERTISE_BYTES)
    return Roster(threshold, tuple(map(parse_advertise, _records(data[ROSTER_HEAD_BYTES:], ADVERTISE_BYTES))))


def session_id(roster: Roster, *, context: bytes) -> bytes:
    """Gives a session's identity, which every client computes of the roster that it was shown."""
    return tagged_hash("session", context, roster.render())


def parse_share_records(data: bytes, *, num_members: int) -> tuple[ShareRecord, ...]:
    """Reads a member's share records or its inbox: peers below `num_members`, rising; raises MessageError."""
    _check_records("shares", data, SHARE_RECORD_BYTES, num_members=num_members)
    sizes = (NONCE_BYTES, CIPHERTEXT_BYTES, DIGEST_BYTES, DIGEST_BYTES)
    return tuple(
        ShareRecord(_u32_at(record, 0), *_cut(record[4:], *sizes)) for record in _records(data, SHARE_RECORD_BYTES)
    )


def render_share_records(records: Iterable[ShareRecord]) -> bytes:
    """Writes share records in their peers' order."""
    return b"".join(record.render() for record in sorted(records, key=lambda record: record.peer))


def share_association(session_id: bytes, *, sender: int, receiver: int) -> bytes:
    """Gives the data that a sealed share record is bound to."""
    return tag("share") + session_id + u32(sender) + u32(receiver)


def share_digest(kind: Kind, share: Secret, *, session_id: bytes, sender: int, receiver: int) -> bytes:
    """Gives the digest by which a dealer's share is known again; of 257 random bits, it tells nothing of them."""
    name = "hb" if kind is Kind.SEED else "hs"
    return tagged_hash(name, session_id, u32(sender), u32(receiver), bytes(share))


def bitmap_bytes(num_members: int) -> int:
    """Gives the length of a bitmap of so many members."""
    return -(-num_members // 8)


def render_bitmap(members: Collection[int], *, num_members: int) -> bytes:
    """Writes a set of members as a bitmap."""
    bitmap = bytearray(bitmap_bytes(num_members))
    for member in members:
        if not 0 <= member < num_members:
            raise MessageError("survivors", value=member, bound=num_members, what=f"there is no member {member}")
        bitmap[member >> 3] |= 1 << (member & 7)
    return bytes(bitmap)


def parse_bitmap(data: bytes, *, num_members: int) -> frozenset[int]:
    """Reads a set of members; raises MessageError for another length or bits beyond the last member."""
    _check_length("survivors", data, bitmap_bytes(num_members))
    members = frozenset(8 * at + bit for at, byte in enumerate(data) for bit in range(8) if byte >> bit & 1)
    if members and max(members) >= num_members:
        raise MessageError(
            "survivors",
            value=max(members),
            bound=num_members,
            what=f"a bit for {max(members)} of {num_members} members",
        )
    return members


def survivors_message(session_id: bytes, bitmap: bytes) -> bytes:
    """Gives what a member's consistency signature signs."""
    return tag("survivors") + session_id + bitmap


def parse_consistency(data: bytes, *, num_members: int) -> dict[int, bytes]:
    """Reads a consistency list, member -> signature; raises MessageError."""
    _check_records("consistency", data, SIGNED_RECORD_BYTES, num_members=num_members)
    return {_u32_at(record, 0): record[4:] for record in _records(data, SIGNED_RECORD_BYTES)}


def render_consistency(signatures: Mapping[int, bytes]) -> bytes:
    """Writes a consistency list in the members' order."""
    return b"".join(u32(member) + signatures[member] for member in sorted(signatures))


def parse_unmask(data: bytes, *, num_members: int) -> tuple[UnmaskShare, ...]:
    """Reads an unmask message: one share a member, of one kind; raises MessageError."""
    _check_records("unmask", data, UNMASK_RECORD_BYTES, num_members=num_members)
    return tuple(_unmask_share(record) for record in _records(data, UNMASK_RECORD_BYTES))


def render_unmask(shares: Iterable[UnmaskShare]) -> bytes:
    """Writes an unmask message in the members' order."""
    return b"".join(share.render() for share in sorted(shares, key=lambda share: share.member))


def digest(data: bytes) -> bytes:
    """Gives SHA-256 of a message, by which a repeated one is told from a changed one."""
    return hashlib.sha256(data).digest()


def _unmask_share(record: bytes) -> UnmaskShare:
    kind, share = record[4:5], record[5:]
    if kind not in {b"b", b"s"}:
        raise MessageError("unmask.kind", value=kind.hex(), bound="b, s", what=f"the kind 0x{kind.hex()}; it is b or s")
    element(share)
    return UnmaskShare(_u32_at(record, 0), Kind(kind.decode("ascii")), share)


def _check_records(name: str, data: bytes, size: int, *, num_members: int) -> None:
    """Checks that there are whole records, of members below `num_members`, each once and in order."""
    if len(data) % size or len(data) > num_members * size:
        raise MessageError(
            name,
            value=len(data),
            bound=num_members * size,
            what=f"{len(data)} bytes are not at most {num_members} records of {size}",
        )
    members = [_u32_at(data, at) for at in range(0, len(data), size)]
    _check_rising(name, members, num_members=num_members)


def _check_rising(name: str, members: Sequence[int], *, num_members: int) -> None:
    before = -1
    for member in members:
        if not before < member < num_members:
            raise MessageError(
                name,
                value=member,
                bound=num_members,
                what=f"member {member} follows {before}; members rise, each once, below {num_members}",
            )
        before = member


def _check_length(name: str, data: bytes, expected: int) -> None:
    if len(data) != expected:
        raise MessageError(name, value=len(data), bound=expected, what=f"{len(data)} bytes instead of {expected}")


def _records(data: bytes, size: int) -> Iterator[bytes]:
    return (bytes(data[at : at + size]) for at in range(0, len(data), size))


def _cut(record: bytes, *sizes: int) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield record[at : at + size]
        at += size


def _u32_at(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")
