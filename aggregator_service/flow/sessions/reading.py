"""What members and the operator may look at: sessions, rosters, inboxes, survivors, signatures, transcripts."""

import asyncio
from dataclasses import dataclass
from datetime import datetime

from aggregator_service.domain import topics
from aggregator_service.domain.sessions.admission import check_not_aborted, phase_closed
from aggregator_service.domain.sessions.records import MemberRecord, SessionRecord
from aggregator_service.flow.authentication import Principal
from aggregator_service.flow.context import Flow
from aggregator_service.flow.selection import POLL_SECONDS
from aggregator_service.flow.sessions.access import member_of, visible_to
from aggregator_service.flow.sessions.messages import inbox_of
from aggregator_service.storage import identity_keys, rounds, runs, sessions
from aggregator_service.storage.transactions import ReadTx
from fl_protocol.masking import messages
from fl_protocol.masking.keys import SIGNATURE_BYTES
from fl_protocol.masking.messages import Roster
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.sessions import AbortCode, SessionState


@dataclass(frozen=True, slots=True)
class SeenSession:
    """A session with the attempt it belongs to, those whom it blames, and those of whom one must be to blame."""

    session: SessionRecord
    round: int
    attempt: int
    blamed: list[str]
    suspected: list[str]


@dataclass(frozen=True, slots=True)
class SeenTranscript:
    """A session with all that it says of its members."""

    seen: SeenSession
    members: list[MemberRecord]


async def get_session(
    flow: Flow, session_id: str, *, principal: Principal, state: SessionState | None, wait_seconds: float
) -> SeenSession:
    """Gives where a session stands; waits while it is in `state`. Raises `not-found`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_seconds
    topic: str | None = None
    while True:
        seen = 0 if topic is None else flow.wakeups.seen(topic)
        found = await flow.transactions.read(
            "look_at_session", lambda tx: _seen(tx, visible_to(tx, session_id, principal))
        )
        remaining = deadline - loop.time()
        if found.session.state is not state or found.session.ended_at is not None or remaining <= 0:
            return found
        if flow.wakeups.closed:
            return found
        if topic is None:
            topic = topics.sessions_of(found.session.run_id)
            continue
        await flow.wakeups.wait(topic, seen, timeout_seconds=min(remaining, POLL_SECONDS))


async def get_roster(flow: Flow, session_id: str, *, principal: Principal) -> bytes:
    """Gives a session's roster; raises `not-found`."""

    def body(tx: ReadTx) -> bytes:
        session = visible_to(tx, session_id, principal)
        members = sessions.members(tx, session_id)
        advertised = (messages.parse_advertise(member.advertise) for member in members)
        return Roster(session.graph.threshold, tuple(advertised)).render()

    return await flow.transactions.read("get_roster", body)


async def get_certificates(flow: Flow, session_id: str, *, principal: Principal) -> bytes:
    """Gives the certificates of a roster's identity keys in its order, zeros where there is none."""

    def body(tx: ReadTx) -> bytes:
        visible_to(tx, session_id, principal)
        client_ids = [member.client_id for member in sessions.members(tx, session_id)]
        registered = identity_keys.get_all(tx, client_ids)
        return b"".join(registered[client_id].certificate or bytes(SIGNATURE_BYTES) for client_id in client_ids)

    return await flow.transactions.read("get_certificates", body)


async def get_inbox(flow: Flow, session_id: str, *, client_id: str, place: int) -> bytes:
    """Gives what a member's neighbours have sealed for it; raises `phase-closed` before all had their time."""

    def body(tx: ReadTx) -> bytes:
        session, member = member_of(tx, session_id, client_id=client_id, place=place)
        check_not_aborted(session)
        if session.state in (SessionState.SHARES, SessionState.DONE):
            raise phase_closed(session, "there is an inbox from the phase input on, until the session is done")
        if not member.has_shared:
            raise phase_closed(session, "your shares did not arrive in time, so that you dropped out")
        return inbox_of(tx, session, place)

    return await flow.transactions.read("get_inbox", body)


async def get_survivors(flow: Flow, session_id: str, *, principal: Principal) -> bytes:
    """Gives the bitmap of those whose input arrived in time; raises `phase-closed` before that is known."""

    def body(tx: ReadTx) -> bytes:
        session = visible_to(tx, session_id, principal)
        check_not_aborted(session)
        if session.survivors is None:
            raise phase_closed(session, "the survivors are known from the phase consistency on")
        return session.survivors

    return await flow.transactions.read("get_survivors", body)


async def get_signatures(flow: Flow, session_id: str, *, principal: Principal) -> bytes:
    """Gives the survivors' signatures; raises `phase-closed` before they are complete."""

    def body(tx: ReadTx) -> bytes:
        session = visible_to(tx, session_id, principal)
        check_not_aborted(session)
        if session.state in (SessionState.SHARES, SessionState.INPUT, SessionState.CONSISTENCY):
            raise phase_closed(session, "the signatures can be read from the phase unmask on")
        members = sessions.members(tx, session_id)
        return messages.render_consistency(
            {member.place: member.signature for member in members if member.signature is not None}
        )

    return await flow.transactions.read("get_signatures", body)


async def get_transcript(flow: Flow, session_id: str, *, principal: Principal) -> SeenTranscript:
    """Gives what a session leaves behind; raises `not-found`."""

    def body(tx: ReadTx) -> SeenTranscript:
        session = visible_to(tx, session_id, principal)
        return SeenTranscript(_seen(tx, session), sessions.members(tx, session_id))

    return await flow.transactions.read("get_transcript", body)


async def list_sessions(
    flow: Flow, run_id: str, *, number: int, after: tuple[datetime, str] | None, limit: int
) -> list[SeenSession]:
    """Lists the sessions of the newest attempt at a round; raises `not-found`."""

    def body(tx: ReadTx) -> list[SeenSession]:
        if runs.get(tx, run_id) is None:
            raise ProblemError(ProblemType.NOT_FOUND, f"there is no run {run_id!r}; list them with GET /v1/runs")
        round_ = rounds.newest(tx, run_id, number)
        if round_ is None:
            raise ProblemError(ProblemType.NOT_FOUND, f"run {run_id!r} has no round {number}")
        return [_seen(tx, session) for session in sessions.page(tx, round_.round_id, after=after, limit=limit)]

    return await flow.transactions.read("list_sessions", body)


async def see(flow: Flow, session: SessionRecord) -> SeenSession:
    """Gives a session that a message has just moved on with what goes with it."""
    return await flow.transactions.read("see_session", lambda tx: _seen(tx, session))


def _seen(tx: ReadTx, session: SessionRecord) -> SeenSession:
    round_ = rounds.get(tx, session.round_id)
    if round_ is None:
        raise LookupError(f"session {session.session_id} lacks its round")
    blamed = sessions.blamed(tx, session.session_id)
    is_out_of_range = session.abort_code is AbortCode.RANGE_CHECK_FAILED
    suspected = sessions.senders(tx, session.session_id) if is_out_of_range else []
    return SeenSession(session, round_.number, round_.attempt, blamed, suspected)
