"""Plain values for what the database remembers of helper mode."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from aggregator_service.domain.sessions.admission import client_bytes
from fl_protocol.helper_mode import MaskRequestState, MaskSumState
from fl_protocol.masking.contributions import SEALED_BYTES
from fl_protocol.masking.mask_requests import Contributor


@dataclass(frozen=True, slots=True)
class ContributionRecord:
    """One client's message; `sealed` and `blob_id` are there until its round has its sum, or has none.

    `refused` says why a helper could not count it.
    """

    task_id: str
    run_id: str
    round_id: str
    client_id: str
    update_id: str
    identity_key: bytes
    digest: str
    num_bytes: int
    vector_digest: bytes
    signature: bytes
    sealed: bytes | None = field(repr=False)
    blob_id: str | None
    refused: str | None
    accepted_at: datetime

    def member(self) -> Contributor:
        """Gives it as a request to helpers has it."""
        sealed = self.sealed or b""
        seeds = tuple(sealed[at : at + SEALED_BYTES] for at in range(0, len(sealed), SEALED_BYTES))
        return Contributor(client_bytes(self.client_id), self.identity_key, self.vector_digest, self.signature, seeds)


@dataclass(frozen=True, slots=True)
class MaskSumRecord:
    """A closed round that waits for its helpers, or has; the last four are set with its sum."""

    round_id: str
    run_id: str
    state: MaskSumState
    deadline_at: datetime
    created_at: datetime
    ended_at: datetime | None
    reason: str | None
    context: bytes
    members_digest: bytes
    num_members: int
    total_weight: int | None = None
    totals: Sequence[int] | None = None
    sum_digest: str | None = None
    sum_blob_id: str | None = None


@dataclass(frozen=True, slots=True)
class MaskRequestRecord:
    """What one helper is asked about a round; `digest` is that of its whole answer, `sum_digest` of the sum in it."""

    request_id: str
    run_id: str
    round_id: str
    helper: int
    name: str
    signing_key: bytes
    state: MaskRequestState
    created_at: datetime
    signature: bytes | None = None
    digest: str | None = None
    sum_digest: str | None = None
    blob_id: str | None = None


def in_order(contributions: Sequence[ContributionRecord]) -> list[ContributionRecord]:
    """Gives the contributions that are added up, in the order of a request."""
    return sorted((one for one in contributions if one.refused is None), key=lambda one: client_bytes(one.client_id))
