"""One attempt at a masked session: performs what the session's state machine asks for."""

import functools
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio

from client_sdk.client import AggregatorClient
from client_sdk.config import PIECE_BYTES
from client_sdk.errors import EquivocationError, ManifestError, PhaseClosedError, SessionAbortedError
from client_sdk.masked_round.threads import in_thread
from client_sdk.masking import session as masked
from client_sdk.masking.answered import AnsweredRounds
from client_sdk.masking.identity import Identity
from client_sdk.masking.peers import PeerStore, known_peers
from client_sdk.masking.session import MaskedSession
from client_sdk.masking.terms import Counted, Failed, MaskedRound
from client_sdk.masking.trust import PeerTrust, effective_trust
from client_sdk.masking.update import MaskedUpdate
from client_sdk.masking.vector import MaskedVector, masked_vector
from client_sdk.session.progress import Progress, SessionAdvanced, SessionJoined, UpdateCounted, WaitingForSession
from client_sdk.transfer import Body
from fl_protocol.sessions import Seat, SeatState, Session, SessionState
from fl_protocol.tasks import Task

WAIT_SECONDS: Final = 25.0
"""How long the server is asked to hold a request for where a seat or a session stands."""
MIN_POLL_SECONDS: Final = 0.05
"""The least time between two such requests: a session's member never asks in a tight loop."""
KEY_BYTES: Final = 32

OnInput = Callable[[str], Awaitable[None]]
"""Is told an input's digest before it leaves."""
OnSum = Callable[[str, int], Awaitable[None]]
"""Is told an input's digest, and of how many clients' inputs the sum is that it went into; 0 for no sum."""


