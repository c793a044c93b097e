"""One member's way through one session as a state machine without I/O: what came goes in, the next action comes out.

    TakeSeat -> AwaitSeat -> ReadRoster -> SendShares -> AwaitState -> ReadInbox -> SendInput -> AwaitState
    -> ReadSurvivors -> SendSignature -> AwaitState -> ReadSignatures -> SendAnswer -> AwaitState -> ReadTranscript
    -> Counted

A member that a phase has passed by waits for the session's end (`AwaitEnd`, then `LookAtSeat`) and may begin anew with
fresh keys, as long as it has not answered. What the server may not ask for raises SessionRefusedError, and the secrets
are gone by then; the rules and their names are in `fl_protocol.masking.participant`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from client_sdk.errors import SessionRefusedError, TranscriptError, UntrustedAnswerError
from client_sdk.masking.identity import Identity
from client_sdk.masking.peers import KnownPeers
from client_sdk.masking.terms import Counted, Failed, MaskedRound
from client_sdk.masking.trust import PeerTrust, client_id_bytes
from fl_protocol.masking import messages
from fl_protocol.masking.cohort import Cohort
from fl_protocol.masking.errors import MaskingError, RefusalError
from fl_protocol.masking.participant import ADVERTISE_ENTROPY_BYTES, Participant, Stage
from fl_protocol.masking.prg import Mask
from fl_protocol.masking.terms import Terms
from fl_protocol.sessions import Seat, SeatState, Session, SessionState, Transcript

Result = TypeVar("Result")

_ORDER: Final = tuple(SessionState)
"""A session's states in their order; the aborted one may follow on any."""

_AWAITED: Final = {
    Stage.SHARED: SessionState.SHARES,
    Stage.MASKED: SessionState.INPUT,
    Stage.SIGNED: SessionState.CONSISTENCY,
}
"""While the session is in this state, a member at this stage has done its part."""

_NEXT: Final = {
    Stage.SHARED: SessionState.INPUT,
    Stage.MASKED: SessionState.CONSISTENCY,
    Stage.SIGNED: SessionState.UNMASK,
}
_ENDED: Final = (SessionState.DONE, SessionState.ABORTED)


@dataclass(frozen=True, slots=True)
class TakeSeat:
    """Put the advertised keys to the task's seat."""

    advertise: bytes


@dataclass(frozen=True, slots=True)
class AwaitSeat:
    """Ask where the seat stands until a session begins."""


@dataclass(frozen=True, slots=True)
class ReadRoster:
    """Get the session's roster, and its certificates where an authority vouches for the members."""

    session_id: str


@dataclass(frozen=True, slots=True)
class SendShares:
    """Put the shares for the neighbours."""

    session_id: str
    index: int
    shares: bytes


@dataclass(frozen=True, slots=True)
class AwaitState:
    """Ask where the session stands until it has left `state`."""

    session_id: str
    state: SessionState


@dataclass(frozen=True, slots=True)
class ReadInbox:
    """Get the shares that the neighbours sealed for this member."""

    session_id: str
    index: int


