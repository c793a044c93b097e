"""Helper mode: what a server asks of a helper and what that answers, byte for byte; integers are big-endian.

request: `flsa/v1/mask-request` and a zero byte, helper(4), number of helpers(4), length(4) and bytes of the round's
manifest, n(4), then n member records, client_ids rising.
member: client_id(16) identity_key(32) vector_digest(32) signature(64), then the sealed seeds of all helpers, 80 bytes
each, because the signature is over all of them.
mask sum: signature(64), then the sum of the members' masks as elements of the ring, packed like a vector.
The helper's signature is over `flsa/v1/mask-sum` and a zero byte, context(32), helper(4), members_digest(32) and
SHA-256 of the packed sum(32).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fl_protocol.masking import keys
from fl_protocol.masking.contributions import MAX_HELPERS, SEALED_BYTES, contribution_message
from fl_protocol.masking.errors import MessageError
from fl_protocol.masking.keys import DIGEST_BYTES, KEY_BYTES, SIGNATURE_BYTES, tagged_hash, u32
from fl_protocol.masking.messages import CLIENT_ID_BYTES, MAX_MEMBERS

MAX_MANIFEST_BYTES: Final = 16 << 20

_TAG: Final = keys.tag("mask-request")
_FIXED_BYTES: Final = CLIENT_ID_BYTES + KEY_BYTES + DIGEST_BYTES + SIGNATURE_BYTES


@dataclass(frozen=True, slots=True)
class Contributor:
    """One member of the set that is added up: who it is, which vector it sent, and its sealed seeds, signed by it."""

    client_id: bytes
    identity_key: bytes
    vector_digest: bytes
    signature: bytes
    sealed: tuple[bytes, ...]

    def render(self) -> bytes:
        fixed = self.client_id + self.identity_key + self.vector_digest + self.signature
        return fixed + b"".join(self.sealed)

    def is_signed(self, context: bytes) -> bool:
        """Tells whether the member's identity key has signed all of it under a round's context."""
        message = contribution_message(
            context=context, client_id=self.client_id, vector_digest=self.vector_digest, sealed=self.sealed
        )
        return keys.is_signed(self.identity_key, message, self.signature)


@dataclass(frozen=True, slots=True)
class MaskRequest:
    """Asks helper number `helper` of a round for the sum of the masks of its members."""

    helper: int
    num_helpers: int
    manifest: bytes
    members: tuple[Contributor, ...]

    @property
    def context(self) -> bytes:
        return keys.context(self.manifest)

    @property
    def members_digest(self) -> bytes:
        return members_digest(self.members)

    def render(self) -> bytes:
        head = (_TAG, u32(self.helper), u32(self.num_helpers), u32(len(self.manifest)), self.manifest)
        return b"".join((*head, u32(len(self.members)), *(member.render() for member in self.members)))


def members_digest(members: Sequence[Contributor]) -> bytes:
    """Gives the hash that names a set of contributions; it does not depend on which helper is asked."""
    return tagged_hash("mask-members", u32(len(members)), *(member.render() for member in members))


def parse_request(data: bytes) -> MaskRequest:
    """Reads a request; raises MessageError. Signatures, identities and seals are not looked at."""
    reader = _Reader(data)
    if reader.take(len(_TAG), "request") != _TAG:
        raise MessageError("request", value=data[:24].hex(), bound=_TAG.hex(), what="it does not begin with its tag")
    helper, num_helpers = reader.number("request.helper"), reader.number("request.num_helpers")
    if not helper < num_helpers <= MAX_HELPERS:
        raise MessageError("request.helper", value=helper, bound=num_helpers, what=f"helper {helper} of {num_helpers}")
    manifest = reader.take(reader.number("request.manifest", most=MAX_MANIFEST_BYTES), "request.manifest")
    count = reader.number("request.n", most=MAX_MEMBERS)
    members = tuple(_member(reader, num_helpers) for _ in range(count))
    reader.end()
    _check_order(members)
    return MaskRequest(helper, num_helpers, manifest, members)


def mask_sum_message(*, context: bytes, helper: int, members_digest: bytes, sum_digest: bytes) -> bytes:
    """Gives what a helper signs: whose masks, for which round, and what they add up to."""
    return keys.tag("mask-sum") + context + u32(helper) + members_digest + sum_digest


def _member(reader: "_Reader", num_helpers: int) -> Contributor:
    record = reader.take(_FIXED_BYTES + num_helpers * SEALED_BYTES, "request.member")
    key_at, digest_at = CLIENT_ID_BYTES, CLIENT_ID_BYTES + KEY_BYTES
    signature_at = digest_at + DIGEST_BYTES
    begins = range(_FIXED_BYTES, len(record), SEALED_BYTES)
    return Contributor(
        client_id=record[:key_at],
        identity_key=record[key_at:digest_at],
        vector_digest=record[digest_at:signature_at],
        signature=record[signature_at:_FIXED_BYTES],
        sealed=tuple(record[at : at + SEALED_BYTES] for at in begins),
    )


def _check_order(members: Sequence[Contributor]) -> None:
    before = b""
    for member in members:
        if member.client_id <= before:
            raise MessageError(
                "request.client_id",
                value=member.client_id.hex(),
                bound=before.hex(),
                what=f"{member.client_id.hex()} follows {before.hex()}; members rise, each once",
            )
        before = member.client_id


class _Reader:
    """Takes a message apart from its beginning to its end."""

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)
        self._at = 0

    def take(self, size: int, field: str) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise MessageError(field, value=len(self._data), bound=end, what=f"it ends before byte {end}")
        taken, self._at = self._data[self._at : end], end
        return taken

    def number(self, field: str, most: int = 2**32 - 1) -> int:
        value = int.from_bytes(self.take(4, field), "big")
        if value > most:
            raise MessageError(field, value=value, bound=most, what=f"{value} is more than {most}")
        return value

    def end(self) -> None:
        if self._at != len(self._data):
            raise MessageError(
                "request", value=len(self._data), bound=self._at, what=f"bytes follow its end at {self._at}"
            )
