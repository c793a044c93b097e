"""What moves a closed round of helper mode on: its helpers' verdicts, their answers, or its deadline."""

from collections.abc import Mapping, Sequence
from typing import Final

from aggregator_service.domain.helper_mode.records import MaskRequestRecord, MaskSumRecord
from fl_protocol.helper_mode import MaskRequestState, MaskSumState
from fl_protocol.problems import ProblemError, ProblemType

MASK_SUM_TRANSITIONS: Final[Mapping[MaskSumState, frozenset[MaskSumState]]] = {
    MaskSumState.CHECKING: frozenset({MaskSumState.CHECKING, MaskSumState.RELEASING, MaskSumState.FAILED}),
    MaskSumState.RELEASING: frozenset({MaskSumState.SUMMING, MaskSumState.FAILED}),
    MaskSumState.SUMMING: frozenset({MaskSumState.DONE, MaskSumState.FAILED}),
    MaskSumState.DONE: frozenset(),
    MaskSumState.FAILED: frozenset(),
}
"""From `checking` to itself when contributions are refused and the others are asked about again."""

WAITING: Final = (MaskSumState.CHECKING, MaskSumState.RELEASING)
"""In these a round waits for helpers, and has a deadline."""


def following(mask_sum: MaskSumRecord, requests: Sequence[MaskRequestRecord]) -> MaskSumState:
    """Gives where a round stands after a helper has done its part."""
    states = {request.state for request in requests}
    if mask_sum.state is MaskSumState.CHECKING and MaskRequestState.ASKED not in states:
        return MaskSumState.RELEASING
    if mask_sum.state is MaskSumState.RELEASING and states == {MaskRequestState.ANSWERED}:
        return MaskSumState.SUMMING
    return mask_sum.state


def silence(mask_sum: MaskSumRecord, requests: Sequence[MaskRequestRecord], *, seconds: float) -> str:
    """Says which helpers a round has waited for in vain."""
    done = MaskRequestState.READY if mask_sum.state is MaskSumState.CHECKING else MaskRequestState.ANSWERED
    missing = [request.name for request in requests if request.state is not done]
    what = "said whether it can" if mask_sum.state is MaskSumState.CHECKING else "told the sum of masks"
    names = ", ".join(repr(name) for name in missing)
    subject = f"helper {names} has" if len(missing) == 1 else f"helpers {names} have"
    return f"{subject} not {what} within secure_aggregation.helper_seconds {seconds:g}"


def too_few(name: str, refused: Mapping[str, str], *, num_left: int, min_updates: int) -> str:
    """Says that a helper refused so many contributions that the rest are too few."""
    client_id, reason = next(iter(sorted(refused.items())))
    return (
        f"helper {name!r} refuses {len(refused)} contributions and {num_left} of at least {min_updates} are left; "
        f"{client_id}: {reason}"
    )


def check_phase(mask_sum: MaskSumRecord, wanted: MaskSumState) -> None:
    """Raises `phase-closed`, or `round-closed` for a round that has ended without a sum."""
    if mask_sum.state is MaskSumState.FAILED:
        raise ProblemError(ProblemType.ROUND_CLOSED, f"the round was abandoned: {mask_sum.reason}")
    if mask_sum.state is not wanted:
        what = "verdicts are taken" if wanted is MaskSumState.CHECKING else "sums of masks are taken"
        raise ProblemError(
            ProblemType.PHASE_CLOSED, f"the round is {mask_sum.state.value}; {what} while it is {wanted.value}"
        )
