"""When a request is sent again, and after how long: exponential back-off with full jitter.

Every request of the contract may be repeated, so one that was lost on the way is simply sent again; a refusal is
repeated only where the server says that time may change its mind.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from client_sdk.config import Limits
from client_sdk.errors import FedQuorumError, ServerError, TransportError

PROGRESS_BYTES: Final = 64 << 10
"""How far an attempt must carry a transfer on so that it does not count as a failure in a row."""

RETRYABLE_STATUSES: Final = frozenset({408, 429, 502, 503, 504, 507})

Result = TypeVar("Result")


def is_retryable(error: FedQuorumError) -> bool:
    """Tells whether the same request, sent again, may succeed."""
    if isinstance(error, ServerError):
        return error.status in RETRYABLE_STATUSES or error.retryable
    return isinstance(error, TransportError)


def pause_seconds(error: FedQuorumError, attempt: int, *, limits: Limits, fraction: float) -> float | None:
    """Says how long to wait after the `attempt`-th failure (counted from 1); None: give up.

    `fraction` is a random number from 0 to 1. The pause is uniform between 0 and a ceiling that doubles (AWS
    Architecture Blog, "Exponential Backoff And Jitter", 2015), and no shorter than Retry-After up to its own ceiling.
    """
    if attempt >= limits.max_attempts or not is_retryable(error):
        return None
    ceiling = min(limits.backoff_max_seconds, limits.backoff_initial_seconds * 2.0 ** min(attempt - 1, 60))
    asked = error.retry_after_seconds if isinstance(error, ServerError) else None
    return max(ceiling * fraction, min(asked or 0.0, limits.retry_after_max_seconds))


async def retrying(
    attempt: Callable[[], Awaitable[Result]],
    limits: Limits,
    *,
    sleep: Callable[[float], Awaitable[None]],
    fraction: Callable[[], float],
    num_bytes: Callable[[], int] = lambda: 0,
) -> Result:
    """Repeats `attempt` until it succeeds or its error says that this is useless; raises its last error.

    `num_bytes` tells how far a transfer has come: while every attempt carries it on by 64 KiB, a line may be cut as
    often as it likes.
    """
    failures, reached = 0, num_bytes()
    while True:
        try:
            return await attempt()
        except FedQuorumError as error:
            if num_bytes() >= reached + PROGRESS_BYTES:
                failures, reached = 0, num_bytes()
            failures += 1
            pause = pause_seconds(error, failures, limits=limits, fraction=fraction())
            if pause is None:
                raise
        await sleep(pause)
