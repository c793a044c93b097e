"""Runs a piece of work once for all who ask for it at the same time, and one piece at a time."""

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import structlog

T = TypeVar("T")

_MAX_QUEUED: Final = 64

_log = structlog.get_logger()


class SingleFlight:
    """Work on one thread of its own, by key; who asks for what is being done already waits for that."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="renditions")
        self._running: dict[Hashable, asyncio.Future[Any]] = {}

    async def run(self, key: Hashable, work: Callable[[], T], *, patience_seconds: float) -> T | None:
        """Gives what the work gives; None if it fails, if too much is queued, or while it takes longer than patience.

        It goes on when those who asked have left, and then serves whoever asks next.
        """
        future = self._running.get(key)
        if future is None:
            if len(self._running) >= _MAX_QUEUED:
                return None
            future = asyncio.get_running_loop().run_in_executor(self._thread, work)
            self._running[key] = future
            future.add_done_callback(lambda done: self._finish(key, done))
        await asyncio.wait([future], timeout=patience_seconds)
        if not future.done() or future.cancelled() or future.exception() is not None:
            return None
        result: T = future.result()
        return result

    def _finish(self, key: Hashable, done: "asyncio.Future[Any]") -> None:
        del self._running[key]
        if not done.cancelled() and (error := done.exception()) is not None:
            _log.warning("rendition_failed", rendition=str(key), error=f"{type(error).__name__}: {error}")
