"""Sessions of masked rounds: who sits in one, where it stands, and what it leaves behind.

The binary messages that go with these are in `fl_protocol.masking.messages`.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from fl_protocol.manifests import Hex32, Hex64
from fl_protocol.messages import Digest, RequestMessage, ResponseMessage, Timestamp


class IdentityKeyRequest(RequestMessage):
    """Registers a client's Ed25519 public key, once; `certificate` is an authority's signature of it."""

    public_key: Hex32
    certificate: Hex64 | None = None


class IdentityKey(ResponseMessage):
    """A client's registered identity key."""

    client_id: str
    public_key: Hex32
    certificate: Hex64 | None
    created_at: Timestamp


class SeatState(StrEnum):
    """Where one client stands in a masked round.

    Waiting for a session; in one; free to ask again with fresh keys, because its session failed before anyone was asked
    for shares of masks; or done with this attempt at the round.
    """

    WAITING = "waiting"
    SEATED = "seated"
    FREE = "free"
    SPENT = "spent"


class Seat(ResponseMessage):
    """A task's place in a masked round; `index` is its place in the session's roster."""

    task_id: str
    state: SeatState
    session_id: str | None = None
    index: int | None = None
    num_members: int | None = None
    num_waiting: int = 0
    deadline_at: Timestamp | None = None


class SessionState(StrEnum):
    """The phases of a session, in order; done and aborted are terminal."""

    SHARES = "shares"
    INPUT = "input"
    CONSISTENCY = "consistency"
    UNMASK = "unmask"
    SUMMING = "summing"
    DONE = "done"
    ABORTED = "aborted"


class AbortCode(StrEnum):
    """Why a session ended without a sum."""

    NOT_ENOUGH_CLIENTS = "not_enough_clients"
    TOO_FEW_SHARES = "too_few_shares"
    BAD_SHARE = "bad_share"
    QUORUM_FAILED = "quorum_failed"
    RANGE_CHECK_FAILED = "range_check_failed"
    ROUND_ENDED = "round_ended"


class Session(ResponseMessage):
    """Where a session stands; `revision` grows with every change of its state.

    `num_messages` counts the messages of the present phase. `blamed` are the clients whose messages were wrong.
    `suspected` are all whose inputs are in a sum out of range: one of them at least sent what no honest one could.
    """

    session_id: str
    run_id: str
    round: int
    attempt: int
    manifest_digest: Digest
    state: SessionState
    revision: int
    num_members: int
    degree: int
    threshold: int
    consistency_quorum: int
    num_messages: int
    deadline_at: Timestamp
    created_at: Timestamp
    ended_at: Timestamp | None = None
    abort_code: AbortCode | None = None
    reason: str | None = None
    blamed: Annotated[list[str], Field(default_factory=list)]
    suspected: Annotated[list[str], Field(default_factory=list)]


class TranscriptMember(ResponseMessage):
    """What the transcript says of one member: in which sets it was, and the digest of the masked input it sent."""

    client_id: str
    identity_key: Hex32
    shared: bool
    survived: bool
    signed: bool
    input_digest: Digest | None
    consistency_signature: Hex64 | None


class Transcript(ResponseMessage):
    """What a session leaves behind: enough for each member to see that its own input, and no other set, was added up.

    `session_hash` is the identifier that every member computed from the roster. `sum_digest` is the SHA-256 of the sums
    as little-endian int64, extras included.
    """

    session_id: str
    run_id: str
    round: int
    attempt: int
    manifest_digest: Digest
    context: Hex32
    session_hash: Hex32
    state: SessionState
    threshold: int
    consistency_quorum: int
    members: list[TranscriptMember]
    total_weight: int | None
    sum_digest: Digest | None
