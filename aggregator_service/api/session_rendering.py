"""Turns what the flow gives of masked rounds into what the wire carries."""

from aggregator_service.domain.sessions.records import IdentityKeyRecord, ManifestRecord, MemberRecord
from aggregator_service.flow.sessions.reading import SeenSession, SeenTranscript
from aggregator_service.flow.sessions.seats import Seating
from fl_protocol import routes
from fl_protocol.manifests import ManifestEntry, ManifestReference
from fl_protocol.masking.messages import parse_advertise
from fl_protocol.sessions import IdentityKey, Seat, SeatState, Session, Transcript, TranscriptMember


def render_identity_key(key: IdentityKeyRecord) -> IdentityKey:
    """Renders a client's identity key."""
    return IdentityKey(
        client_id=key.client_id,
        public_key=key.public_key.hex(),
        certificate=None if key.certificate is None else key.certificate.hex(),
        created_at=key.created_at,
    )


def render_manifest_entry(entry: ManifestRecord) -> ManifestEntry:
    """Renders an entry of a run's log of manifests."""
    return ManifestEntry(
        sequence=entry.sequence,
        round=entry.round,
        attempt=entry.attempt,
        digest=entry.digest,
        previous_digest=entry.previous_digest,
        created_at=entry.created_at,
    )


def render_manifest_reference(entry: ManifestRecord) -> ManifestReference:
    """Renders where a manifest is."""
    url = routes.path(routes.RUN_MANIFEST, run_id=entry.run_id, sequence=entry.sequence)
    return ManifestReference(url=url, sequence=entry.sequence, digest=entry.digest)


def render_seat(seating: Seating) -> Seat:
    """Renders where a task's seat stands; a session that is over is named only where the seat is spent on it."""
    seat, session = seating.seat, seating.session
    is_seated = seat.state in (SeatState.SEATED, SeatState.SPENT)
    return Seat(
        task_id=seat.task_id,
        state=seat.state,
        session_id=seat.session_id if is_seated else None,
        index=seat.place if is_seated else None,
        num_members=session.num_members if is_seated and session is not None else None,
        num_waiting=seating.num_waiting,
        deadline_at=seating.deadline_at,
    )


def render_session(seen: SeenSession) -> Session:
    """Renders where a session stands."""
    session, graph = seen.session, seen.session.graph
    return Session(
        session_id=session.session_id,
        run_id=session.run_id,
        round=seen.round,
        attempt=seen.attempt,
        manifest_digest=session.manifest_digest,
        state=session.state,
        revision=session.revision,
        num_members=session.num_members,
        degree=graph.degree,
        threshold=graph.threshold,
        consistency_quorum=graph.quorum,
        num_messages=session.num_messages,
        deadline_at=session.deadline_at,
        created_at=session.created_at,
        ended_at=session.ended_at,
        abort_code=session.abort_code,
        reason=session.reason,
        blamed=seen.blamed,
        suspected=seen.suspected,
    )


def render_transcript(found: SeenTranscript) -> Transcript:
    """Renders what a session leaves behind."""
    seen, session = found.seen, found.seen.session
    return Transcript(
        session_id=session.session_id,
        run_id=session.run_id,
        round=seen.round,
        attempt=seen.attempt,
        manifest_digest=session.manifest_digest,
        context=session.context.hex(),
        session_hash=session.identity.hex(),
        state=session.state,
        threshold=session.graph.threshold,
        consistency_quorum=session.graph.quorum,
        members=[_render_member(member) for member in found.members],
        total_weight=session.total_weight,
        sum_digest=session.sum_digest,
    )


def _render_member(member: MemberRecord) -> TranscriptMember:
    return TranscriptMember(
        client_id=member.client_id,
        identity_key=parse_advertise(member.advertise).identity_key.hex(),
        shared=member.has_shared,
        survived=member.survived,
        signed=member.signed,
        input_digest=member.input_digest,
        consistency_signature=None if member.signature is None else member.signature.hex(),
    )