@dataclass(frozen=True, slots=True)
class SendInput:
    """Mask the update and put it."""

    session_id: str
    index: int
    masks: tuple[Mask, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ReadSurvivors:
    """Get the list of those whose inputs arrived."""

    session_id: str


@dataclass(frozen=True, slots=True)
class SendSignature:
    """Put the signature of that list."""

    session_id: str
    index: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class ReadSignatures:
    """Get the others' signatures of the list."""

    session_id: str


@dataclass(frozen=True, slots=True)
class SendAnswer:
    """Note durably that this member answers, then put its shares."""

    session_id: str
    index: int
    answer: bytes = field(repr=False)
    session_hash: bytes
    survivors: bytes


@dataclass(frozen=True, slots=True)
class AwaitEnd:
    """Ask where the session stands until it is over: this member can do nothing more in it."""

    session_id: str


@dataclass(frozen=True, slots=True)
class LookAtSeat:
    """Ask whether the seat is free again."""


@dataclass(frozen=True, slots=True)
class ReadTranscript:
    """Get what the session leaves behind."""

    session_id: str


Action = (
    TakeSeat
    | AwaitSeat
    | ReadRoster
    | SendShares
    | AwaitState
    | ReadInbox
    | SendInput
    | ReadSurvivors
    | SendSignature
    | ReadSignatures
    | SendAnswer
    | AwaitEnd
    | LookAtSeat
    | ReadTranscript
    | Counted
    | Failed
)


class MaskedSession:
    """One attempt of one member at a session; a new attempt has fresh keys."""

    def __init__(self, round_: MaskedRound, identity: Identity, *, trust: PeerTrust) -> None:
        masked = round_.manifest.secure_aggregation
        terms = Terms(
            context=round_.context,
            min_members=masked.min_members,
            max_members=masked.max_members,
            min_known_peers=trust.min_known_peers,
            must_be_complete=trust.require_complete_graph,
        )
        entropy = bytearray(os.urandom(ADVERTISE_ENTROPY_BYTES))
        self._participant = Participant.enrol(
            terms,
            client_id=client_id_bytes(identity.client_id),
            identity_key=identity.public_key,
            signer=identity.sign,
            entropy=entropy,
        )
        entropy[:] = bytes(len(entropy))
        self._round = round_
        self._identity = identity
        self._session_id: str | None = None
        self._newest = SessionState.SHARES
        self._survivors: bytes = b""
        self._input_digest: str | None = None
        self._reason = ""

    @property
    def cohort(self) -> Cohort:
        return self._participant.cohort

    @property
    def has_answered(self) -> bool:
        """Whether the one answer was given out, so that the round is spent."""
        return self._participant.stage is Stage.SPENT

    @property
    def sum_size(self) -> int | None:
        """How many clients are in a sum that may have come of this session; 0 if this client knows of none.

        None where a list of survivors was signed, and no quorum for it was seen: the sum may be another one.
        """
        if self.has_answered:
            return len(messages.parse_bitmap(self._survivors, num_members=len(self.cohort.roster.members)))
        return None if self._survivors else 0

    def leave(self, reason: str) -> None:
        """Overwrites the secrets; what comes now is waiting for the end."""
        self._participant.leave()
        self._reason = self._reason or reason

    def begin(self) -> TakeSeat:
        return TakeSeat(self._participant.advertise.render())

    def seated(self, seat: Seat) -> Action:
        """Takes where the seat stands, before the session begins or after its end."""
        match seat.state:
            case SeatState.WAITING:
                return AwaitSeat()
            case SeatState.FREE:
                return Failed(self._reason or "the session ended before it began", may_retry=True)
            case SeatState.SPENT:
                return self._spent()
        if seat.session_id is None or self._session_id not in (None, seat.session_id):
            raise UntrustedAnswerError("the server's seat is in no session, or in another than before")
        self._session_id = seat.session_id
        return self._reading_on() if self._participant.stage is Stage.ADVERTISED else AwaitEnd(seat.session_id)

    def roster_read(self, roster: bytes, known: KnownPeers) -> SendShares:
        """Takes the roster (rules C2, C3) and deals the shares."""
        terms = replace(self._participant.terms, known=known.keys, must_know_all=known.must_know_all)
        self._participant.terms = terms
        self._keeping_rules(lambda: self._participant.accept_roster(roster))
        entropy = os.urandom(self._participant.dealing_entropy_bytes)
        return SendShares(self._session, self._participant.index, self._participant.deal(entropy))

    def moved(self, session: Session) -> Action:
        """Takes where the session stands."""
        self._check_session(session)
        state, stage = session.state, self._participant.stage
        if state is SessionState.ABORTED:
            return self._aborted(session)
        if stage is Stage.LEFT:
            return LookAtSeat() if state in _ENDED else AwaitEnd(session.session_id)
        if stage is Stage.SPENT:
            return ReadTranscript(session.session_id) if state is SessionState.DONE else self._waiting(session)
        if state is _AWAITED.get(stage):
            return self._waiting(session)
        if state is not _NEXT.get(stage):
            self.leave(f"the session went on to {state.value} without this client")
            return self.moved(session)
        match state:
            case SessionState.INPUT:
                return ReadInbox(session.session_id, self._participant.index)
            case SessionState.CONSISTENCY:
                return ReadSurvivors(session.session_id)
            case _:
                return ReadSignatures(session.session_id)

    def inbox_read(self, inbox: bytes) -> SendInput:
        """Takes the neighbours' shares (rule C4) and gives out the masks, once."""
        self._keeping_rules(lambda: self._participant.open_inbox(inbox))
        return SendInput(self._session, self._participant.index, self._participant.masks())

    def input_sent(self, digest: str) -> None:
        """Takes the digest of the masked vector that was sent."""
        self._input_digest = digest

    def survivors_read(self, bitmap: bytes) -> SendSignature:
        """Takes the list of survivors (rule C5) and signs it, and never another one."""
        signature = self._keeping_rules(lambda: self._participant.sign_survivors(bitmap, signer=self._identity.sign))
        self._survivors = bitmap
        return SendSignature(self._session, self._participant.index, signature)

    def signatures_read(self, signatures: bytes) -> SendAnswer:
        """Takes the survivors' signatures (rule C6) and gives the one answer (rule C7)."""
        self._keeping_rules(lambda: self._participant.check_consistency(signatures))
        answer = self._participant.unmask(self._survivors)
        return SendAnswer(self._session, self._participant.index, answer, self.cohort.session_id, self._survivors)

    def transcript_read(self, transcript: Transcript) -> Counted | Failed:
        """Checks that this client's input, and the set that it signed, is what the session says it added up."""
        members = {member.client_id: member for member in transcript.members}
        mine = members.get(self._identity.client_id)
        if mine is None or (not self.has_answered and not mine.survived):
            return Failed(self._reason or "the session ended without this client", may_retry=False)
        expected = {
            "state": (transcript.state, SessionState.DONE),
            "manifest_digest": (transcript.manifest_digest, self._round.digest),
            "context": (transcript.context, self._round.context.hex()),
            "session_hash": (transcript.session_hash, self.cohort.session_id.hex()),
            "members.survived": (mine.survived, True),
            "members.input_digest": (mine.input_digest, self._input_digest),
        }
        if self._survivors:
            expected["survivors"] = (self._survivors_of(transcript).hex(), self._survivors.hex())
        for name, (found, known) in expected.items():
            if found != known:
                raise TranscriptError(
                    f"the transcript of session {transcript.session_id} has {name} {found}; this client sent and "
                    f"signed {known}: its update was left out of the sum, or the sum is of another set",
                    field=name,
                    value=found,
                    bound=known,
                )
        return Counted(transcript.session_id, sum(member.survived for member in transcript.members))

    @property
    def _session(self) -> str:
        if self._session_id is None:
            raise RuntimeError("no session has begun")
        return self._session_id

    def _reading_on(self) -> ReadRoster:
        return ReadRoster(self._session)

    def _spent(self) -> Action:
        # In the sum without an answer: what it signed, or only sent, was counted by the others' shares.
        if self._session_id is not None:
            return ReadTranscript(self._session_id)
        return Failed("the seat is spent: this client was counted in a session before", may_retry=False)

    def _aborted(self, session: Session) -> Failed:
        answered = self.has_answered
        code = "unknown" if session.abort_code is None else session.abort_code.value
        self.leave(f"{code}: {session.reason or 'no reason was given'}")
        return Failed(f"session aborted, {self._reason}", may_retry=not answered, session_id=session.session_id)

    @staticmethod
    def _waiting(session: Session) -> AwaitState:
        return AwaitState(session.session_id, session.state)

    def _check_session(self, session: Session) -> None:
        told = (session.manifest_digest, session.round, session.attempt, session.run_id)
        manifest = self._round.manifest
        if told != (self._round.digest, manifest.round, manifest.attempt, manifest.run_id):
            raise UntrustedAnswerError("the server's session is of another manifest, round or run than this client's")
        before, now = _ORDER.index(self._newest), _ORDER.index(session.state)
        if now >= before:
            self._newest = session.state
            return
        answered = self.has_answered
        self.leave("the server's session went back")
        if answered:
            raise SessionRefusedError(
                f"the session went back from {self._newest.value} to {session.state.value} after this client had "
                "answered, and it answers once (rule C7)",
                rule="C7",
                field="state",
                value=session.state.value,
                bound=self._newest.value,
            )
        raise UntrustedAnswerError(f"the server's session went back from {self._newest.value} to {session.state.value}")

    def _keeping_rules(self, step: Callable[[], Result]) -> Result:
        try:
            return step()
        except RefusalError as error:
            self._reason = str(error)
            raise SessionRefusedError(
                f"this client has left session {self._session}: {error}",
                rule=error.rule,
                field=error.field,
                value=error.value,
                bound=error.bound,
            ) from None
        except MaskingError as error:
            self._reason = str(error)
            raise UntrustedAnswerError(f"the server's message of session {self._session} is none: {error}") from None

    def _survivors_of(self, transcript: Transcript) -> bytes:
        members = {member.client_id: member.survived for member in transcript.members}
        indices = [
            index
            for index, member in enumerate(self.cohort.roster.members)
            if members.get(f"client_{member.client_id.hex()}")
        ]
        return messages.render_bitmap(indices, num_members=len(self.cohort.roster.members))
