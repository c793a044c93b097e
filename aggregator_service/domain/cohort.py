"""Who takes part in a round."""

from aggregator_service.domain.records import RoundRecord
from fl_protocol.rounds import RoundState


def has_room(round_: RoundRecord, *, num_out: int, latest_version: int, max_staleness: int) -> bool:
    """Tells whether a buffered run has work for one more client.

    That takes a place for one more task, and a newest model which is not already too old for the buffer: sealed buffers
    may wait for their aggregate, and what is made from a model before them is stale by as many versions.
    """
    if round_.state is not RoundState.COLLECTING or num_out >= round_.cohort_size:
        return False
    return round_.base_version - latest_version <= max_staleness


def has_place(round_: RoundRecord) -> bool:
    """Tells whether selection `open` gives a place to the next client that asks: until the cohort is full."""
    return round_.state is RoundState.COLLECTING and round_.num_tasks < round_.cohort_size
