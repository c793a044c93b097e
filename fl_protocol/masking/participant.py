"""A member's side of a session, from its advertisement to its one unmask message, without I/O.

Every answer of the server is checked before anything secret depends on it (rules C2 to C7 of privacy.md 3.8). What is
refused ends the session for this member and overwrites its secrets, as far as Python lets it: they are in memory only,
so that a restarted process is a dropout and never answers with old secrets.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from fl_protocol.masking import keys, messages, shamir
from fl_protocol.masking.cohort import Cohort, is_mask_subtracted
from fl_protocol.masking.errors import KeyRefusedError, MaskingError, RefusalError
from fl_protocol.masking.keys import KEY_BYTES, NONCE_BYTES, Secret
from fl_protocol.masking.messages import Advertise, Kind, ShareRecord, UnmaskShare
from fl_protocol.masking.prg import Mask
from fl_protocol.masking.shamir import SHARE_BYTES
from fl_protocol.masking.terms import Terms, accept_roster

Signer = Callable[[bytes], bytes]
"""Signs a message with the member's long-lived identity key, which never comes in here."""

ADVERTISE_ENTROPY_BYTES: Final = 3 * KEY_BYTES


class Stage(StrEnum):
    """How far a member has come; `spent` has answered, `left` has refused something or was told to stop."""

    ADVERTISED = "advertised"
    SEATED = "seated"
    SHARED = "shared"
    INBOX_READ = "inbox_read"
    MASKED = "masked"
    SIGNED = "signed"
    CONSISTENT = "consistent"
    SPENT = "spent"
    LEFT = "left"


@dataclass(slots=True)
class _Secrets:
    """All that a session must not outlive, in arrays that can be overwritten."""

    seed: bytearray
    share_key: bytearray
    mask_key: bytearray
    share_secrets: dict[int, bytearray] = field(default_factory=dict)
    mask_secrets: dict[int, bytearray] = field(default_factory=dict)
    inbox: dict[int, tuple[bytearray, bytearray]] = field(default_factory=dict)
    mask_keys: list[bytearray] = field(default_factory=list)

    def wipe(self) -> None:
        shares = (share for pair in self.inbox.values() for share in pair)
        agreed = (*self.share_secrets.values(), *self.mask_secrets.values())
        for secret in (self.seed, self.share_key, self.mask_key, *agreed, *shares, *self.mask_keys):
            secret[:] = bytes(len(secret))
            # What is used by mistake afterwards fails by its length: zeros would be a key that everybody knows.
            secret.clear()
        self.inbox.clear()
        self.mask_keys.clear()


