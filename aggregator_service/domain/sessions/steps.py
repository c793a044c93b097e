"""What moves a session on: all messages of a phase, or its deadline; pure decisions from who has sent what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np

from aggregator_service.domain.sessions.records import MemberRecord, SessionRecord
from fl_protocol.masking.graph import can_proceed, isolated
from fl_protocol.sessions import AbortCode, SeatState, SessionState
from fl_protocol.specs.secure_aggregation import PairwiseSecureAggregation

SESSION_TRANSITIONS: Final[Mapping[SessionState, frozenset[SessionState]]] = {
    SessionState.SHARES: frozenset({SessionState.INPUT, SessionState.ABORTED}),
    SessionState.INPUT: frozenset({SessionState.CONSISTENCY, SessionState.ABORTED}),
    SessionState.CONSISTENCY: frozenset({SessionState.UNMASK, SessionState.ABORTED}),
    SessionState.UNMASK: frozenset({SessionState.SUMMING, SessionState.ABORTED}),
    SessionState.SUMMING: frozenset({SessionState.DONE, SessionState.ABORTED}),
    SessionState.DONE: frozenset(),
    SessionState.ABORTED: frozenset(),
}

SEAT_TRANSITIONS: Final[Mapping[SeatState, frozenset[SeatState]]] = {
    SeatState.WAITING: frozenset({SeatState.SEATED, SeatState.FREE}),
    SeatState.SEATED: frozenset({SeatState.FREE, SeatState.SPENT}),
    SeatState.FREE: frozenset({SeatState.WAITING}),
    SeatState.SPENT: frozenset(),
}

ASKED_FOR_SHARES: Final = (SessionState.UNMASK, SessionState.SUMMING)
"""In these a member that has answered is spent: it must not be asked for shares of the same update again (C8)."""

MAX_STRIKES: Final = 3
"""So many aborted sessions that blame a client exclude it from the run."""

_LOOKS: Final = 32


@dataclass(frozen=True, slots=True)
class Stay:
    """The phase goes on."""


@dataclass(frozen=True, slots=True)
class Enter:
    """The session enters its next phase, in which so many messages are expected."""

    state: SessionState
    num_expected: int


@dataclass(frozen=True, slots=True)
class Abort:
    """The session cannot go on; `blamed` are places of members that are found at fault now."""

    code: AbortCode
    reason: str
    blamed: tuple[int, ...] = ()


Step = Stay | Enter | Abort


def may_form(
    masked: PairwiseSecureAggregation, *, num_waiting: int, target: int, others_may_come: bool, is_overdue: bool
) -> bool:
    """Tells whether those who wait make up a session now: enough of them, and nobody worth waiting for."""
    if num_waiting < masked.min_members:
        return False
    return num_waiting >= target or is_overdue or not others_may_come


def phase_length(state: SessionState, masked: PairwiseSecureAggregation, *, num_bytes: int) -> timedelta:
    """Gives how long a phase may last; that of the inputs has time for so many bytes of one."""
    seconds = masked.phase_seconds
    if state is SessionState.INPUT:
        seconds += num_bytes / masked.min_bytes_per_second
    return timedelta(seconds=seconds)


def is_worth_a_look(session: SessionRecord) -> bool:
    """Tells whether the newest message may have ended the phase; looking at all members is not free."""
    if session.num_messages >= session.num_expected:
        return True
    if session.state is not SessionState.UNMASK or session.num_messages < session.graph.threshold:
        return False
    return session.num_messages % -(-session.num_members // _LOOKS) == 0


def next_step(session: SessionRecord, members: Sequence[MemberRecord], *, min_members: int, is_due: bool) -> Step:
    """Decides what follows; the phase's messages are all in, or its time is over, or it goes on."""
    is_over = is_due or session.num_messages >= session.num_expected
    match session.state:
        case SessionState.SHARES if is_over:
            return _after_shares(session, members, min_members=min_members)
        case SessionState.INPUT if is_over:
            return _after_input(session, members, min_members=min_members)
        case SessionState.CONSISTENCY if is_over:
            return _after_consistency(session, members)
        case SessionState.UNMASK:
            return _after_unmask(session, members, is_over=is_over)
        case _:
            return Stay()


def _after_shares(session: SessionRecord, members: Sequence[MemberRecord], *, min_members: int) -> Step:
    shared = [member.place for member in members if member.has_shared]
    return _proceed(session, shared, shared, following=SessionState.INPUT, min_members=min_members)


def _after_input(session: SessionRecord, members: Sequence[MemberRecord], *, min_members: int) -> Step:
    shared = [member.place for member in members if member.has_shared]
    survivors = [member.place for member in members if member.survived]
    return _proceed(session, shared, survivors, following=SessionState.CONSISTENCY, min_members=min_members)


def _proceed(
    session: SessionRecord, of: Sequence[int], alive: Sequence[int], *, following: SessionState, min_members: int
) -> Step:
    graph, least = session.graph, max(min_members, session.graph.quorum)
    if can_proceed(of, alive, graph=graph, neighbours=session.neighbours, min_members=min_members):
        return Enter(following, len(alive))
    if len(alive) < least:
        return Abort(
            AbortCode.NOT_ENOUGH_CLIENTS,
            f"{len(alive)} of {session.num_members} members sent their {session.state} in time; {least} are needed",
        )
    cut_off = isolated(of, alive, graph=graph, neighbours=session.neighbours)
    return Abort(
        AbortCode.TOO_FEW_SHARES,
        f"after {session.state} {len(cut_off)} members have fewer than {graph.threshold} neighbours left",
    )


def _after_consistency(session: SessionRecord, members: Sequence[MemberRecord]) -> Step:
    num_signed, quorum = sum(member.signed for member in members), session.graph.quorum
    if num_signed >= quorum:
        return Enter(SessionState.UNMASK, sum(member.survived for member in members))
    return Abort(AbortCode.QUORUM_FAILED, f"{num_signed} members signed the list of survivors in time; {quorum} must")


def _after_unmask(session: SessionRecord, members: Sequence[MemberRecord], *, is_over: bool) -> Step:
    lacking = lacking_secrets(members, threshold=session.graph.threshold)
    if not lacking:
        return Enter(SessionState.SUMMING, 0)
    if not is_over:
        return Stay()
    blamed = sum(member.blamed for member in members)
    return Abort(
        AbortCode.BAD_SHARE if blamed else AbortCode.TOO_FEW_SHARES,
        f"{len(lacking)} secrets have fewer than {session.graph.threshold} right shares"
        + (f"; {blamed} members sent wrong ones" if blamed else ""),
    )


def lacking_secrets(members: Sequence[MemberRecord], *, threshold: int) -> list[int]:
    """Names the members that dealt shares and of whose secret too few have come back."""
    counts = np.zeros(len(members), dtype=np.int64)
    for member in members:
        if member.right_shares is not None:
            bits = np.frombuffer(member.right_shares, dtype=np.uint8)
            counts += np.unpackbits(bits, bitorder="little", count=len(members))
    return [member.place for member in members if member.has_shared and counts[member.place] < threshold]


def seat_after(member: MemberRecord, session: SessionRecord) -> SeatState:
    """Gives where a member stands once its session, in the state before, was aborted."""
    return SeatState.SPENT if member.answered and session.state in ASKED_FOR_SHARES else SeatState.FREE


def was_let_go(session: SessionRecord, members: Sequence[MemberRecord]) -> bool:
    """Tells whether members had begun to unmask the sum of a session that was aborted in the state before.

    Whoever has their shares, and those of clients that collude, may know the sum.
    """
    return session.state in ASKED_FOR_SHARES and any(member.answered for member in members)
