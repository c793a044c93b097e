"""When a round stops collecting: two counts and one time."""

from datetime import datetime
from enum import StrEnum

from aggregator_service.domain.records import RoundRecord, RunRecord
from fl_protocol.rounds import RoundKind


class QuorumDecision(StrEnum):
    """What becomes of a collecting round."""

    COLLECT = "collect"
    SEAL = "seal"
    ABANDON = "abandon"


def deadline_clock(run: RunRecord, now: datetime) -> datetime:
    """Gives the instant that deadlines are compared with; it stands still while the run is paused."""
    return run.paused_at or now


def decide(round_: RoundRecord, now: datetime) -> QuorumDecision:
    """Seals at `quorum` updates at once, at the deadline with `min_updates`; abandons at the deadline with fewer.

    Where secret coins choose the cohort it is sealed at once only when everyone chosen has answered: to close at some
    number of updates would favour the fast, and the cohort would no longer be what the coins chose. A buffer
    collects until it is full.
    """
    enough = round_.quorum if round_.num_awaited is None else max(round_.num_awaited, round_.min_updates)
    if round_.num_updates >= enough:
        return QuorumDecision.SEAL
    if round_.kind is RoundKind.BUFFERED or now < round_.deadline_at:
        return QuorumDecision.COLLECT
    return QuorumDecision.SEAL if round_.num_updates >= round_.min_updates else QuorumDecision.ABANDON
