"""Something changed: a hint to look again, never data.

Each topic is a counter. A waiter notes the counter, looks at the truth, and then waits for the counter to move on;
a change between the look and the wait is therefore never missed.
"""

import asyncio
import math
from collections.abc import Iterable
from typing import Final

_TICK_SECONDS: Final = 0.05
"""Waits end at multiples of this, so that thousands of them share a few timers."""

_Waiters = set["asyncio.Future[None]"]


class Wakeups:
    """Counters that coroutines of one event loop wait on; `publish` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._counters: dict[str, int] = {}
        self._waiters: dict[str, _Waiters] = {}
        self._due: dict[int, _Waiters] = {}
        self._closed = False

    @property
    def closed(self) -> bool:
        """Tells whether the server is draining, so that held requests should be answered now."""
        return self._closed

    def seen(self, topic: str) -> int:
        """Gives the topic's counter, to be noted before looking at the truth."""
        return self._counters.get(topic, 0)

    def publish(self, topics: Iterable[str]) -> None:
        """Moves the counters of some topics on, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._move_on, tuple(topics))

    async def wait(self, topic: str, seen: int, *, timeout_seconds: float) -> None:
        """Returns when the topic has moved on since `seen`, when the time is up, or at once while draining."""
        if self._closed or self.seen(topic) != seen or timeout_seconds <= 0:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        waiters = self._waiters.setdefault(topic, set())
        due = self._due_after(timeout_seconds)
        waiters.add(waiter)
        due.add(waiter)
        try:
            await waiter
        finally:
            due.discard(waiter)
            waiters.discard(waiter)
            if not waiters and self._waiters.get(topic) is waiters:
                del self._waiters[topic]

    def close(self) -> None:
        """Wakes everyone and lets nobody wait again."""
        self._closed = True
        self._move_on(tuple(self._waiters))

    def _move_on(self, topics: tuple[str, ...]) -> None:
        for topic in topics:
            self._counters[topic] = self._counters.get(topic, 0) + 1
            _wake(self._waiters.get(topic, ()))

    def _due_after(self, seconds: float) -> _Waiters:
        """Gives those whose time is up with the tick in which so many seconds have passed."""
        tick = math.ceil((self._loop.time() + seconds) / _TICK_SECONDS)
        due = self._due.get(tick)
        if due is None:
            due = self._due[tick] = set()
            self._loop.call_at(tick * _TICK_SECONDS, self._expire, tick)
        return due

    def _expire(self, tick: int) -> None:
        _wake(self._due.pop(tick))


def _wake(waiters: Iterable["asyncio.Future[None]"]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
