"""Takes the small messages of a session: shares, signatures of the survivors, and shares of masks."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from aggregator_service import failpoints
from aggregator_service.domain.sessions.admission import Repeated, invalid, judge_message
from aggregator_service.domain.sessions.records import MemberRecord, MessageKind, SessionRecord
from aggregator_service.flow.context import Flow
from aggregator_service.flow.sessions.access import Sender, check_takes_part, graph_side, locked_for
from aggregator_service.flow.sessions.phases import count_message
from aggregator_service.storage import sessions
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.masking import keys, messages, unmasking
from fl_protocol.masking.cohort import Cohort
from fl_protocol.masking.errors import MaskingError
from fl_protocol.masking.messages import SHARE_RECORD_BYTES, Kind, UnmaskShare
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.sessions import SessionState

_log = structlog.get_logger()

Keep = Callable[[WriteTx, Sender], None]
"""Checks a new message and keeps it."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The session after a message; `is_new` unless the same bytes were taken before."""

    session: SessionRecord
    is_new: bool


async def take_shares(flow: Flow, data: bytes, *, session_id: str, client_id: str, place: int) -> Taken:
    """Takes a member's sealed shares, one record for each of its neighbours."""
    digest = _digest(data)

    def keep(tx: WriteTx, sender: Sender) -> None:
        session, member = sender.session, sender.member
        check_takes_part(tx, sender)
        records = messages.parse_share_records(data, num_members=session.num_members)
        unmasking.check_dealing(records, member=member.place, cohort=graph_side(session))
        sessions.add_message(tx, member, MessageKind.SHARES, data)
        sessions.change_member(tx, member, shares_digest=digest)

    def body(tx: WriteTx) -> Taken:
        sender = locked_for(tx, session_id, client_id=client_id, place=place)
        earlier = sender.member.shares_digest
        verdict = judge_message(
            sender.session, phase=SessionState.SHARES, digest=digest, earlier=earlier, may_send=True
        )
        return _settle(flow, tx, sender, keep=None if isinstance(verdict, Repeated) else keep)

    return await _take(flow, "take_shares", body)


async def take_signature(flow: Flow, data: bytes, *, session_id: str, client_id: str, place: int) -> Taken:
    """Takes a survivor's signature of the list of survivors."""

    def keep(tx: WriteTx, sender: Sender) -> None:
        session, member = sender.session, sender.member
        advertise = messages.parse_advertise(member.advertise)
        message = messages.survivors_message(session.identity, session.survivors or b"")
        if not keys.is_signed(advertise.identity_key, message, data):
            _log.warning("session_signature_refused", session_id=session.session_id, client_id=member.client_id)
            raise ProblemError(
                ProblemType.INVALID_MESSAGE,
                f"consistency: not your signature of {keys.SIGNATURE_BYTES} bytes over this session's survivors",
            )
        sessions.change_member(tx, member, signature=data)

    def body(tx: WriteTx) -> Taken:
        sender = locked_for(tx, session_id, client_id=client_id, place=place)
        session, member = sender.session, sender.member
        earlier = None if member.signature is None else _digest(member.signature)
        verdict = judge_message(
            session, phase=SessionState.CONSISTENCY, digest=_digest(data), earlier=earlier, may_send=member.survived
        )
        return _settle(flow, tx, sender, keep=None if isinstance(verdict, Repeated) else keep)

    return await _take(flow, "take_signature", body)


async def take_unmask(flow: Flow, data: bytes, *, session_id: str, client_id: str, place: int) -> Taken:
    """Takes a survivor's shares of its neighbours' secrets; those that are not what was announced are noted."""
    digest = _digest(data)

    def keep(tx: WriteTx, sender: Sender) -> None:
        session, member = sender.session, sender.member
        cohort = graph_side(session)
        answer = messages.parse_unmask(data, num_members=session.num_members)
        peers = sessions.members_at(tx, session.session_id, cohort.neighbours[member.place])
        unmasking.check_answer(
            answer,
            member=member.place,
            cohort=cohort,
            shared=[peer.place for peer in peers if peer.has_shared],
            survivors=[peer.place for peer in peers if peer.survived],
        )
        right = _right_shares(tx, session, member, answer, cohort=cohort)
        is_blamed = len(right) < len(answer)
        if is_blamed:
            _log.warning("session_shares_wrong", session_id=session.session_id, client_id=member.client_id)
        sessions.add_message(tx, member, MessageKind.UNMASK, data)
        bitmap = messages.render_bitmap(right, num_members=session.num_members)
        sessions.change_member(tx, member, unmask_digest=digest, right_shares=bitmap, blamed=is_blamed)

    def body(tx: WriteTx) -> Taken:
        sender = locked_for(tx, session_id, client_id=client_id, place=place)
        session, member = sender.session, sender.member
        verdict = judge_message(
            session,
            phase=SessionState.UNMASK,
            digest=digest,
            earlier=member.unmask_digest,
            may_send=member.survived,
        )
        return _settle(flow, tx, sender, keep=None if isinstance(verdict, Repeated) else keep)

    return await _take(flow, "take_unmask", body)


def inbox_of(tx: ReadTx, session: SessionRecord, place: int) -> bytes:
    """Writes what a member's neighbours have sealed for it, each record under its sender's number."""
    neighbours = session.neighbours
    uploads = sessions.messages(tx, session.session_id, MessageKind.SHARES, neighbours[place])
    records = bytearray()
    for dealer, upload in sorted(uploads.items()):
        # A dealer's records are in the order of its neighbours, so that nothing needs to be read but one of them.
        begin = neighbours[dealer].index(place) * SHARE_RECORD_BYTES
        records += keys.u32(dealer) + upload[begin + 4 : begin + SHARE_RECORD_BYTES]
    return bytes(records)


async def _take(flow: Flow, name: str, body: Callable[[WriteTx], Taken]) -> Taken:
    try:
        taken = await flow.transactions.write(name, body)
    except MaskingError as error:
        raise invalid(error) from None
    failpoints.reach("session.message_taken")
    return taken


def _settle(flow: Flow, tx: WriteTx, sender: Sender, *, keep: Keep | None) -> Taken:
    if keep is None:
        return Taken(sender.session, is_new=False)
    keep(tx, sender)
    return Taken(count_message(flow, tx, run=sender.run, session=sender.session), is_new=True)


def _right_shares(
    tx: ReadTx, session: SessionRecord, member: MemberRecord, answer: tuple[UnmaskShare, ...], *, cohort: Cohort
) -> list[int]:
    """Lists the members whose share in an answer is what they announced to the one that gives it back."""
    announced = messages.parse_share_records(inbox_of(tx, session, member.place), num_members=session.num_members)
    digests = {record.peer: (record.seed_digest, record.key_digest) for record in announced}
    return [
        given.member
        for given in answer
        if messages.share_digest(
            given.kind, given.share, session_id=cohort.session_id, sender=given.member, receiver=member.place
        )
        == digests[given.member][0 if given.kind is Kind.SEED else 1]
    ]


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
