"""Pieces of work that outlive the requests which wait for them: whoever asks again is told how they ended."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from fl_protocol.problems import ProblemError, ProblemType

T = TypeVar("T")

PATIENCE_SECONDS: Final = 40.0
"""Proxies and clients give up on an answer after a minute or more; a body of many gigabytes takes longer to check."""
NUM_AT_ONCE: Final = 4
"""Each holds some pieces of its body in memory."""


class Completions:
    """Work by key, one piece a key at a time, and no more than four of all keys."""

    def __init__(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._turns = asyncio.Semaphore(NUM_AT_ONCE)

    async def run(self, key: str, work: Callable[[], Awaitable[T]]) -> T:
        """Gives what the work gives, or raises what it raises; `unavailable` where it takes longer than patience.

        It goes on then, and the next one who asks waits for it.
        """
        task = self._running.get(key)
        if task is None:
            task = asyncio.ensure_future(self._in_turn(work))
            self._running[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        await asyncio.wait([task], timeout=self._patience_seconds)
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
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    def _forget(self, key: str, done: "asyncio.Task[Any]") -> None:
        del self._running[key]
        if not done.cancelled():
            # Those who asked may all have left; whoever has not raises it.
            done.exception()

    async def _in_turn(self, work: Callable[[], Awaitable[T]]) -> T:
        async with self._turns:
            return await work()
