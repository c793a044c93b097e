"""The sum of a session: masked inputs are added, and the masks that are left are taken off the sum alone.

Window by window, and a function of what the session has kept: whoever computes it, and however often, it is the same.
No vector of one member is ever unmasked.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from aggregator_service import failpoints
from aggregator_service.allocator import give_back_free_pages
from aggregator_service.domain.records import RunRecord
from aggregator_service.domain.sessions.records import MemberRecord, MessageKind, SessionRecord
from aggregator_service.domain.sessions.steps import Abort
from aggregator_service.flow.context import Flow
from aggregator_service.flow.sessions.mask_removal import MaskRemoval, mask_removal
from aggregator_service.flow.sessions.sums import SessionSum, add_up, windows_of, write_sum
from aggregator_service.flow.sessions.vectors import Vector, vector_of
from aggregator_service.flow.windows import read_header
from aggregator_service.storage import models, runs, sessions
from aggregator_service.storage.blobs import BlobUpload
from aggregator_service.storage.transactions import ReadTx
from fl_protocol.masking import messages, ring, unmasking
from fl_protocol.masking.cohort import Cohort
from fl_protocol.masking.errors import RingError, ShareError
from fl_protocol.masking.messages import Roster
from fl_protocol.masking.prg import Mask
from fl_protocol.masking.ring import Int64Array
from fl_protocol.sessions import AbortCode, SessionState


@dataclass(frozen=True, slots=True)
class Summing:
    """All that decides a session's sum."""

    session: SessionRecord
    run: RunRecord
    members: list[MemberRecord]
    vector: Vector
    answers: dict[int, bytes] = field(repr=False)
    dealings: dict[int, bytes] = field(repr=False)

    @property
    def survivors(self) -> list[MemberRecord]:
        return [member for member in self.members if member.survived]


def load(flow: Flow, tx: ReadTx, session_id: str) -> Summing | None:
    """Reads a session that waits for its sum; None if it no longer does."""
    session = sessions.get(tx, session_id)
    if session is None or session.state is not SessionState.SUMMING:
        return None
    run, model = runs.get(tx, session.run_id), models.get(tx, session.run_id, 0)
    if run is None or model is None:
        raise LookupError(f"session {session_id} lacks its run or model")
    header = read_header(lambda begin, end: flow.blobs.read_in(tx, model.blob_id, begin, end))
    return Summing(
        session=session,
        run=run,
        members=sessions.members(tx, session_id),
        vector=vector_of(header, run.spec),
        answers=sessions.messages(tx, session_id, MessageKind.UNMASK),
        dealings=sessions.messages(tx, session_id, MessageKind.SHARES),
    )


def compute(flow: Flow, summing: Summing) -> SessionSum | Abort:
    """Adds up a session's inputs; says why there is no sum if shares do not fit together or the sum cannot be honest.

    Raises AggregationStoppedError while the server drains.
    """
    failpoints.reach("session.sum_started")
    give_back_free_pages()
    try:
        masks = _masks(summing)
    except ShareError as error:
        # Every share is what its dealer announced: if they do not fit together, that is the dealer's doing.
        return Abort(AbortCode.BAD_SHARE, str(error), blamed=(int(str(error.value)),))
    upload = BlobUpload(flow.new_id("blob"), chunks_a_write=1)
    try:
        size, width = summing.vector.num_elements, summing.vector.ring.dtype.itemsize
        with mask_removal(masks, num_elements=size, word_bytes=width) as removal:
            outcome = _sum(flow, summing, removal, upload)
    except BaseException:
        flow.blobs.discard_blocking(upload)
        raise
    if isinstance(outcome, Abort):
        flow.blobs.discard_blocking(upload)
    failpoints.reach("session.sum_written")
    return outcome


def _masks(summing: Summing) -> tuple[Mask, ...]:
    session, number = summing.session, summing.session.num_members
    advertised = (messages.parse_advertise(member.advertise) for member in summing.members)
    roster = Roster(session.graph.threshold, tuple(advertised))
    cohort = Cohort(roster, session.identity, session.graph, session.neighbours)
    dealings = {
        dealer: messages.parse_share_records(body, num_members=number) for dealer, body in summing.dealings.items()
    }
    collected = unmasking.collect(
        {place: messages.parse_unmask(body, num_members=number) for place, body in summing.answers.items()},
        digests=unmasking.share_digests(dealings),
        cohort=cohort,
        shared=[member.place for member in summing.members if member.has_shared],
        survivors=[member.place for member in summing.survivors],
    )
    return unmasking.masks_of_sum(collected, cohort=cohort)


def _sum(flow: Flow, summing: Summing, removal: MaskRemoval, upload: BlobUpload) -> SessionSum | Abort:
    num_members = len(summing.survivors)
    try:
        return write_sum(
            flow,
            upload,
            _windows(flow, summing, removal),
            vector=summing.vector,
            spec=summing.run.spec,
            num_members=num_members,
        )
    except RingError as error:
        return Abort(
            AbortCode.RANGE_CHECK_FAILED,
            f"{error}: one of {num_members} members sent what no honest one could have",
        )


def _windows(flow: Flow, summing: Summing, removal: MaskRemoval) -> Iterator[tuple[int, Int64Array]]:
    vector = summing.vector
    blob_ids = [member.input_blob_id for member in summing.survivors if member.input_blob_id is not None]
    for first, end in windows_of(vector):
        removal.ask(first, end - first)
        sums = add_up(flow, blob_ids, vector=vector, first=first, end=end)
        removal.remove(sums, first=first)
        yield first, ring.signed(sums, vector.ring.bits)
        failpoints.reach("session.sum_halfway")
