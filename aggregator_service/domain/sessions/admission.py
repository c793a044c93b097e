"""Which messages a session takes: by its state, by who sends them, and by what was sent before."""

from collections.abc import Collection
from dataclasses import dataclass

from aggregator_service.domain.sessions.records import IdentityKeyRecord, MemberRecord, SeatRecord, SessionRecord
from fl_protocol.masking import keys, messages
from fl_protocol.masking.errors import MaskingError
from fl_protocol.masking.messages import Advertise
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.sessions import SeatState, SessionState


@dataclass(frozen=True, slots=True)
class New:
    """The message is new and is to be kept."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """The same bytes were taken before."""


def no_such_session(session_id: str) -> ProblemError:
    """Gives the problem of a session that does not exist, or that the caller is not in."""
    return ProblemError(ProblemType.NOT_FOUND, f"there is no session {session_id!r} that you are a member of")


def invalid(error: MaskingError) -> ProblemError:
    """Gives the problem of a message that is not what it must be."""
    return ProblemError(ProblemType.INVALID_MESSAGE, str(error))


def equivocation(what: str) -> ProblemError:
    """Gives the problem of a message that differs from the one that was taken before."""
    return ProblemError(
        ProblemType.EQUIVOCATION, f"other bytes were sent as {what} before; the first ones stand and are not replaced"
    )


def phase_closed(session: SessionRecord, what: str) -> ProblemError:
    """Gives the problem of a message, or of a question, that the session's phase has no place for."""
    return ProblemError(ProblemType.PHASE_CLOSED, f"the session is in the phase {session.state}: {what}")


def check_not_aborted(session: SessionRecord) -> None:
    """Raises `session-aborted` with the code and the reason."""
    if session.state is SessionState.ABORTED:
        raise ProblemError(ProblemType.SESSION_ABORTED, f"{session.abort_code}: {session.reason}")


def check_place(member: MemberRecord, place: int) -> None:
    """Raises `forbidden` for another member's message."""
    if member.place != place:
        raise ProblemError(ProblemType.FORBIDDEN, f"you are member {member.place} of the session, not {place}")


def judge_message(
    session: SessionRecord, *, phase: SessionState, digest: str, earlier: str | None, may_send: bool
) -> New | Repeated:
    """Decides on a member's message of a phase by the digest of its bytes.

    Raises `session-aborted`, `equivocation` or `phase-closed`.
    """
    check_not_aborted(session)
    if earlier is not None:
        if earlier != digest:
            raise equivocation(f"the {phase} of this member")
        return Repeated()
    if session.state is not phase:
        raise phase_closed(session, f"it takes no {phase} now")
    if not may_send:
        raise phase_closed(session, "an earlier message of yours did not arrive in time, so that you dropped out")
    return New()


def judge_seat(seat: SeatRecord | None, advertise: bytes) -> New | Repeated:
    """Decides on keys that a client advertises for a seat; raises `equivocation` or `state-conflict`."""
    if seat is None or (seat.state is SeatState.FREE and seat.advertise != advertise):
        return New()
    if seat.state is SeatState.FREE:
        raise ProblemError(
            ProblemType.INVALID_MESSAGE, "the keys were used in a session that failed; advertise fresh ones"
        )
    if seat.advertise == advertise:
        return Repeated()
    if seat.state is SeatState.SPENT:
        raise ProblemError(
            ProblemType.STATE_CONFLICT, "this seat is spent: the update may not be masked again in this round"
        )
    raise equivocation("the advertised keys of this task")


def check_advertise(data: bytes, *, client_id: str, registered: IdentityKeyRecord | None, context: bytes) -> Advertise:
    """Reads and checks what a client advertises.

    Raises `state-conflict` if it has no identity key yet, and `invalid-message` for a wrong length, identifier, key or
    signature.
    """
    if registered is None:
        raise ProblemError(
            ProblemType.STATE_CONFLICT,
            f"no identity key is registered; put it to /v1/clients/{client_id}/identity-key first",
        )
    try:
        advertise = messages.parse_advertise(data)
        keys.check_agreement_key(advertise.share_key, field="advertise.share_key")
        keys.check_agreement_key(advertise.mask_key, field="advertise.mask_key")
    except MaskingError as error:
        raise invalid(error) from None
    if advertise.client_id != client_bytes(client_id):
        raise _odd("client_id", "is not yours: it is the 16 bytes behind the prefix of your identifier")
    if advertise.identity_key != registered.public_key:
        raise _odd("identity_key", "is not the one that is registered for you")
    if advertise.share_key == advertise.mask_key:
        raise _odd("mask_key", "is the share key, too; each needs a pair of its own")
    if not keys.is_signed(
        advertise.identity_key, messages.advertise_message(advertise, context=context), advertise.signature
    ):
        raise _odd("signature", "is not yours over this round's context, the hash of its manifest")
    return advertise


def check_fresh(advertise: Advertise, used: Collection[bytes]) -> None:
    """Raises `invalid-message` for a key that was advertised before in the same round."""
    for name in ("share_key", "mask_key"):
        if getattr(advertise, name) in used:
            raise _odd(name, "was advertised before in this round; keys are for one session only")


def client_bytes(client_id: str) -> bytes:
    """Gives the 16 bytes that stand for a client in a session's messages."""
    return bytes.fromhex(client_id.rpartition("_")[2])


def _odd(field: str, what: str) -> ProblemError:
    return ProblemError(ProblemType.INVALID_MESSAGE, f"advertise.{field} {what}")
