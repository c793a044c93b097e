"""Which clients are there: how precisely the time at which a client was last seen is kept."""

from datetime import datetime, timedelta
from typing import Final

from fl_protocol.specs.selection import SelectionSpec, StratifiedSelection, UniformSelection

_COARSEST: Final = timedelta(seconds=30)


def seen_within(selection: SelectionSpec) -> timedelta:
    """Gives how lately a client must have been seen to count as being there."""
    if isinstance(selection, UniformSelection | StratifiedSelection):
        return timedelta(seconds=selection.seen_within_seconds)
    return timedelta(seconds=120)


def is_due(selection: SelectionSpec, *, seen_at: datetime | None, now: datetime) -> bool:
    """Tells whether a client that asks for a task is to be marked as seen again.

    Thousands of clients that wait must not make as many writes a second: the mark may be a quarter of the time old that
    counts as lately, at most half a minute.
    """
    return seen_at is None or now - seen_at > min(seen_within(selection) / 4, _COARSEST)
