"""Who takes part in a round."""

from aggregator_service.domain.records import RoundRecord
from fl_protocol.rounds import RoundState


def has_place(round_: RoundRecord) -> bool:
    """Tells whether selection `open` gives a place to the next client that asks: until the cohort is full."""
    return round_.state is RoundState.COLLECTING and round_.num_tasks < round_.cohort_size
