"""Finds a session for somebody who may know of it, and the public side of its graph."""

from dataclasses import dataclass

from aggregator_service.domain.admission import check_not_excluded, given_up
from aggregator_service.domain.records import RunRecord, TaskState, TokenKind
from aggregator_service.domain.sessions.admission import check_place, no_such_session
from aggregator_service.domain.sessions.records import MemberRecord, SessionRecord
from aggregator_service.flow.authentication import Principal
from aggregator_service.storage import attendance, runs, sessions, tasks
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.masking.cohort import Cohort
from fl_protocol.masking.messages import Roster


@dataclass(frozen=True, slots=True)
class Sender:
    """A member of a session that sends a message, in a transaction that has locked the run."""

    run: RunRecord
    session: SessionRecord
    member: MemberRecord


def locked_for(tx: WriteTx, session_id: str, *, client_id: str, place: int) -> Sender:
    """Locks a session's run for a message of one of its members; raises `not-found` or `forbidden`."""
    found, _ = member_of(tx, session_id, client_id=client_id, place=place)
    run = runs.lock(tx, found.run_id)
    if run is None:
        raise LookupError(f"session {session_id} lacks its run")
    session, member = member_of(tx, session_id, client_id=client_id, place=place)
    return Sender(run, session, member)


def member_of(tx: ReadTx, session_id: str, *, client_id: str, place: int) -> tuple[SessionRecord, MemberRecord]:
    """Gives a session and what the client is in it; raises `not-found`, or `forbidden` for another's place."""
    session, member = sessions.get(tx, session_id), sessions.member(tx, session_id, client_id)
    if session is None or member is None:
        raise no_such_session(session_id)
    check_place(member, place)
    return session, member


def check_takes_part(tx: ReadTx, sender: Sender) -> None:
    """Raises `forbidden` or `round-closed` for a member that was excluded, or has given its task up, since it began.

    It becomes a dropout; what it has sent before stays in the sum.
    """
    check_not_excluded(attendance.get(tx, sender.run.run_id, sender.member.client_id))
    task = tasks.get(tx, sender.member.task_id)
    if task is not None and task.state is TaskState.GIVEN_UP:
        raise given_up(task)


def visible_to(tx: ReadTx, session_id: str, principal: Principal) -> SessionRecord:
    """Gives a session to one of its members or to the operator; raises `not-found` for everyone else."""
    session = sessions.get(tx, session_id)
    if session is None:
        raise no_such_session(session_id)
    if principal.kind is not TokenKind.OPERATOR:
        own = None if principal.client_id is None else sessions.member(tx, session_id, principal.client_id)
        if own is None:
            raise no_such_session(session_id)
    return session


def graph_side(session: SessionRecord) -> Cohort:
    """Gives who is whose neighbour in a session; the roster, which takes reading all members, is left empty."""
    return Cohort(Roster(session.graph.threshold, ()), session.identity, session.graph, session.neighbours)