@dataclass(slots=True, kw_only=True)
class Seating:
    """One attempt: performs what the session's state machine asks for."""

    client: AggregatorClient
    run_id: str
    state_dir: Path
    folder: Path
    identity: Identity
    trust: PeerTrust
    tell: Callable[[Progress], None]
    task: Task
    round_: MaskedRound
    update: MaskedUpdate
    on_input: OnInput
    on_sum: OnSum
    vector: MaskedVector | None = None
    last_poll: float = field(default=-MIN_POLL_SECONDS)

    async def run(self) -> Counted | Failed:
        session = MaskedSession(self.round_, self.identity, trust=self.trust)
        action: masked.Action = session.begin()
        try:
            while not isinstance(action, Counted | Failed):
                action = await self._perform(session, action)
            await self._tell_sum(session, action)
            if isinstance(action, Counted) and self.vector is not None:
                vector = self.vector
                self.tell(
                    UpdateCounted(self.task, action.session_id, action.num_survivors, vector.digest, vector.num_bytes)
                )
            return action
        finally:
            session.leave("this client has left")
            if self.vector is not None:
                self.vector.file.close()

    async def _tell_sum(self, session: MaskedSession, ended: Counted | Failed) -> None:
        """Tells how large a sum this client's input is in, if it knows that by a list that it has checked."""
        size = session.sum_size
        if self.vector is None or size is None or (size == 0 and isinstance(ended, Counted)):
            return
        await self.on_sum(self.vector.digest, size)

    async def _perform(self, session: MaskedSession, action: masked.Action) -> masked.Action:
        client = self.client
        try:
            match action:
                case masked.TakeSeat():
                    return await self._take_seat(session, action.advertise)
                case masked.AwaitSeat() | masked.LookAtSeat():
                    return session.seated(await self._seat())
                case masked.ReadTranscript():
                    return session.transcript_read(await client.get_transcript(action.session_id))
                case masked.AwaitState():
                    return session.moved(await self._session(action.session_id, action.state))
                case masked.AwaitEnd():
                    return session.moved(await self._ended(action.session_id))
                case _:
                    return await self._take_part(session, action)
        except PhaseClosedError as error:
            session.leave(f"too late: {error.detail}")
        except SessionAbortedError as error:
            session.leave(error.detail)
        return masked.AwaitEnd(_session_of(action))

    async def _take_part(self, session: MaskedSession, action: masked.Action) -> masked.Action:
        client = self.client
        match action:
            case masked.ReadRoster():
                return await self._read_roster(session, action.session_id)
            case masked.SendShares():
                moved = await client.put_shares(action.session_id, action.index, action.shares)
                return self._advanced(session, moved, SessionState.SHARES)
            case masked.ReadInbox():
                inbox = await client.get_inbox(action.session_id, action.index)
                return await in_thread(functools.partial(session.inbox_read, inbox))
            case masked.SendInput():
                return await self._send_input(session, action)
            case masked.ReadSurvivors():
                return session.survivors_read(await client.get_survivors(action.session_id))
            case masked.SendSignature():
                moved = await client.put_signature(action.session_id, action.index, action.signature)
                return self._advanced(session, moved, SessionState.CONSISTENCY)
            case masked.ReadSignatures():
                signatures = await client.get_signatures(action.session_id)
                return await in_thread(functools.partial(session.signatures_read, signatures))
            case masked.SendAnswer():
                return await self._answer(session, action)
            case _:
                raise RuntimeError(f"{type(action).__name__} is not taken part in")

    async def _take_seat(self, session: MaskedSession, advertise: bytes) -> masked.Action:
        """Asks for a seat; one that an earlier process took, whose keys are gone, is waited for until it is free."""
        while True:
            try:
                seat = await self.client.put_seat(self.task.task_id, advertise)
            except EquivocationError:
                seat = await self._seat()
                if seat.state is SeatState.SEATED and seat.session_id is not None:
                    await self._ended(seat.session_id)
                if seat.state is SeatState.SPENT:
                    return Failed("this client was counted in a session before it was restarted", may_retry=False)
                continue
            return session.seated(seat)

    async def _read_roster(self, session: MaskedSession, session_id: str) -> masked.Action:
        client, trust, declared = self.client, self.trust, self.round_.declared_trust
        roster = await client.get_roster(session_id)
        kind = effective_trust(declared, trust)
        certificates = await client.get_certificates(session_id) if kind == "ca" else b""
        peers = PeerStore(self.state_dir)
        met = await in_thread(peers.load) if kind == "tofu" else {}
        known = known_peers(declared, trust, met=met, roster=roster, certificates=certificates)
        dealt = await in_thread(functools.partial(session.roster_read, roster, known))
        cohort = session.cohort
        if kind == "tofu":
            await in_thread(functools.partial(peers.remember, cohort.roster))
        graph = cohort.graph
        self.tell(
            SessionJoined(self.task, session_id, graph.num_members, graph.threshold, graph.tolerated_colluders, kind)
        )
        return dealt

    async def _send_input(self, session: MaskedSession, action: masked.SendInput) -> masked.Action:
        vector = await in_thread(
            functools.partial(
                masked_vector,
                self.update,
                ring=self.round_.ring,
                masks=action.masks,
                rounding_key=os.urandom(KEY_BYTES),
                folder=self.folder,
            )
        )
        self.vector = vector
        await self.on_input(vector.digest)
        body = Body(functools.partial(vector.pieces, PIECE_BYTES), vector.num_bytes, vector.sha256)
        session.input_sent(vector.digest)
        moved = await self.client.put_input(action.session_id, action.index, body)
        return self._advanced(session, moved, SessionState.INPUT)

    async def _answer(self, session: MaskedSession, action: masked.SendAnswer) -> masked.Action:
        answered = AnsweredRounds(self.state_dir, self.run_id)
        await in_thread(
            functools.partial(
                answered.note,
                self.task,
                session_id=action.session_id,
                session_hash=action.session_hash,
                survivors=action.survivors,
            )
        )
        moved = await self.client.put_unmask(action.session_id, action.index, action.answer)
        return self._advanced(session, moved, SessionState.UNMASK)

    def _advanced(self, session: MaskedSession, moved: Session, phase: SessionState) -> masked.Action:
        self.tell(SessionAdvanced(self.task, moved.session_id, phase))
        return session.moved(moved)

    async def _seat(self) -> Seat:
        await self._pace()
        self._check_time()
        seat = await self.client.get_seat(self.task.task_id, wait_seconds=WAIT_SECONDS)
        if seat.state is SeatState.WAITING:
            self.tell(WaitingForSession(self.task, seat.num_waiting))
        return seat

    async def _session(self, session_id: str, state: SessionState) -> Session:
        await self._pace()
        self._check_time()
        return await self.client.get_session(session_id, state=state, wait_seconds=WAIT_SECONDS)

    async def _ended(self, session_id: str) -> Session:
        """Waits for the end of a session in which this client can do nothing more."""
        state = SessionState.SHARES
        while state not in (SessionState.DONE, SessionState.ABORTED):
            session = await self._session(session_id, state)
            state = session.state
        return session

    def _check_time(self) -> None:
        if datetime.now(UTC) >= self.round_.manifest.not_after:
            raise ManifestError(
                "the manifest's not_after has passed while its session went on",
                field="not_after",
                value=self.round_.manifest.not_after.isoformat(),
                bound=datetime.now(UTC).isoformat(),
            )

    async def _pace(self) -> None:
        now = anyio.current_time()
        if now < self.last_poll + MIN_POLL_SECONDS:
            await self.client.sleep(self.last_poll + MIN_POLL_SECONDS - now)
        self.last_poll = anyio.current_time()


def _session_of(action: masked.Action) -> str:
    session_id = getattr(action, "session_id", None)
    if not isinstance(session_id, str):
        raise RuntimeError(f"{type(action).__name__} is of no session")
    return session_id
