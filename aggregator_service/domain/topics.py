"""Who looks again when what has happened: the topics that held requests and the worker wait on."""

from collections.abc import Callable, Mapping
from typing import Final

from fl_protocol.rounds import EventType

SEALED: Final = "sealed"
"""The worker's aggregation: a round was sealed, or what it waited for is there."""

FOLDING: Final = "folding"
"""The worker's eager folding: an update was counted."""

SUMMING: Final = "summing"
"""The worker's sums of masked updates: a session or a round in helper mode may wait for one."""

DEADLINES: Final = "deadlines"
"""The worker's clock: a deadline began, or its run moved on."""

RETENTION: Final = "retention"
"""The worker's removals: a run may keep less than it has."""

MASK_REQUESTS: Final = "mask-requests"
"""Helpers: a round was closed and asks them, or all of them may answer."""


def events_of(run_id: str) -> str:
    """Names what changes with every event of a run."""
    return f"events:{run_id}"


def tasks_of(run_id: str) -> str:
    """Names what changes when clients may find a task in a run, or hear that there will be none."""
    return f"tasks:{run_id}"


def models_of(run_id: str) -> str:
    """Names what changes when a run has a new model, or hears that there will be none."""
    return f"models:{run_id}"


def sessions_of(run_id: str) -> str:
    """Names what changes when a session of a masked run begins, enters another phase or ends."""
    return f"sessions:{run_id}"


def _always(topic: str) -> Callable[[str], str]:
    return lambda _run_id: topic


_TOPICS: Final[Mapping[EventType, tuple[Callable[[str], str], ...]]] = {
    EventType.ROUND_OPENED: (events_of, tasks_of, _always(DEADLINES)),
    EventType.UPDATE_ACCEPTED: (events_of, _always(FOLDING)),
    EventType.ROUND_CLOSED: (events_of, _always(SEALED)),
    EventType.ROUND_ABANDONED: (events_of, _always(RETENTION)),
    # The next buffer may wait for this model, and an evaluation of it has a deadline.
    EventType.MODEL_PUBLISHED: (
        *(events_of, tasks_of, models_of),
        *(_always(topic) for topic in (SEALED, DEADLINES, RETENTION)),
    ),
    EventType.EVALUATION_COMPLETED: (events_of, _always(RETENTION)),
    EventType.RUN_STATE: (
        *(events_of, tasks_of, models_of),
        *(_always(topic) for topic in (SEALED, SUMMING, DEADLINES, RETENTION)),
    ),
}


def woken_by(event_type: EventType, run_id: str) -> tuple[str, ...]:
    """Gives the topics that an event of a run moves on; thousands of waiting clients need not look at every update."""
    return tuple(topic(run_id) for topic in _TOPICS[event_type])