class Participant:
    """One member of one session; its methods are called once each, in their order."""

    __slots__ = ("_cohort", "_secrets", "_signed", "_stage", "advertise", "index", "terms")

    def __init__(self, *, terms: Terms, advertise: Advertise, secrets: _Secrets) -> None:
        self.terms = terms
        self.advertise = advertise
        self.index = -1
        self._secrets = secrets
        self._stage = Stage.ADVERTISED
        self._cohort: Cohort | None = None
        self._signed: bytes | None = None

    @classmethod
    def enrol(cls, terms: Terms, *, client_id: bytes, identity_key: bytes, signer: Signer, entropy: Secret) -> Self:
        """Makes fresh keys of 96 random bytes and signs their public halves; `advertise` is what is sent."""
        if len(entropy) != ADVERTISE_ENTROPY_BYTES:
            raise ValueError(f"enrolling takes {ADVERTISE_ENTROPY_BYTES} random bytes, not {len(entropy)}")
        seed, share_secret, mask_secret = (
            bytearray(entropy[at : at + KEY_BYTES]) for at in range(0, len(entropy), KEY_BYTES)
        )
        secrets = _Secrets(seed, share_secret, mask_secret)
        share_key, mask_key = map(keys.agreement_public_key, (secrets.share_key, secrets.mask_key))
        unsigned = Advertise(client_id, identity_key, share_key, mask_key, b"")
        signature = signer(messages.advertise_message(unsigned, context=terms.context))
        advertise = Advertise(client_id, identity_key, share_key, mask_key, signature)
        return cls(terms=terms, advertise=advertise, secrets=secrets)

    @property
    def stage(self) -> Stage:
        return self._stage

    @property
    def cohort(self) -> Cohort:
        """The session as this member computed it; there is none before a roster was accepted."""
        if self._cohort is None:
            raise RuntimeError("no roster was accepted")
        return self._cohort

    @property
    def neighbours(self) -> tuple[int, ...]:
        """The members with whom this one exchanges shares and masks."""
        return self.cohort.neighbours[self.index]

    @property
    def shared(self) -> frozenset[int]:
        """U2 as this member saw it: itself and the neighbours whose shares arrived."""
        return frozenset((self.index, *self._secrets.inbox))

    @property
    def dealing_entropy_bytes(self) -> int:
        """How many random bytes `deal` takes: coefficients for two secrets, and a nonce for each neighbour."""
        coefficients = 2 * (self.cohort.graph.threshold - 1) * shamir.COEFFICIENT_BYTES
        return coefficients + len(self.neighbours) * NONCE_BYTES

    def leave(self) -> None:
        """Overwrites all secrets; nothing can be answered afterwards."""
        self._secrets.wipe()
        if self._stage is not Stage.SPENT:
            self._stage = Stage.LEFT

    def accept_roster(self, data: bytes) -> Cohort:
        """Reads and checks the roster, and takes a place in the session that it makes (rules C2, C3)."""
        with self._step(Stage.ADVERTISED, Stage.SEATED):
            self._cohort, self.index = accept_roster(data, own=self.advertise, terms=self.terms)
            self._agree()
            return self._cohort

    def deal(self, entropy: Secret) -> bytes:
        """Splits the two secrets and seals a share of each for every neighbour; gives the message."""
        with self._step(Stage.SEATED, Stage.SHARED):
            if len(entropy) != self.dealing_entropy_bytes:
                raise ValueError(f"dealing takes {self.dealing_entropy_bytes} random bytes, not {len(entropy)}")
            half = (self.cohort.graph.threshold - 1) * shamir.COEFFICIENT_BYTES
            seeds = self._split(self._secrets.seed, entropy[:half])
            private_keys = self._split(self._secrets.mask_key, entropy[half : 2 * half])
            nonces = (entropy[at : at + NONCE_BYTES] for at in range(2 * half, len(entropy), NONCE_BYTES))
            return messages.render_share_records(
                self._seal(peer, (seeds[peer], private_keys[peer]), nonce=bytes(nonce))
                for peer, nonce in zip(self.neighbours, nonces, strict=True)
            )

    def open_inbox(self, data: bytes) -> frozenset[int]:
        """Opens and checks what the neighbours dealt to this member (rule C4); gives U2 as it sees it."""
        with self._step(Stage.SHARED, Stage.INBOX_READ):
            for record in messages.parse_share_records(data, num_members=len(self.cohort.roster.members)):
                self._secrets.inbox[record.peer] = self._open(record)
            threshold = self.cohort.graph.threshold
            if len(self._secrets.inbox) < threshold:
                raise RefusalError(
                    "C4",
                    "shares",
                    value=len(self._secrets.inbox),
                    bound=threshold,
                    what=f"the shares of {len(self._secrets.inbox)} neighbours arrived; {threshold} are needed",
                )
            return self.shared

    def masks(self) -> tuple[Mask, ...]:
        """Gives the masks of this member's one vector, its own first; they may not be asked for again."""
        with self._step(Stage.INBOX_READ, Stage.MASKED):
            own = bytearray(
                keys.self_mask_key(self._secrets.seed, session_id=self.cohort.session_id, member=self.index)
            )
            self._secrets.mask_keys.append(own)
            return (Mask(own), *map(self._pair_mask, sorted(self._secrets.inbox)))

    def sign_survivors(self, bitmap: bytes, *, signer: Signer) -> bytes:
        """Checks the list of survivors (rule C5) and signs it: the only one that this member will ever sign."""
        with self._step(Stage.MASKED, Stage.SIGNED):
            survivors = messages.parse_bitmap(bitmap, num_members=len(self.cohort.roster.members))
            self._check_survivors(survivors)
            self._signed = bytes(bitmap)
            return signer(messages.survivors_message(self.cohort.session_id, self._signed))

    def check_consistency(self, data: bytes) -> None:
        """Checks that a quorum of survivors signed the same list (rule C6)."""
        with self._step(Stage.SIGNED, Stage.CONSISTENT):
            members, signed = self.cohort.roster.members, self._signed_bitmap()
            message = messages.survivors_message(self.cohort.session_id, signed)
            signatures = messages.parse_consistency(data, num_members=len(members))
            for member, signature in signatures.items():
                if not keys.is_signed(members[member].identity_key, message, signature):
                    raise RefusalError(
                        "C6",
                        "consistency",
                        value=member,
                        bound=None,
                        what=f"the signature of member {member} is not its own, or of another list of survivors",
                    )
            counted = len(messages.parse_bitmap(signed, num_members=len(members)) & signatures.keys())
            _at_least("C6", "consistency", counted, bound=self.cohort.graph.quorum, what="survivors signed the list")

    def unmask(self, bitmap: bytes) -> bytes:
        """Gives one share of each neighbour in U2, for the list that this member signed, once (rule C7).

        The caller notes down that it answered before it sends the message; the secrets are overwritten here.
        """
        if self._stage is Stage.SPENT:
            raise RefusalError(
                "C7", "unmask", value=None, bound=None, what="this member has answered already, and answers once"
            )
        with self._step(Stage.CONSISTENT, Stage.SPENT):
            if bytes(bitmap) != self._signed_bitmap():
                raise RefusalError(
                    "C7",
                    "survivors",
                    value=bytes(bitmap).hex(),
                    bound=self._signed_bitmap().hex(),
                    what="shares are asked for another list of survivors than the one that this member signed",
                )
            survivors = messages.parse_bitmap(bitmap, num_members=len(self.cohort.roster.members))
            kinds = self.cohort.expected_kinds(self.index, shared=self.shared, survivors=survivors)
            shares = (UnmaskShare(peer, kind, self._share_of(peer, kind)) for peer, kind in kinds.items())
            answer = messages.render_unmask(shares)
        self._secrets.wipe()
        return answer

    @contextmanager
    def _step(self, before: Stage, after: Stage) -> Iterator[None]:
        """Holds the order of the steps, and leaves the session when one of them fails."""
        if self._stage is not before:
            raise RuntimeError(f"this step follows {before}; the member has {self._stage}")
        try:
            yield
        except BaseException:
            self.leave()
            raise
        self._stage = after

    def _agree(self) -> None:
        peers = {peer: self.cohort.roster.members[peer] for peer in self.neighbours}
        share_keys = {peer: member.share_key for peer, member in peers.items()}
        mask_keys = {peer: member.mask_key for peer, member in peers.items()}
        try:
            self._secrets.share_secrets = keys.agree(self._secrets.share_key, share_keys, field="roster.share_key")
            self._secrets.mask_secrets = keys.agree(self._secrets.mask_key, mask_keys, field="roster.mask_key")
        except KeyRefusedError as error:
            raise RefusalError("C3", error.field, value=error.value, bound=error.bound, what=str(error)) from error

    def _split(self, secret: bytearray, entropy: Secret) -> Mapping[int, bytes]:
        return shamir.split(secret, self.neighbours, coefficients=shamir.coefficients(entropy))

    def _seal(self, peer: int, shares: tuple[bytes, bytes], *, nonce: bytes) -> ShareRecord:
        session_id, secret = self.cohort.session_id, self._secrets.share_secrets[peer]
        key = keys.share_key(secret, session_id=session_id, sender=self.index, receiver=peer)
        association = messages.share_association(session_id, sender=self.index, receiver=peer)
        digests = (
            messages.share_digest(kind, share, session_id=session_id, sender=self.index, receiver=peer)
            for kind, share in zip(Kind, shares, strict=True)
        )
        return ShareRecord(peer, nonce, keys.seal(key, b"".join(shares), nonce=nonce, associated=association), *digests)

    def _open(self, record: ShareRecord) -> tuple[bytearray, bytearray]:
        sender, session_id = record.peer, self.cohort.session_id
        if sender not in self.neighbours:
            raise RefusalError(
                "C4", "shares", value=sender, bound=None, what=f"member {sender} is no neighbour, and sends shares"
            )
        key = keys.share_key(
            self._secrets.share_secrets[sender], session_id=session_id, sender=sender, receiver=self.index
        )
        association = messages.share_association(session_id, sender=sender, receiver=self.index)
        plain = _unseal(key, record, associated=association)
        shares = plain[:SHARE_BYTES], plain[SHARE_BYTES:]
        for kind, share, announced in zip(Kind, shares, (record.seed_digest, record.key_digest), strict=True):
            found = messages.share_digest(kind, share, session_id=session_id, sender=sender, receiver=self.index)
            if found != announced:
                raise RefusalError(
                    "C4",
                    "shares",
                    value=sender,
                    bound=announced.hex(),
                    what=f"the shares of member {sender} are not those that it announced",
                )
        return shares

    def _pair_mask(self, peer: int) -> Mask:
        secret = self._secrets.mask_secrets[peer]
        key = keys.pair_mask_key(secret, session_id=self.cohort.session_id, member=self.index, peer=peer)
        self._secrets.mask_keys.append(bytearray(key))
        return Mask(self._secrets.mask_keys[-1], is_subtracted=is_mask_subtracted(self.index, peer))

    def _share_of(self, peer: int, kind: Kind) -> bytes:
        seed, private_key = self._secrets.inbox[peer]
        return bytes(seed if kind is Kind.SEED else private_key)

    def _signed_bitmap(self) -> bytes:
        if self._signed is None:
            raise RuntimeError("no list of survivors was signed")
        return self._signed

    def _check_survivors(self, survivors: frozenset[int]) -> None:
        if self.index not in survivors:
            raise RefusalError(
                "C5", "survivors", value=self.index, bound=None, what="this member's own input is said to be missing"
            )
        if strangers := sorted(survivors & set(self.neighbours) - self.shared):
            raise RefusalError(
                "C5",
                "survivors",
                value=strangers[0],
                bound=None,
                what=f"member {strangers[0]} is said to have stayed, and its shares never arrived",
            )
        least = max(self.terms.min_members, self.cohort.graph.quorum)
        _at_least("C5", "survivors", len(survivors), bound=least, what="members stayed")


def _unseal(key: bytes, record: ShareRecord, *, associated: bytes) -> bytearray:
    try:
        return keys.unseal(key, record.ciphertext, nonce=record.nonce, associated=associated)
    except MaskingError as error:
        raise RefusalError(
            "C4", "shares", value=record.peer, bound=None, what=f"the record of member {record.peer} does not open"
        ) from error


def _at_least(rule: str, field: str, value: int, *, bound: int, what: str) -> None:
    if value < bound:
        raise RefusalError(rule, field, value=value, bound=bound, what=f"{value} {what}; at least {bound} are needed")
