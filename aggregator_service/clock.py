"""The clock as an argument, so that tests decide what time it is."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def system_clock() -> datetime:
    """Gives the present instant in UTC."""
    return datetime.now(UTC)
