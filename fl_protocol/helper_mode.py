"""Helper mode on the wire: helpers' tokens, what waits for a helper, what it says of a request, what a round comes to.

The binary messages that go with these are in `contributions` and `mask_requests` of `fl_protocol.masking`.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from fl_protocol.manifests import Hex32, Hex64
from fl_protocol.messages import Digest, RequestMessage, ResponseMessage, Timestamp
from fl_protocol.specs.rounds import MAX_COHORT_SIZE

ClientIdentifier = Annotated[str, StringConstraints(pattern=r"^client_[0-9a-f]{32}$")]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]


class HelperTokenRequest(RequestMessage):
    """Makes a token for whoever holds a helper's signing key: it sees that key's requests and nothing else."""

    signing_key: Hex32


class HelperToken(ResponseMessage):
    """A helper's token; the secret is shown this once."""

    token: str
    signing_key: Hex32


class MaskSumState(StrEnum):
    """Where a closed round of helper mode stands.

    Helpers look at its contributions; all have found them good and tell the sums of masks; the server adds up; there is
    a sum, or there is none and the round is abandoned.
    """

    CHECKING = "checking"
    RELEASING = "releasing"
    SUMMING = "summing"
    DONE = "done"
    FAILED = "failed"


class MaskRequestState(StrEnum):
    """What a helper has done for one request: nothing yet, found it good, told the sum of masks."""

    ASKED = "asked"
    READY = "ready"
    ANSWERED = "answered"


class MaskRequestEntry(ResponseMessage):
    """A request that waits for its helper, which in `checking` gives a verdict and in `releasing` the sum of masks."""

    request_id: str
    run_id: str
    round: int
    attempt: int
    helper: int
    state: MaskRequestState
    phase: MaskSumState
    num_members: int
    num_bytes: int
    deadline_at: Timestamp


class MaskRequestList(ResponseMessage):
    """The requests that wait for the caller, oldest first, at most 100."""

    items: list[MaskRequestEntry]


class Verdict(RequestMessage):
    """What a helper says of a request before it tells anything: nothing is wrong with it, or what is.

    `refused` names contributions that it cannot or may not add up, each with the reason; the server asks again without
    them. `reason` refuses the whole request for good.
    """

    refused: Annotated[dict[ClientIdentifier, Reason], Field(max_length=MAX_COHORT_SIZE)] = Field(default_factory=dict)
    reason: Reason | None = None


class MaskContributor(ResponseMessage):
    """One contribution of a closed round; `refused` says why a helper could not count it."""

    client_id: str
    vector_digest: Digest
    refused: str | None


class MaskAnswer(ResponseMessage):
    """What one helper has done; its signature is over the context, its number, the members' digest and its sum's."""

    name: str
    signing_key: Hex32
    state: MaskRequestState
    sum_digest: Digest | None
    signature: Hex64 | None


class MaskedRoundReport(ResponseMessage):
    """What a closed round of helper mode came to: enough for a client to see that its own vector was added up.

    `members_digest` names the set that every helper signed, `sum_digest` is the SHA-256 of the sums as little-endian
    int64, extras included.
    """

    run_id: str
    round: int
    attempt: int
    state: MaskSumState
    reason: str | None
    context: Hex32
    members_digest: Hex32
    deadline_at: Timestamp
    ended_at: Timestamp | None
    total_weight: int | None
    sum_digest: Digest | None
    contributors: list[MaskContributor]
    helpers: list[MaskAnswer]
