"""Who looks again when what has happened: the topics that held requests and the worker wait on."""

from collections.abc import Callable, Mapping
from typing import Final

from fl_protocol.rounds import EventType

WORK: Final = "work"
"""The worker: a round was opened or sealed, an evaluation began or ended, a run moved on."""

FOLDING: Final = "folding"
"""The worker's eager folding: an update was counted."""

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


def _work(_run_id: str) -> str:
    return WORK


def _folding(_run_id: str) -> str:
    return FOLDING


_TOPICS: Final[Mapping[EventType, tuple[Callable[[str], str], ...]]] = {
    EventType.ROUND_OPENED: (events_of, tasks_of, _work),
    EventType.UPDATE_ACCEPTED: (events_of, _folding),
    EventType.ROUND_CLOSED: (events_of, _work),
    EventType.ROUND_ABANDONED: (events_of,),
    EventType.MODEL_PUBLISHED: (events_of, tasks_of, models_of, _work),
    EventType.EVALUATION_COMPLETED: (events_of, _work),
    EventType.RUN_STATE: (events_of, tasks_of, models_of, _work),
}


def woken_by(event_type: EventType, run_id: str) -> tuple[str, ...]:
    """Gives the topics that an event of a run moves on; thousands of waiting clients need not look at every update."""
    return tuple(topic(run_id) for topic in _TOPICS[event_type])
