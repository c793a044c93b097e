"""Plain values for what the database remembers of masked rounds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from fl_protocol.masking.graph import Graph, Neighbours, graph_of, neighbours
from fl_protocol.sessions import AbortCode, SeatState, SessionState


@dataclass(frozen=True, slots=True)
class IdentityKeyRecord:
    """A client's Ed25519 public key, and an authority's signature of it if there is one."""

    client_id: str
    public_key: bytes
    certificate: bytes | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ManifestRecord:
    """An entry of a run's log of manifests; its bytes are kept beside it."""

    run_id: str
    sequence: int
    round_id: str
    round: int
    attempt: int
    digest: str
    previous_digest: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest's exact bytes with the server's signature of them."""

    entry: ManifestRecord
    body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class SeatRecord:
    """A task's place in a masked round; `session_id` and `place` are those of the newest session it was in."""

    task_id: str
    run_id: str
    round_id: str
    client_id: str
    state: SeatState
    advertise: bytes
    session_id: str | None
    place: int | None
    waiting_since: datetime


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session of a masked round; `identity` is the hash by which its members know it.

    Of the present phase `num_messages` of `num_expected` have arrived. `survivors` is set with the list of them, and
    `total_weight`, `totals` (the sums of the extras) and the sum's digest and blob once it is done.
    """

    session_id: str
    run_id: str
    round_id: str
    manifest_digest: str
    state: SessionState
    revision: int
    num_members: int
    num_expected: int
    num_messages: int
    deadline_at: datetime
    created_at: datetime
    ended_at: datetime | None
    abort_code: AbortCode | None
    reason: str | None
    context: bytes
    identity: bytes
    survivors: bytes | None
    total_weight: int | None
    totals: Sequence[int] | None
    sum_digest: str | None
    sum_blob_id: str | None

    @property
    def graph(self) -> Graph:
        return graph_of(self.num_members)

    @property
    def neighbours(self) -> Neighbours:
        return neighbours(self.identity, self.num_members, self.graph.degree)


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """A member of a session: which messages of it have arrived, by their digests, and who it is.

    `right_shares` is the bitmap of those members of whose secret it gave the share that was announced. It is `blamed`
    for shares that were not.
    """

    session_id: str
    place: int
    client_id: str
    task_id: str
    advertise: bytes
    shares_digest: str | None = None
    input_digest: str | None = None
    input_blob_id: str | None = None
    signature: bytes | None = field(default=None, repr=False)
    unmask_digest: str | None = None
    right_shares: bytes | None = None
    blamed: bool = False

    @property
    def has_shared(self) -> bool:
        return self.shares_digest is not None

    @property
    def survived(self) -> bool:
        return self.input_digest is not None

    @property
    def signed(self) -> bool:
        return self.signature is not None

    @property
    def answered(self) -> bool:
        return self.unmask_digest is not None


class MessageKind(StrEnum):
    """The messages that a session keeps until it ends."""

    SHARES = "shares"
    UNMASK = "unmask"
