"""Pieces of work that outlive the requests which wait for them: whoever asks again is told how they ended."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

from fl_protocol.problems import ProblemError, ProblemType

T = TypeVar("T")

PATIENCE_SECONDS: Final = 20.0
"""Proxies and clients give up on an answer after 30 s or more; a part of many gigabytes takes longer to check."""


class Completions:
    """Work by key, one piece a key at a time."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[Any]] = {}

    async def run(self, key: str, work: Callable[[], Awaitable[T]]) -> T:
        """Gives what the work gives, or raises what it raises; `unavailable` where it takes longer than patience.

        It goes on then, and the next one who asks waits for it.
        """
        task = self._running.get(key)
        if task is None:
            task = asyncio.ensure_future(_awaited(work))
            self._running[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        await asyncio.wait([task], timeout=PATIENCE_SECONDS)
        if not task.done():
            raise ProblemError(
                ProblemType.UNAVAILABLE,
                "all bytes are stored and still being checked; ask again by an append of none, Upload-Complete ?1",
                retry_after_seconds=1,
            )
        result: T = task.result()
        return result

    async def stop(self) -> None:
        """Leaves everything where it is; it begins anew when somebody asks again."""
        for task in list(self._running.values()):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    def _forget(self, key: str, done: "asyncio.Task[Any]") -> None:
        del self._running[key]
        if not done.cancelled():
            # Those who asked may all have left; whoever has not raises it.
            done.exception()


async def _awaited(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
