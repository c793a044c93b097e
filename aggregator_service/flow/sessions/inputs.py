"""Takes masked inputs: streamed into a blob like an update, and counted while the phase lasts."""

from dataclasses import dataclass

from aggregator_service import failpoints
from aggregator_service.domain.records import RunRecord
from aggregator_service.domain.sessions.admission import Repeated, invalid, judge_message
from aggregator_service.domain.sessions.records import SessionRecord
from aggregator_service.flow.context import Flow
from aggregator_service.flow.reception import Body, StoredBytes, digest_of, store_exactly
from aggregator_service.flow.sessions.access import check_takes_part, locked_for, member_of
from aggregator_service.flow.sessions.messages import Taken
from aggregator_service.flow.sessions.phases import count_message
from aggregator_service.flow.sessions.vectors import vector_of_run
from aggregator_service.storage import runs, sessions
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.masking.errors import MessageError
from fl_protocol.sessions import SessionState


@dataclass(frozen=True, slots=True)
class AwaitedInput:
    """What a member may send: a vector of exactly so many bytes; `earlier` is the digest of one that was taken."""

    session: SessionRecord
    place: int
    client_id: str
    num_bytes: int
    earlier: str | None


async def look_up(flow: Flow, *, session_id: str, client_id: str, place: int) -> AwaitedInput:
    """Finds what a member may send; refuses what can be refused before any byte of it is read."""

    def body(tx: ReadTx) -> tuple[SessionRecord, str | None, RunRecord]:
        session, member = member_of(tx, session_id, client_id=client_id, place=place)
        run, earlier = runs.get(tx, session.run_id), member.input_digest
        if run is None:
            raise LookupError(f"session {session_id} lacks its run")
        # By its own digest what was taken before is repeated; whether it is will be known when it has arrived.
        judge_message(
            session, phase=SessionState.INPUT, digest=earlier or "", earlier=earlier, may_send=member.has_shared
        )
        return session, earlier, run

    session, earlier, run = await flow.transactions.read("look_up_input", body)
    vector = await vector_of_run(flow, run)
    return AwaitedInput(session, place, client_id, vector.num_bytes, earlier)


def check_length(awaited: AwaitedInput, announced: int | None) -> None:
    """Raises `invalid-message` for an input that is announced as shorter or longer than it must be."""
    if announced is not None and announced != awaited.num_bytes:
        raise invalid(
            MessageError(
                "input",
                value=announced,
                bound=awaited.num_bytes,
                what=f"{announced} bytes instead of {awaited.num_bytes}",
            )
        )


async def take_input(flow: Flow, awaited: AwaitedInput, body: Body) -> Taken:
    """Takes a member's masked input; raises the problems of the wire's table, and then keeps nothing."""
    if awaited.earlier is not None:
        digest = await digest_of(body, max_num_bytes=awaited.num_bytes)
        judge_message(awaited.session, phase=SessionState.INPUT, digest=digest, earlier=awaited.earlier, may_send=True)
        return Taken(awaited.session, is_new=False)
    stored = await store_exactly(flow, body, num_bytes=awaited.num_bytes, what="input")
    failpoints.reach("session.input_stored")
    try:
        taken = await flow.transactions.write("take_input", lambda tx: _count(flow, tx, awaited, stored))
    except Exception:
        await flow.blobs.discard(stored.upload)
        raise
    failpoints.reach("session.message_taken")
    if not taken.is_new:
        await flow.blobs.discard(stored.upload)
    return taken


def _count(flow: Flow, tx: WriteTx, awaited: AwaitedInput, stored: StoredBytes) -> Taken:
    sender = locked_for(tx, awaited.session.session_id, client_id=awaited.client_id, place=awaited.place)
    session, member = sender.session, sender.member
    verdict = judge_message(
        session,
        phase=SessionState.INPUT,
        digest=stored.digest,
        earlier=member.input_digest,
        may_send=member.has_shared,
    )
    if isinstance(verdict, Repeated):
        return Taken(session, is_new=False)
    check_takes_part(tx, sender)
    flow.blobs.seal(tx, stored.upload)
    sessions.change_member(tx, member, input_digest=stored.digest, input_blob_id=stored.upload.blob_id)
    return Taken(count_message(flow, tx, run=sender.run, session=session), is_new=True)
